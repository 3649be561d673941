"""A CX worker on a real broker that stops taking, forgets, and loses topics: told, and never a hole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from stream.control import Follower, Request
from stream.record import Kind
from stream.topics import data_topics, journal_topic, writes_topic
from tests.cx_stage import Agent, Stage, read_journal, stage, wait_until
from tests.kafka_fixture import Kafka

pytestmark = pytest.mark.kafka


@pytest.fixture
def cx(kafka: Kafka, tmp_path: Path) -> Iterator[Stage]:
    with stage(kafka.bootstrap, tmp_path) as one:
        yield one


def set_topic(cx: Stage, topic: str, **settings: str) -> None:
    """Alter settings of a topic, as an operator does."""
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    admin = AdminClient({"bootstrap.servers": cx.config.bootstrap})
    for future in admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)]).values():
        future.result(20)


def lose(cx: Stage, topic: str) -> None:
    """Delete every record of a topic, as retention does."""
    admin = AdminClient({"bootstrap.servers": cx.config.bootstrap})
    for future in admin.delete_records([TopicPartition(topic, 0, -1)]).values():
        future.result(20)


def resyncs(cx: Stage, volume: str) -> list[Request]:
    follower = Follower(cx.config)
    try:
        follower.catch_up()
        return [one for one in follower.entries.values() if isinstance(one, Request) and (one.volume, one.kind) == (volume, "resync")]
    finally:
        follower.close()


def close_gaps(cx: Stage, agent: Agent) -> None:
    """Do what an agent does about resync requests, less the copying."""
    wait_until(lambda: bool(resyncs(cx, agent.volume)), "a resync is asked for")
    agent.mark(Kind.SYNC_BEGIN)
    agent.write()
    agent.mark(Kind.SYNC_END, closes=",".join(one.attributes["gap"] for one in resyncs(cx, agent.volume)))
    agent.flush()
    cx.journaled(agent)


@pytest.mark.slow
def test_a_topic_set_wrong_parks_the_volume_until_it_is_right(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("wrong"))
    set_topic(cx, journal_topic(agent.volume), retention_ms="1000")
    worker = cx.worker("one")
    wait_until(lambda: bool(worker.facts(agent.volume).get("parked")), "it is parked")
    assert "retention.ms is 1000" in worker.facts(agent.volume)["error"]
    assert worker.facts(agent.volume)["error_hint"]
    set_topic(cx, journal_topic(agent.volume), retention_ms=str(cx.config.retention_ms))
    cx.journaled(agent)
    assert not worker.facts(agent.volume)["parked"]
    assert read_journal(cx.config, agent.volume).records == agent.sent


@pytest.mark.slow
def test_deleted_writes_are_a_gap_that_a_resync_closes(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("retention"))
    first = cx.worker("first")
    cx.journaled(agent)
    first.stop()
    journaled = list(agent.sent)
    agent.write()
    agent.flush()
    lose(cx, writes_topic(agent.volume))
    lost = len(agent.sent)
    agent.mark(Kind.SYNC_BEGIN)
    agent.write()
    agent.flush()
    second = cx.worker("second")
    cx.journaled(agent)
    assert second.facts(agent.volume)["open_gaps"] == 1
    close_gaps(cx, agent)
    assert second.facts(agent.volume)["open_gaps"] == 0
    told = read_journal(cx.config, agent.volume)
    assert [gap.reason for gap in told.gaps] == ["retention"]
    assert told.records == journaled + agent.sent[lost:]


@pytest.mark.slow
def test_a_journal_made_anew_under_load_is_written_again(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("anew"))
    worker = cx.worker("one")
    cx.journaled(agent)
    topic = journal_topic(agent.volume)
    for turn in range(200):
        agent.write(8)
        if turn == 60:
            cx.topics.delete([topic])
        if turn == 100:
            wait_until(lambda: topic not in cx.topics.names(), "the topic is gone")
            cx.topics.ensure(data_topics(agent.volume, cx.config))
    agent.flush()
    cx.journaled(agent)
    wait_until(lambda: read_journal(cx.config, agent.volume).records == agent.sent, "the journal holds all that the writes hold")
    assert read_journal(cx.config, agent.volume).gaps == []
    assert worker.process.poll() is None


@pytest.mark.slow
def test_topics_that_somebody_deleted_are_made_again(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("deleted"))
    worker = cx.worker("one")
    cx.journaled(agent)
    names = [writes_topic(agent.volume), journal_topic(agent.volume)]
    cx.topics.delete(names)
    wait_until(lambda: not set(names) & cx.topics.names(), "the topics are gone")
    wait_until(lambda: set(names) <= cx.topics.names(), "they are there again")
    cx.topics.check(data_topics(agent.volume, cx.config))
    again = cx.agent(agent.volume, epoch=2, claim=b"claim--2", sequence=agent.sequence)
    again.write()
    again.flush()
    cx.journaled(again)
    assert read_journal(cx.config, agent.volume).records[-len(again.sent) :] == again.sent
    assert worker.process.poll() is None


@pytest.mark.slow
def test_topics_of_a_removed_volume_stay_deleted(cx: Stage, kafka: Kafka) -> None:
    kept, gone = cx.add(kafka.fresh_volume_name("kept")), cx.add(kafka.fresh_volume_name("gone"))
    cx.worker("one")
    cx.journaled(gone)
    cx.declare(gone.volume, state="removed")
    cx.topics.delete([writes_topic(gone.volume), journal_topic(gone.volume)])
    cx.topics.delete([journal_topic(kept.volume)])
    wait_until(lambda: journal_topic(kept.volume) not in cx.topics.names(), "the topic is gone")
    wait_until(lambda: journal_topic(kept.volume) in cx.topics.names(), "the other volume's is made again")
    assert not {writes_topic(gone.volume), journal_topic(gone.volume)} & cx.topics.names()
