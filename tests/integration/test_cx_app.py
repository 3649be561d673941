"""The CX as processes on a real broker: what agents publish is in the journal once, in order, whatever happens to the workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cx_consumers.app import METADATA_AGE_MS_MAX
from stream.control import Answer, Follower, Request
from stream.record import Kind
from stream.roles import CX_GROUP
from stream.topics import data_topics, journal_topic, writes_topic
from tests.cx_stage import Agent, Stage, read_journal, stage, wait_until
from tests.kafka_fixture import Kafka, OwnBroker

pytestmark = pytest.mark.kafka

MOVE_S_MAX = 15.0


@pytest.fixture
def cx(kafka: Kafka, tmp_path: Path) -> Iterator[Stage]:
    with stage(kafka.bootstrap, tmp_path) as one:
        yield one


def requests(cx: Stage, volume: str) -> list[Request]:
    follower = Follower(cx.config)
    try:
        follower.catch_up()
        return [one for one in follower.entries.values() if isinstance(one, Request) and one.volume == volume]
    finally:
        follower.close()


class Load:
    """Write to some agents at a steady pace, on a thread."""

    def __init__(self, agents: list[Agent], *, pause_s: float = 0.004, records: int = 4) -> None:
        self._agents = agents
        self._pause_s = pause_s
        self._records = records
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for agent in self._agents:
            agent.flush()

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            for agent in self._agents:
                agent.write(self._records)


@pytest.mark.slow
def test_journal_holds_what_was_published(cx: Stage, kafka: Kafka) -> None:
    agents = [cx.add(kafka.fresh_volume_name("all"), codec=codec) for codec in ("snappy", "zstd", "none")]
    for agent in agents:
        agent.write(3)  # before any worker
        agent.flush()
    worker = cx.worker("one")
    for agent in agents:
        cx.journaled(agent)
        for number in range(60):
            agent.write(1 + number % 7, size=100 + number * 50)
        agent.mark(Kind.BOOKMARK, label="here")
        agent.flush()
        cx.journaled(agent)
        told = read_journal(cx.config, agent.volume)
        assert told.records == agent.sent
        assert told.gaps == []
        wait_until(lambda agent=agent: worker.facts(agent.volume)["persisted"] == worker.facts(agent.volume)["position"], "persisted")
    began_s = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began_s < 8.0
    assert "Traceback" not in worker.log()


@pytest.mark.slow
def test_restarted_worker_goes_on_from_the_journal(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("restart"))
    for turn in range(3):
        agent.write()
        agent.flush()
        worker = cx.worker(f"turn{turn}")
        cx.journaled(agent)
        agent.write()
        agent.flush()
        cx.journaled(agent)
        worker.stop()
    told = read_journal(cx.config, agent.volume)
    assert told.records == agent.sent
    assert told.fences >= 3, "each worker has claimed the volume"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_two_workers_share_volumes_and_one_takes_over(cx: Stage, kafka: Kafka, how: str) -> None:
    agents = [cx.add(kafka.fresh_volume_name(f"share{number}")) for number in range(4)]
    names = {agent.volume for agent in agents}
    first, second = cx.worker("first"), cx.worker("second")
    wait_until(lambda: len(first.volumes() & names) == 2 and len(second.volumes() & names) == 2, "two volumes each")
    with Load(agents):
        time.sleep(1.0)
        began_s = time.monotonic()
        _ = first.stop() if how == "stop" else first.kill()
        wait_until(lambda: second.volumes() >= names, "the other worker has all volumes", MOVE_S_MAX)
        moved_s = time.monotonic() - began_s
        time.sleep(0.5)
    for agent in agents:
        cx.journaled(agent)
        told = read_journal(cx.config, agent.volume)
        assert told.records == agent.sent
        assert told.gaps == []
    print(f"{how}: volumes moved in {moved_s:.1f} s")


@pytest.mark.slow
def test_a_topic_made_anew_at_once_is_taken_again(cx: Stage, kafka: Kafka) -> None:
    """Whatever the group saw of it: the topic missing, the new one, or neither."""
    agents = [cx.add(kafka.fresh_volume_name("anew")) for _ in range(2)]
    topics = {writes_topic(agent.volume) for agent in agents}
    worker, random = cx.worker("one"), Random(8)

    def has_both() -> bool:  # and volumes of other tests
        return topics <= (cx.topics.taken(CX_GROUP) or set())

    for _ in range(3):
        wait_until(has_both, "the worker has both", MOVE_S_MAX)
        time.sleep(random.uniform(0.0, METADATA_AGE_MS_MAX / 1000))
        cx.topics.delete([writes_topic(agents[0].volume)])
        wait_until(lambda: not topics <= cx.topics.names(), "it is gone")
        time.sleep(random.uniform(0.0, 0.5))
        cx.make_topics(agents[0].volume)
    wait_until(has_both, "the worker has both", MOVE_S_MAX)
    wait_until(lambda: worker.volumes() >= {agent.volume for agent in agents}, "both run", MOVE_S_MAX)


def test_volume_added_and_removed_while_running(cx: Stage, kafka: Kafka) -> None:
    old = cx.add(kafka.fresh_volume_name("old"))
    worker = cx.worker("one")
    cx.journaled(old)
    with Load([old]):
        new = cx.add(kafka.fresh_volume_name("new"))
        new.write()
        new.flush()
        cx.journaled(new)
        cx.declare(old.volume, state="removed")
        wait_until(lambda: old.volume not in worker.volumes(), "the removed volume is let go")
        new.write()
        new.flush()
        cx.journaled(new)
        cx.declare(old.volume)
        wait_until(lambda: old.volume in worker.volumes(), "the volume is back")
    cx.journaled(old)
    for agent in (old, new):
        assert read_journal(cx.config, agent.volume).records == agent.sent
    assert worker.process.poll() is None


def test_corrupt_message_parks_its_volume_alone(cx: Stage, kafka: Kafka) -> None:
    bad, good = cx.add(kafka.fresh_volume_name("bad")), cx.add(kafka.fresh_volume_name("good"))
    worker = cx.worker("one")
    bad.write()
    bad.flush()
    cx.journaled(bad)
    kept = list(bad.sent)
    bad.raw(b"\xc3\x01 this is no batch of ours, it is longer than the header and checksum")
    bad.write()
    bad.flush()
    wait_until(lambda: bool(worker.facts(bad.volume).get("parked")), "the volume is parked")
    error = str(worker.facts(bad.volume)["error"])
    assert writes_topic(bad.volume) in error
    assert "kafka_offset=2" in error
    with Load([good]):
        time.sleep(0.5)
    cx.journaled(good)
    assert read_journal(cx.config, good.volume).records == good.sent
    assert read_journal(cx.config, bad.volume).records == kept


@pytest.mark.slow
def test_topic_made_anew_is_a_gap_and_asks_for_a_resync(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("anew"))
    agent.write()
    agent.flush()
    worker = cx.worker("one")
    cx.journaled(agent)
    before = list(agent.sent)
    cx.topics.delete([writes_topic(agent.volume)])
    wait_until(lambda: writes_topic(agent.volume) not in cx.topics.names(), "the topic is gone")
    cx.topics.ensure(data_topics(agent.volume, cx.config))
    again = cx.agent(agent.volume, epoch=2, claim=b"claim--2", sequence=agent.sequence)
    again.write()
    again.flush()
    cx.journaled(again)
    told = read_journal(cx.config, agent.volume)
    assert told.records == before + again.sent
    assert [gap.reason for gap in told.gaps] == ["topic_recreated"]
    wait_until(lambda: [one.attributes["reason"] for one in requests(cx, agent.volume)] == ["topic_recreated"], "a resync is asked for")
    asked = requests(cx, agent.volume)[0]
    assert asked.kind == "resync"
    assert worker.facts(agent.volume)["open_gaps"] == 1
    again.mark(Kind.SYNC_BEGIN)
    again.mark(Kind.SYNC_END, closes=asked.attributes["gap"])
    again.flush()
    cx.journaled(again)
    assert worker.facts(agent.volume)["open_gaps"] == 0


@pytest.mark.slow
def test_lost_message_is_asked_for_and_becomes_a_gap_when_the_agent_no_longer_has_it(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("hole"))
    cx.worker("one")
    cx.journaled(agent)
    agent.skip(5)
    agent.write()
    agent.flush()
    wait_until(lambda: any(one.kind == "republish" for one in requests(cx, agent.volume)), "a republish is asked for")
    asked = requests(cx, agent.volume)[0]
    assert asked.attributes == {"position": "00000001-0000000000000002"}
    cx.control.put(Answer(asked.id, False, {}, "agent", time.time_ns()))

    def begun() -> bool:
        agent.mark(Kind.HEARTBEAT)
        agent.flush()
        return bool(read_journal(cx.config, agent.volume).gaps)

    wait_until(begun, "a gap is begun")
    agent.mark(Kind.SYNC_BEGIN)
    agent.write()
    agent.flush()
    cx.journaled(agent)
    told = read_journal(cx.config, agent.volume)
    assert [gap.reason for gap in told.gaps] == ["broker_lost_data"]
    assert told.records[0] == agent.sent[0]
    assert told.records[1:] == agent.sent[-len(told.records) + 1 :]


@pytest.mark.slow
def test_journal_that_lost_everything_is_a_gap(cx: Stage, kafka: Kafka) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    agent = cx.add(kafka.fresh_volume_name("lost"))
    agent.write()
    agent.flush()
    first = cx.worker("first")
    cx.journaled(agent)
    first.stop()
    admin = AdminClient({"bootstrap.servers": cx.config.bootstrap})
    for future in admin.delete_records([TopicPartition(journal_topic(agent.volume), 0, -1)]).values():
        future.result(10)
    agent.write()
    agent.flush()
    cx.worker("second")
    cx.journaled(agent)
    with_gap = [one for one in requests(cx, agent.volume) if one.kind == "resync"]
    assert [one.attributes["reason"] for one in with_gap] == ["journal_lost"]


@pytest.mark.slow
def test_deleted_writes_are_a_gap(cx: Stage, kafka: Kafka) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    agent = cx.add(kafka.fresh_volume_name("retention"))
    first = cx.worker("first")
    cx.journaled(agent)
    first.stop()
    journaled = list(agent.sent)
    agent.write()
    agent.flush()
    admin = AdminClient({"bootstrap.servers": cx.config.bootstrap})
    for future in admin.delete_records([TopicPartition(writes_topic(agent.volume), 0, -1)]).values():
        future.result(10)
    lost = len(agent.sent)
    agent.mark(Kind.SYNC_BEGIN)
    agent.write()
    agent.flush()
    cx.worker("second")
    cx.journaled(agent)
    told = read_journal(cx.config, agent.volume)
    assert [gap.reason for gap in told.gaps] == ["retention"]
    assert told.records == journaled + agent.sent[lost:]


@pytest.mark.slow
def test_frozen_worker_that_wakes_up_is_fenced(cx: Stage, kafka: Kafka) -> None:
    agents = [cx.add(kafka.fresh_volume_name(f"zombie{number}")) for number in range(2)]
    names = {agent.volume for agent in agents}
    first = cx.worker("first")
    for agent in agents:
        cx.journaled(agent)
    with Load(agents):
        second = cx.worker("second")
        wait_until(lambda: len(first.volumes() & names) == 1 and len(second.volumes() & names) == 1, "one volume each")
        first.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: second.volumes() >= names, "the other worker has all volumes", MOVE_S_MAX)
        time.sleep(1.0)
        first.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(first.volumes() & names) == 1 and len(second.volumes() & names) == 1, "one volume each again")
        time.sleep(1.0)
    for agent in agents:
        cx.journaled(agent)
        told = read_journal(cx.config, agent.volume)
        assert told.records == agent.sent
        assert told.gaps == []
    assert first.process.poll() is None, first.log()[-4000:]
    assert second.process.poll() is None


@pytest.mark.slow
def test_broker_that_is_killed_and_comes_back_loses_nothing(own_broker: OwnBroker, tmp_path: Path) -> None:
    with stage(own_broker.bootstrap, tmp_path) as cx:
        cx.lasting = False
        agent = cx.add("outage")
        worker = cx.worker("one")
        cx.journaled(agent)
        with Load([agent], pause_s=0.01):
            time.sleep(1.0)
            own_broker.kill()
            time.sleep(3.0)
            own_broker.start()
            time.sleep(2.0)
            own_broker.freeze()
            time.sleep(4.0)
            own_broker.thaw()
            time.sleep(2.0)
        cx.journaled(agent)
        told = read_journal(cx.config, agent.volume)
        assert told.records == agent.sent
        assert told.gaps == []
        assert worker.process.poll() is None, worker.log()
        began_s = time.monotonic()
        own_broker.kill()
        assert worker.stop() == 0
        assert time.monotonic() - began_s < 10.0
