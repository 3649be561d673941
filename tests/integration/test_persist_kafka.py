"""Persist against a real Kafka: journal topic in, segments out; restarts, retention, a topic made anew, a broker that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from cx_consumers.persist import Persister
from history.reader import SegmentReader, list_segments
from history.store import Store, open_store
from stream.config import Config, CxConfig, KafkaConfig
from stream.position import ZERO
from stream.topics import Topics, data_topics, journal_topic
from tests.journal_maker import JournalMaker, seen, write

pytestmark = pytest.mark.kafka

PATIENCE_S = 60.0


def configured(bootstrap: str, **cx: object) -> Config:
    return Config(kafka=KafkaConfig(bootstrap=bootstrap), cx=replace(CxConfig(), **{"segment_age_s_max": 0.3, **cx}))


@contextmanager
def persisting(volume: str, config: Config, store: Store) -> Iterator[Persister]:
    """Run a persister in a thread, as the CX does; it must stop when told to."""
    persister, stop = Persister(volume, config, store), threading.Event()
    thread = threading.Thread(target=persister.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield persister
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the persister does not stop"


def until(done: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline_s, f"in {PATIENCE_S:.0f} s never: {what}"
        time.sleep(0.02)


class Journal:
    """A volume's journal topic, written by hand."""

    def __init__(self, config: Config, volume: str) -> None:
        self.config = config
        self.maker = JournalMaker(volume=volume)
        self._sent = 0
        Topics(config.kafka).ensure(data_topics(volume, config.kafka))

    def send(self) -> None:
        """Publish what the maker has more than Kafka."""
        producer = Producer({"bootstrap.servers": self.config.kafka.bootstrap, "enable.idempotence": True})
        topic = journal_topic(self.maker.volume)
        for message in self.maker.messages[self._sent :]:
            producer.produce(topic, message.value, partition=0)
        assert producer.flush(PATIENCE_S) == 0
        self._sent = len(self.maker.messages)


def records(store: Store, volume: str) -> list:
    found, covered = [], ZERO
    for name in list_segments(store, volume):
        reader = SegmentReader(store, name)
        reader.check()
        found += [one for batch in reader.batches(covered) for one in seen(batch.unpack()) if one[0] > covered]
        covered = name.last
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_a_journal_becomes_segments_over_restarts(kafka, store: Store) -> None:
    volume, config = kafka.fresh_volume_name(), configured(kafka.bootstrap, segment_bytes_max=1 << 20)
    journal = Journal(config, volume)
    maker = journal.maker
    for turn in range(3):
        for number in range(30):
            maker.batch(write(number << 16, bytes([turn * 30 + number]) * 50_000), write(0, b"x" * 100))
        journal.send()
        with persisting(volume, config, store) as persister:
            until(lambda p=persister: p.facts()["persisted"] == str(maker.last), "everything is stored")
            assert persister.facts()["error"] is None
    assert records(store, volume) == maker.records
    assert len(list_segments(store, volume)) >= 3


def test_it_waits_for_a_journal_that_is_not_there_yet(kafka, store: Store) -> None:
    volume, config = kafka.fresh_volume_name(), configured(kafka.bootstrap)
    with persisting(volume, config, store) as persister:
        until(lambda: persister.facts()["error"] is not None, "it says that the topic is missing")
        journal = Journal(config, volume)
        journal.maker.batch(write(0, b"x"))
        journal.send()
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "it goes on by itself")
        assert persister.facts()["error"] is None


def test_retention_leaves_a_gap_that_is_told(kafka, store: Store) -> None:
    volume, config = kafka.fresh_volume_name(), configured(kafka.bootstrap)
    journal = Journal(config, volume)
    journal.maker.batch(write(0, b"1"))
    journal.send()
    with persisting(volume, config, store) as persister:
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "the first is stored")
    for data in (b"2", b"3"):
        journal.maker.batch(write(0, data))
    journal.send()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([TopicPartition(journal_topic(volume), 0, 3)]).values():
        future.result(PATIENCE_S)
    with persisting(volume, config, store) as persister:
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "it goes on behind the hole")
        assert "not continuous" in persister.facts()["error"]
    assert records(store, volume) == [journal.maker.records[0], journal.maker.records[2]]


def test_a_topic_made_anew_leaves_a_gap(kafka, store: Store) -> None:
    volume, config = kafka.fresh_volume_name(), configured(kafka.bootstrap)
    journal = Journal(config, volume)
    journal.maker.batch(write(0, b"1"))
    journal.send()
    with persisting(volume, config, store) as persister:
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "the first is stored")
        topics = Topics(config.kafka)
        topics.delete([journal_topic(volume)])
        until(lambda: journal_topic(volume) not in topics.names(), "the topic is gone")
        anew = Journal(config, volume)
        anew.maker.epoch, anew.maker.sequence = 2, journal.maker.sequence
        anew.maker.batch(write(0, b"2"))
        anew.maker.batch(write(0, b"3"))
        anew.send()
        until(lambda: persister.facts()["persisted"] == str(anew.maker.last), "it follows the new topic")
        until(lambda: "made anew" in (persister.facts()["error"] or ""), "it says so")
    assert records(store, volume) == journal.maker.records + anew.maker.records


@pytest.mark.slow
def test_a_broker_that_goes_away_and_comes_back(own_broker, store: Store) -> None:
    volume, config = own_broker.fresh_volume_name(), configured(own_broker.bootstrap)
    journal = Journal(config, volume)
    journal.maker.batch(write(0, b"1"))
    journal.send()
    with persisting(volume, config, store) as persister:
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "the first is stored")
        own_broker.kill()
        own_broker.start()
        journal.maker.batch(write(0, b"2"))
        journal.send()
        until(lambda: persister.facts()["persisted"] == str(journal.maker.last), "it goes on by itself")
        assert persister.facts()["error"] is None
    assert records(store, volume) == journal.maker.records
