"""A reader to whom nothing comes although the log has more says so; one with nothing to read, or without a broker, waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream import consumer as consumer_module
from stream.config import KafkaConfig
from stream.consumer import STALL_S, UNANSWERED_MAX, PartitionReader
from stream.errors import RetryError


class SilentConsumer:
    """A client that never gives a message; `bounds` is what the broker says, None that it does not answer."""

    bounds: tuple[int, int] | None = (0, 0)

    def __init__(self, _: object) -> None:
        """Nobody is connected."""

    def assign(self, _: object) -> None:
        """Nothing comes of it."""

    def poll(self, _: float) -> None:
        return None

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        if self.bounds is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return self.bounds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    clock = [100.0]
    monkeypatch.setattr(consumer_module, "Consumer", SilentConsumer)
    monkeypatch.setattr(consumer_module.time, "monotonic", lambda: clock[0])
    yield clock


def silence(reader: PartitionReader, now: list[float], times: int) -> None:
    for _ in range(times):
        now[0] += STALL_S
        assert reader.poll(0) == []


def test_more_in_the_log_and_nothing_arrives_is_an_error(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SilentConsumer, "bounds", (3, 8))
    reader = PartitionReader(KafkaConfig(bootstrap="nowhere:1"), "t")
    reader.seek(7)
    silence(reader, now, 1)
    now[0] += STALL_S
    with pytest.raises(RetryError, match="nothing arrives"):
        reader.poll(0)


def test_nothing_more_in_the_log_is_none(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SilentConsumer, "bounds", (8, 8))
    reader = PartitionReader(KafkaConfig(bootstrap="nowhere:1"), "t")
    for start in (8, None):
        reader.seek(start)
        silence(reader, now, 5)


def test_a_client_that_gets_no_answer_is_given_up_in_the_end(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SilentConsumer, "bounds", None)
    reader = PartitionReader(KafkaConfig(bootstrap="nowhere:1"), "t")
    reader.seek(0)
    silence(reader, now, UNANSWERED_MAX - 1)
    now[0] += STALL_S
    with pytest.raises(RetryError):
        reader.poll(0)
