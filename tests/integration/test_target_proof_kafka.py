"""Verification and digests with a real target on a real Kafka: a byte flipped on disk is found, named and repaired, and only then gone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash

from cx_consumers.target_digests import DIGEST_CHUNK_BYTES
from stream.control import Answer, ControlWriter, Follower, Request
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.kafka_fixture import Kafka
from tests.target_feed import Feed, TargetProcess, config_of, wait_for
from tests.target_script import Script, script

pytestmark = pytest.mark.kafka

VOLUME_BYTES = 4 << 20
CHUNK = 1 << 20


@dataclass
class Rig:
    """One volume, its journal and its target; `control` is what others see of `ho.control`."""

    made: Script
    feed: Feed
    replica: Path
    process: TargetProcess
    control: Follower

    @property
    def volume(self) -> str:
        return self.made.maker.volume

    def send(self) -> None:
        self.feed.send(self.made.maker.messages)

    def round(self) -> dict:
        """Publish a round of marks among writes; return the facts when the target is through with it."""
        self.made.verify(chunk_bytes=CHUNK)
        self.send()
        name = f"b{self.made.rounds}"
        return self.process.wait(self.volume, lambda told: told.get("verify_done") == name, f"round {name} is done")

    def applied(self) -> dict:
        last = str(self.made.maker.last)
        return self.process.wait(self.volume, lambda told: told.get("position") == last, f"applied {last}")

    def entries(self, kind: type) -> list:
        self.control.catch_up()
        return [one for one in self.control.entries.values() if isinstance(one, kind)]

    def answer(self, request: Request) -> Answer:
        def found() -> list[Answer]:
            return [one for one in self.entries(Answer) if one.id == request.id]

        wait_for(lambda: bool(found()), "the answer is there")
        return found()[0]


@pytest.fixture
def rig(kafka: Kafka, tmp_path: Path) -> Iterator[Rig]:
    made = script(VOLUME_BYTES, 3, volume=kafka.fresh_volume_name("proof"))
    config = config_of(kafka.bootstrap, name=kafka.fresh_volume_name("t"))
    feed = Feed(config, made.maker.volume, VOLUME_BYTES)
    control = Follower(config.kafka)
    with TargetProcess(config, tmp_path / "state") as process:
        feed.declare(tmp_path / "replica")
        made.maker.batch(*(write(at, made.chance.randbytes(128 << 10)) for at in range(0, VOLUME_BYTES, 512 << 10)))
        feed.send(made.maker.messages)
        found = Rig(made, feed, tmp_path / "replica", process, control)
        found.applied()
        yield found
    control.close()


def test_a_byte_flipped_on_disk_is_found_named_and_repaired(rig: Rig) -> None:
    told = rig.round()
    assert (told["verify_mismatches"], told["proved_position"]) == (0, str(rig.made.proved))
    proved = told["proved_position"]
    at = 2 * CHUNK + 300_000
    with open(rig.replica, "r+b") as disk:
        disk.seek(at)
        byte = disk.read(1)[0]
        disk.seek(at)
        disk.write(bytes([byte ^ 0x10]))
    told = rig.round()
    assert (told["verify_mismatches"], told["round_mismatches"], told["repairs_open"] > 0) == (1, 1, True)
    assert told["proved_position"] == proved, "the round that found it proves nothing"
    assert told["verify_ended"][-1]["offsets"] == [2 * CHUNK]
    told = rig.process.wait(rig.volume, lambda told: told["position"] == str(rig.made.maker.last), "all applied")
    assert told["consistent_at"] is None
    log = (rig.process.state_dir / "target.log").read_text()
    (line,) = [one for one in log.splitlines() if " verify_mismatch " in one]
    assert f" error target verify_mismatch volume={rig.volume} offset_bytes={2 * CHUNK} length_bytes={CHUNK} position=" in line
    (request,) = [one for one in rig.entries(Request) if one.volume == rig.volume]
    assert (request.kind, dict(request.attributes)["reason"]) == ("resync", "verify_mismatch")
    assert request.attributes["extents"] == f"{2 * CHUNK}-{3 * CHUNK}"
    code, _ = rig.process.stop()
    assert code == 0
    rig.process.start()
    told = rig.process.wait(rig.volume, lambda told: told.get("state") == "applying", "it goes on")
    assert (told["verify_mismatches"], told["repairs_open"] > 0, told["proved_position"]) == (1, True, proved)
    held = bytes(rig.made.image()[2 * CHUNK : 3 * CHUNK])
    for start in range(0, CHUNK, 256 << 10):
        rig.made.maker.batch(write(2 * CHUNK + start, held[start : start + (256 << 10)]))
    rig.send()
    last = str(rig.made.maker.last)
    told = rig.process.wait(rig.volume, lambda told: told.get("consistent_at") == last, "consistent again")
    assert told["repairs_open"] == 0
    assert rig.replica.read_bytes() == rig.made.image()
    told = rig.round()
    assert (told["round_mismatches"], told["verify_mismatches"], told["proved_position"]) == (0, 1, str(rig.made.proved))


def test_digests_are_answered_while_the_target_holds_before_a_gap(rig: Rig) -> None:
    made = rig.made
    writer = ControlWriter(rig.feed.config.kafka)
    made.maker.epoch += 1
    gap = made.position(0)
    held_at = made.maker.last
    told = {"target": rig.feed.config.target.name, "gap": str(gap), "extents": f"{CHUNK}-{2 * CHUNK},{3 * CHUNK}-{VOLUME_BYTES}"}
    request = Request(f"digest-{rig.volume}-{gap}-{told['target']}-0", "digest", rig.volume, told)
    wrong = Request(f"digest-{rig.volume}-{gap}-{told['target']}-1", "digest", rig.volume, told | {"extents": "1-2"})
    for one in (request, wrong):
        writer.put(one)
    refused = rig.answer(wrong)
    assert not refused.done
    assert refused.attributes["error"]
    assert request.id not in {one.id for one in rig.entries(Answer)}, "the gap is not there yet"
    made.open(gap, "unclean_stop")
    made.maker.batch(mark(Kind.EPOCH_START, clean="false", first="false", size_bytes=str(VOLUME_BYTES)), write(CHUNK, b"in the gap"))
    rig.send()
    answer = rig.answer(request)
    assert (answer.done, Position.parse(answer.attributes["position"])) == (True, held_at)
    held = bytes(made.image(held_at))
    starts = [*range(CHUNK, 2 * CHUNK, DIGEST_CHUNK_BYTES), *range(3 * CHUNK, VOLUME_BYTES, DIGEST_CHUNK_BYTES)]
    expected = b"".join(xxhash.xxh3_128_digest(held[at : at + DIGEST_CHUNK_BYTES]) for at in starts)
    assert base64.b64decode(answer.attributes["digests"]) == expected
    for one in (request, wrong):
        writer.forget(one.key)
        writer.forget(f"answer/{one.id}")
    writer.close()
    made.close(gap)
    rig.send()
    last = str(made.maker.last)
    rig.process.wait(rig.volume, lambda told: told.get("consistent_at") == last, "the gap is closed")
    assert rig.replica.read_bytes() == made.image()
