"""The ordered producer against brokers that refuse: what may pass is tried again by itself, all else says what it is, and no hole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import KafkaError

from stream.config import KafkaConfig
from stream.errors import ConfigError, HostoffloadError, RetryError, TooLargeError
from stream.producer import OrderedProducer
from stream.topics import Topics
from tests.mock_cluster import MockCluster

TOPIC = "ho.v.writes"


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with MockCluster(2) as cluster:
        cluster.create(TOPIC)
        yield cluster


class Sent:
    """A producer, and what it was told."""

    def __init__(self, cluster: MockCluster, **options: int) -> None:
        self.told: list[tuple[object, int | None]] = []
        config = KafkaConfig(bootstrap=cluster.bootstrap)
        self.producer = OrderedProducer(config, TOPIC, lambda *one: self.told.append(one), queue_bytes_max=8 << 20, **options)

    def send(self, *tags: int, size: int = 1000) -> None:
        for tag in tags:
            self.producer.produce(b"x" * size, [("first", b"%d" % tag)], tag)

    def until(self, true: Callable[[], bool], timeout_s: float = 20.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < end_s, f"it never happened: {self.told}"
            self.producer.poll(0.05)


@pytest.fixture
def sent(cluster: MockCluster) -> Iterator[Sent]:
    sent = Sent(cluster)
    sent.send(0)
    sent.until(lambda: len(sent.told) == 1)
    yield sent
    sent.producer.close()


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    ],
)
def test_what_may_pass_is_tried_again_in_order(cluster: MockCluster, sent: Sent, code: int) -> None:
    cluster.refuse(code, code, code)
    sent.send(1, 2, 3, 4)
    sent.until(lambda: len(sent.told) == 5)
    assert [tag for tag, _ in sent.told] == [0, 1, 2, 3, 4]
    offsets = [offset for _, offset in sent.told if offset is not None]
    assert offsets == sorted(set(offsets))


def test_a_leader_that_moves_is_followed(cluster: MockCluster, sent: Sent) -> None:
    for broker in (2, 1, 2):
        cluster.lead(TOPIC, broker)
        count = len(sent.told)
        sent.send(count)
        sent.until(lambda count=count: len(sent.told) == count + 1)
    assert sent.told == [(0, 0), (1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, TooLargeError, "too large"),
        (KafkaError.RECORD_LIST_TOO_LARGE, TooLargeError, "batch larger"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ConfigError, "uthorization"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, ConfigError, "uthorization"),
        (KafkaError.POLICY_VIOLATION, ConfigError, "olicy"),
        (KafkaError.INVALID_REQUIRED_ACKS, RetryError, "acks"),
    ],
)
def test_what_does_not_pass_poisons_it_and_says_what_it_was(
    cluster: MockCluster, sent: Sent, code: int, kind: type[HostoffloadError], told: str
) -> None:
    """librdkafka raises an error of its own first, which says only that there is one."""
    cluster.refuse(code)
    sent.send(1)
    with pytest.raises(kind, match=told):
        sent.until(lambda: len(sent.told) == 2)
    assert sent.producer.refused == 1
    with pytest.raises(kind, match=told):
        sent.producer.poll(0)
    with pytest.raises(kind, match=told):
        sent.send(2)
    with pytest.raises(kind, match=told):
        sent.producer.flush(1)
    assert sent.told == [(0, 0)]


def test_what_was_lost_with_it_is_never_reported_as_there(cluster: MockCluster, sent: Sent) -> None:
    cluster.refuse(KafkaError.MSG_SIZE_TOO_LARGE)
    try:
        for tag in range(1, 200):
            sent.send(tag)
        with pytest.raises(TooLargeError):
            sent.until(lambda: len(sent.told) == 200)
    except HostoffloadError:  # the queue noticed first
        with pytest.raises(TooLargeError):
            sent.until(lambda: len(sent.told) == 200)
    assert sent.told == [(0, 0)]


def test_kafkas_own_fencing_replaces_the_producer_and_is_not_ours(cluster: MockCluster, sent: Sent) -> None:
    """Who owns a volume is decided in the log; a producer whose number Kafka forgot must not take an agent out of service for ever."""
    cluster.refuse(KafkaError.INVALID_PRODUCER_EPOCH)
    sent.send(1)
    with pytest.raises(RetryError):
        sent.until(lambda: len(sent.told) == 2)


def test_a_topic_is_not_made_by_the_way(cluster: MockCluster) -> None:
    config = KafkaConfig(bootstrap=cluster.bootstrap)
    producer = OrderedProducer(config, "ho.unheard-of.writes", lambda *_: None, queue_bytes_max=8 << 20)
    producer.produce(b"x", [], 1)
    topics = Topics(config)
    for _ in range(10):
        producer.poll(0.05)
        assert topics.names() == {TOPIC}
    producer.close()


def test_a_failed_one_can_be_closed(cluster: MockCluster, sent: Sent) -> None:
    """Its failure is not heard of before: it comes up while it is closed."""
    cluster.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    sent.send(1)
    sent.producer.close()
    with pytest.raises(RetryError, match="closed"):
        sent.send(2)


def test_a_flush_that_meets_the_failure_says_what_it_was(cluster: MockCluster, sent: Sent) -> None:
    cluster.refuse(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    sent.send(1)
    with pytest.raises(ConfigError, match="uthorization"):
        sent.producer.flush(20)


def test_a_flush_waits_for_all(sent: Sent) -> None:
    sent.send(*range(1, 20))
    assert sent.producer.flush(20)
    assert len(sent.told) == 20
    assert sent.producer.flush(0)
