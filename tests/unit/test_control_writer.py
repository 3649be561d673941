"""The control writer over a producer that fails: nobody else's exception comes out, and one that failed for good is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream import control
from stream.config import KafkaConfig
from stream.control import ControlWriter, ProcessReport, Request
from stream.errors import RetryError
from stream.topics import CONTROL_TOPIC
from tests.mock_cluster import MockCluster

REQUEST = Request("id", "resync", "v", {}, "test", 1)
REPORT = ProcessReport("cx", "one", "host", 1, 1)


class Line:
    """Stand-ins for Kafka's producers, in the order in which they were made."""

    def __init__(self) -> None:
        self.made: list[FakeProducer] = []

    def make(self, settings: dict[str, Any]) -> FakeProducer:
        assert settings["enable.idempotence"]
        self.made.append(FakeProducer())
        return self.made[-1]


class FakeProducer:
    """Takes messages and delivers them at once, until it `fails`: then every call raises that."""

    def __init__(self) -> None:
        self.fails: BaseException | None = None
        self.times_out = False
        self._late: list[Callable] = []
        self.sent: list[tuple[str, str]] = []
        self.purged = False

    def produce(self, topic: str, value: bytes | None, key: str, *, partition: int, on_delivery: Callable | None = None) -> None:
        if isinstance(self.fails, BufferError):
            raise self.fails
        if self.times_out:
            assert on_delivery is not None, "nobody would hear of it"
            self._late.append(on_delivery)
            return
        self.sent.append((topic, key))
        if on_delivery is not None and self.fails is None:
            on_delivery(None, None)

    def poll(self, timeout_s: float) -> int:
        if isinstance(self.fails, KafkaException):
            raise self.fails
        while self._late:
            self._late.pop()(KafkaError(KafkaError._MSG_TIMED_OUT), None)
        return 0

    def __len__(self) -> int:
        return int(self.fails is not None)

    def purge(self, **_: bool) -> None:
        self.purged = True
        if isinstance(self.fails, KafkaException):
            raise self.fails


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr(control, "Producer", line.make)
    return line


def fatal() -> KafkaException:
    return KafkaException(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "desynchronized", fatal=True))


def test_a_report_over_a_producer_that_failed_for_good_raises_nothing_and_the_next_one_is_sent(line: Line) -> None:
    writer = ControlWriter(KafkaConfig(bootstrap="nobody:1"))
    line.made[0].fails = fatal()
    writer.report(REPORT)
    writer.report(REPORT)
    writer.forget("request/id")
    assert line.made[0].purged
    assert line.made[1].sent == [("ho.status", "cx/one"), ("ho.control", "request/id")]


def test_a_put_over_a_producer_that_failed_for_good_asks_to_try_again_and_then_works(line: Line) -> None:
    writer = ControlWriter(KafkaConfig(bootstrap="nobody:1"))
    line.made[0].fails = fatal()
    with pytest.raises(RetryError):
        writer.put(REQUEST)
    writer.put(REQUEST)
    assert line.made[1].sent == [("ho.control", REQUEST.key)] and len(line.made) == 2


def test_a_producer_that_is_only_full_or_slow_is_kept(line: Line) -> None:
    writer = ControlWriter(KafkaConfig(bootstrap="nobody:1"))
    line.made[0].fails = BufferError("full")
    writer.report(REPORT)
    with pytest.raises(RetryError):
        writer.put(REQUEST)
    line.made[0].fails = KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN, "away"))
    writer.report(REPORT)
    with pytest.raises(RetryError):
        writer.put(REQUEST)
    assert len(line.made) == 1
    line.made[0].fails = fatal()
    writer.close()


def test_a_producer_that_does_not_deliver_in_time_is_replaced(line: Line) -> None:
    """It may have lost all brokers for ever: the status would be that of an hour ago, and nobody would know."""
    writer = ControlWriter(KafkaConfig(bootstrap="nobody:1"))
    line.made[0].times_out = True
    writer.report(REPORT)
    writer.report(REPORT)
    assert line.made[0].purged
    assert line.made[1].sent == [("ho.status", "cx/one")]
    line.made[1].times_out = True
    with pytest.raises(RetryError):
        writer.put(REQUEST)
    writer.put(REQUEST)
    assert line.made[2].sent == [("ho.control", REQUEST.key)] and len(line.made) == 3


def test_a_real_producer_that_fails_for_good_is_an_error_of_ours_and_replaced() -> None:
    """librdkafka reports what was lost while its own error is pending, which comes out as an error of the interpreter."""
    with MockCluster() as cluster:
        cluster.create(CONTROL_TOPIC)
        writer = ControlWriter(KafkaConfig(bootstrap=cluster.bootstrap))
        for _ in range(3):
            writer.put(REQUEST)
            cluster.refuse(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER)
            with pytest.raises(RetryError):
                writer.put(REQUEST)
        writer.put(REQUEST)
        writer.close()
