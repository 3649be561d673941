"""A real target process on a real Kafka; the oracle is the list of records, applied one by one to a bytearray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream.codec import encode_journal
from stream.control import Follower, Request
from stream.journal import JournalFence
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.kafka_fixture import Kafka
from tests.target_feed import Feed, TargetProcess, config_of, wait_for
from tests.target_script import EVENTS, Script, play, script

pytestmark = pytest.mark.kafka

VOLUME_BYTES = 1 << 20


class Setup:
    """One volume with its journal, its target and where its files are."""

    def __init__(self, kafka: Kafka, folder: Path, made: Script, **target: object) -> None:
        self.made = made
        self.volume = made.maker.volume
        self.config = config_of(kafka.bootstrap, name=kafka.fresh_volume_name("t"), **target)
        self.feed = Feed(self.config, self.volume, VOLUME_BYTES)
        self.replica = folder / "replica"
        self.process = TargetProcess(self.config, folder / "state")

    def send(self) -> None:
        self.feed.send(self.made.maker.messages)

    def applied(self) -> dict:
        """Wait until everything is applied and at rest; return the facts."""
        last = str(self.made.maker.last)
        return self.process.wait(self.volume, lambda told: told.get("consistent_at") == last, f"consistent at {last}")


@contextmanager
def _setup(kafka: Kafka, folder: Path, seed: int = 1, **target: object) -> Iterator[Setup]:
    made = script(VOLUME_BYTES, seed, volume=kafka.fresh_volume_name("target"))
    setup = Setup(kafka, folder, made, **target)
    with setup.process:
        yield setup


@pytest.mark.parametrize("mode", ["hold", "follow"])
def test_the_replica_equals_the_records(kafka: Kafka, tmp_path: Path, mode: str) -> None:
    with _setup(kafka, tmp_path, during_resync=mode) as setup:
        setup.made.write_bytes_max = 20_000
        setup.feed.declare(setup.replica)
        for event in EVENTS * 4:
            play(setup.made, event)
            setup.send()
        told = setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()
        assert (told["open_gaps"], told["error"], told["held"]) == (0, None, False)
        assert told["applied_bytes"] > 0
        code, took_s = setup.process.stop()
        assert code == 0
        assert took_s < 10
        assert setup.process.checkpoint(setup.volume)["consistent_at"] == str(setup.made.maker.last)


def test_a_gap_is_held_until_it_is_closed(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.feed.declare(setup.replica)
        setup.send()
        setup.applied()
        held_at, image = setup.made.maker.last, setup.replica.read_bytes()
        position = setup.made.position(0)
        setup.made.open(position, "buffer_full")
        setup.made.maker.batch(mark(Kind.GAP_BEGIN, reason="buffer_full"), setup.made.told())
        setup.made.batch()
        setup.send()
        told = setup.process.wait(setup.volume, lambda told: told["held"] and told["waiting_bytes"] > 0, "held")
        assert (told["consistent_at"], told["open_gaps"], told["gaps"]) == (str(held_at), 1, 1)
        assert setup.replica.read_bytes() == image
        setup.made.close(position)
        setup.send()
        assert setup.applied()["gaps"] == 1
        assert setup.replica.read_bytes() == setup.made.image()


def test_volumes_are_paused_resumed_removed_and_added_again(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        image = setup.replica.read_bytes()
        setup.feed.declare(setup.replica, state="paused")
        told = setup.process.wait(setup.volume, lambda told: told.get("state") == "paused", "paused")
        assert told["consistent_at"] == str(setup.made.maker.last)
        setup.made.batch()
        setup.send()
        assert setup.replica.read_bytes() == image
        setup.feed.declare(setup.replica)
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()
        setup.feed.declare(setup.replica, state="removed")
        setup.process.wait(setup.volume, lambda told: told == {}, "removed")
        setup.replica.unlink()  # the operator's right, once the volume is removed
        setup.made.batch()
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()


def test_one_bad_message_parks_its_volume_alone(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        other = script(VOLUME_BYTES, 5, volume=kafka.fresh_volume_name("other"))
        feed = Feed(setup.config, other.maker.volume, VOLUME_BYTES)
        feed.send(other.maker.messages)
        feed.declare(tmp_path / "other")
        setup.send()
        bad = bytearray(encode_journal(setup.made.fork().make(write(0, b"x" * 100))))
        bad[60] ^= 1
        kafka_offset = len(setup.made.maker.messages)
        setup.feed.send_raw(bytes(bad))
        setup.feed.declare(setup.replica)
        told = setup.process.wait(setup.volume, lambda told: told.get("state") == "parked", "parked")
        assert told["error"] == "A message's checksum does not match its bytes"
        assert told["hint"]
        log = (tmp_path / "state" / "target.log").read_text()
        assert f"topic=ho.{setup.volume}.journal kafka_offset={kafka_offset}" in log
        assert "Traceback" not in log
        other.batch()
        feed.send(other.maker.messages)
        last = str(other.maker.last)
        setup.process.wait(other.maker.volume, lambda told: told.get("consistent_at") == last, "the other goes on")
        assert (tmp_path / "other").read_bytes() == other.image()


@pytest.mark.parametrize("wrong", ["size", "folder", "gone", "checkpoint"])
def test_a_replica_that_is_wrong_parks_with_a_sentence(kafka: Kafka, tmp_path: Path, wrong: str) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        path = setup.replica
        if wrong == "size":
            path.write_bytes(bytes(100))
        elif wrong == "folder":
            path = tmp_path / "no" / "replica"
        else:
            setup.feed.declare(path)
            setup.applied()
            setup.process.stop()
            if wrong == "gone":
                path.rename(tmp_path / "elsewhere")
            else:
                checkpoint = tmp_path / "state" / "target" / f"{setup.volume}.json"
                checkpoint.write_text(checkpoint.read_text().replace('"gaps": 0', '"gaps": 1'))
            setup.process.start()
        setup.feed.declare(path)
        told = setup.process.wait(setup.volume, lambda told: told.get("state") == "parked", "parked")
        expected = {"size": "has 100 bytes", "folder": "can't be opened", "gone": "is gone", "checkpoint": "is damaged"}[wrong]
        assert expected in told["error"]
        assert told["hint"]
        assert path.exists() == (wrong in ("size", "checkpoint"))
        if wrong == "gone":  # put back, it goes on by itself
            (tmp_path / "elsewhere").rename(path)
            setup.made.batch()
            setup.send()
            assert setup.applied()["error"] is None
            assert path.read_bytes() == setup.made.image()


def test_a_second_target_on_a_replica_is_refused(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        second = TargetProcess(setup.config, tmp_path / "second")
        with second:
            told = second.wait(setup.volume, lambda told: told.get("state") == "parked", "parked")
            assert f"held by process {setup.process.pid}" in told["error"]


def test_a_replica_that_shrinks_while_it_is_written_parks(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        os.truncate(setup.replica, VOLUME_BYTES // 2)
        setup.made.batch()
        setup.send()
        told = setup.process.wait(setup.volume, lambda told: told.get("state") == "parked", "parked")
        assert f"has {VOLUME_BYTES // 2} bytes" in told["error"]
        assert setup.replica.stat().st_size == VOLUME_BYTES // 2


def test_a_topic_made_anew_is_a_gap_that_a_resync_closes(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        setup.feed.make_anew()
        anew = script(VOLUME_BYTES, 9, volume=setup.volume)
        maker = anew.maker
        maker.messages.clear()
        maker.entries.clear()
        maker.fence()
        maker.gap("journal_lost")
        position = maker.open_gaps[-1].position
        maker.batch(write(0, bytes(anew.chance.randbytes(VOLUME_BYTES // 2))))
        maker.batch(write(VOLUME_BYTES // 2, bytes(anew.chance.randbytes(VOLUME_BYTES // 2))))
        setup.made = anew
        setup.send()
        told = setup.process.wait(setup.volume, lambda told: told.get("open_gaps") == 1, "the gap is seen")
        assert "made anew" in told["note"]
        anew.close(position)
        setup.send()
        setup.applied()
        assert setup.replica.read_bytes() == anew.image()


def test_a_journal_that_lost_its_beginning_asks_for_a_resync(kafka: Kafka, tmp_path: Path) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        stood_at = setup.made.maker.last
        assert setup.process.stop()[0] == 0
        setup.made.batch()
        setup.made.batch()
        setup.send()
        start = len(setup.made.maker.messages) - 1
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for future in admin.delete_records([TopicPartition(f"ho.{setup.volume}.journal", 0, start)]).values():
            future.result(20)
        setup.process.start()
        told = setup.process.wait(setup.volume, lambda told: told.get("open_gaps") == 1, "its own gap")
        assert "begins at kafka_offset" in told["note"]
        assert told["consistent_at"] is None
        follower = Follower(setup.config.kafka)
        follower.catch_up()
        asked = [one for one in follower.entries.values() if isinstance(one, Request) and one.volume == setup.volume]
        follower.close()
        assert [(one.kind, dict(one.attributes)) for one in asked] == [("resync", {"reason": "retention", "gap": str(stood_at)})]
        setup.made.maker.batch(write(0, setup.made.chance.randbytes(VOLUME_BYTES // 2)))
        setup.made.maker.batch(write(VOLUME_BYTES // 2, setup.made.chance.randbytes(VOLUME_BYTES // 2)))
        setup.made.close(stood_at)
        setup.send()
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()


def test_a_resize_is_followed(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        maker, size = setup.made.maker, VOLUME_BYTES + 65536
        maker.batch(write(5, b"before"), mark(Kind.RESIZE, size_bytes=str(size)), write(size - 5, b"after"))
        setup.made.size_bytes = size
        setup.send()
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()
        assert setup.process.stop()[0] == 0
        setup.process.start()
        setup.made.batch()
        setup.send()
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()


def test_a_delayed_replica_waits(kafka: Kafka, tmp_path: Path) -> None:
    """Capture times of the made journal are years old; only a batch captured now is too young."""
    import time

    with _setup(kafka, tmp_path) as setup:
        setup.feed.declare(setup.replica, delay_s=1.0)
        setup.send()
        setup.applied()
        setup.made.maker.time_ns = time.time_ns()
        setup.made.maker.batch(write(0, b"young"))
        captured_s = setup.made.maker.time_ns / 1e9
        setup.send()
        setup.applied()
        assert time.time() >= captured_s + 1.0
        assert setup.replica.read_bytes() == setup.made.image()


def test_a_late_fence_in_the_log_silences_the_old_writer(kafka: Kafka, tmp_path: Path) -> None:
    with _setup(kafka, tmp_path) as setup:
        setup.send()
        setup.feed.declare(setup.replica)
        setup.applied()
        late = setup.made.fork()
        setup.made.maker.repeat(JournalFence(setup.volume, "w2", 0))
        setup.made.maker.writer = len(setup.made.maker.messages) - 1
        setup.made.maker.repeat(late.make(write(0, b"late" * 100)))
        setup.made.batch()
        setup.send()
        setup.applied()
        assert setup.replica.read_bytes() == setup.made.image()


def test_a_target_that_starts_before_its_topic_waits_for_it(kafka: Kafka, tmp_path: Path) -> None:
    made = script(VOLUME_BYTES, 3, volume=kafka.fresh_volume_name("early"))
    setup = Setup(kafka, tmp_path, made)
    setup.feed.topics.delete([f"ho.{setup.volume}.journal"])
    wait_for(lambda: f"ho.{setup.volume}.journal" not in setup.feed.topics.names(), "the topic is gone")
    setup.feed.declare(setup.replica)
    with setup.process:
        told = setup.process.wait(setup.volume, lambda told: told.get("state") == "retrying", "it waits")
        assert "does not exist" in told["error"]
        setup.feed = Feed(setup.config, setup.volume, VOLUME_BYTES)
        setup.send()
        assert setup.applied()["error"] is None
        assert setup.replica.read_bytes() == made.image()
