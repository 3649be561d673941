"""What ordering needs of a broker: readers, ordered producers, and a look at a volume's writes topic.

`KafkaBroker` is the real one; tests bring one in memory that loses, delays and mixes what a real one may.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream.config import KafkaConfig
from stream.consumer import PartitionReader, StoredMessage
from stream.errors import RetryError
from stream.producer import Delivered, OrderedProducer
from stream.topics import Topics, data_topics, journal_topic, writes_topic


@dataclass(frozen=True, slots=True)
class Log:
    """A writes topic as it is: its id, its first kafka_offset and the next one it will give."""

    topic_id: str
    start: int
    end: int


class Reader(Protocol):
    """Read one topic (`stream.consumer.PartitionReader`)."""

    def bounds(self) -> tuple[int, int]: ...
    def read_range(self, start: int, end: int, *, idle_s_max: float) -> Iterable[StoredMessage]: ...
    def close(self) -> None: ...


class Producer(Protocol):
    """Append to one topic in order (`stream.producer.OrderedProducer`)."""

    def produce(self, value: bytes, headers: Sequence[tuple[str, bytes]], tag: object, *, key: str | None = None) -> None: ...
    def poll(self, timeout_s: float) -> int: ...
    def close(self) -> None: ...


class Broker(Protocol):
    """Make readers and producers. Every method may raise RetryError."""

    def reader(self, topic: str) -> Reader: ...

    def producer(self, topic: str, on_delivered: Delivered, queue_bytes_max: int) -> Producer: ...

    def look(self, volume: str) -> Log:
        """Return what the volume's writes topic is now, both topics checked. Raises ConfigError when one contradicts the config."""
        ...


class KafkaBroker:
    """The broker that the config names. Thread-safe; what it makes is not."""

    def __init__(self, config: KafkaConfig, topics: Topics) -> None:
        self._config = config
        self._topics = topics

    def reader(self, topic: str) -> PartitionReader:
        return PartitionReader(self._config, topic)

    def producer(self, topic: str, on_delivered: Delivered, queue_bytes_max: int) -> OrderedProducer:
        return OrderedProducer(self._config, topic, on_delivered, queue_bytes_max=queue_bytes_max)

    def look(self, volume: str) -> Log:
        topic = writes_topic(volume)
        try:
            topic_id = self._topics.topic_id(topic)
            if topic_id is None or self._topics.topic_id(journal_topic(volume)) is None:
                raise RetryError(f"The topics of volume {volume} are not there", volume=volume, hint="`hostoffload volume add` makes them.")
            self._topics.check(data_topics(volume, self._config))
        except TimeoutError as error:
            raise RetryError(f"The topics of volume {volume} can't be described in time", volume=volume) from error
        reader = self.reader(topic)
        try:
            return Log(topic_id, *reader.bounds())
        finally:
            reader.close()
