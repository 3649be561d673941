"""A broker in memory for one volume's ordering: it lands and acknowledges late, and its clients can be killed or frozen at any call.

Every call of a client is a tick; `on_tick` may raise `KilledError` (the process is gone, what it had under way may land later) or run
another worker to its end (the first one was frozen meanwhile). Kafka's own faults are the test's to call: retention, a topic made anew, a
broker that takes nothing (`stuck`: no leader, too few in sync, a full disk), a producer that fails.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from cx_consumers.broker import Log
from stream.consumer import StoredMessage
from stream.errors import HostoffloadError, ResyncError, RetryError
from stream.producer import Delivered
from stream.topics import journal_topic, writes_topic


class KilledError(BaseException):
    """The process that made this call is gone."""


class FakeBroker:
    """Two logs, and producers whose messages take their time."""

    def __init__(self, rng: random.Random, volume: str) -> None:
        self.rng = rng
        self.volume = volume
        self.logs: dict[str, list[StoredMessage]] = {writes_topic(volume): [], journal_topic(volume): []}
        self.starts = dict.fromkeys(self.logs, 0)
        self.topic_ids = {topic: f"{topic}/1" for topic in self.logs}
        self.stuck = False
        self.failure: HostoffloadError | None = None
        self.on_tick: Callable[[], None] = lambda: None
        self.now_s = 0.0
        self._producers: list[FakeProducer] = []

    def clock(self) -> float:
        self.now_s += 0.3
        return self.now_s

    def expire(self, topic: str, start: int) -> None:
        """Delete what stands below `start`, as retention does."""
        self.starts[topic] = start

    def make_anew(self, topic: str) -> None:
        """Delete the topic and make it again; what producers have under way lands in the new one."""
        self.logs[topic] = []
        self.starts[topic] = 0
        name, _, number = self.topic_ids[topic].rpartition("/")
        self.topic_ids[topic] = f"{name}/{int(number) + 1}"

    def append(self, topic: str, value: bytes, headers: Sequence[tuple[str, bytes]]) -> int:
        log = self.logs[topic]
        log.append(StoredMessage(topic, len(log), None, value, dict(headers), 0))
        return len(log) - 1

    def tick(self) -> None:
        """Let time pass at a client's call: messages under way land, then what the test has planned happens."""
        for producer in self._producers:
            producer.land()
        self.on_tick()

    def reader(self, topic: str) -> FakeReader:
        self.tick()
        return FakeReader(self, topic)

    def producer(self, topic: str, on_delivered: Delivered, queue_bytes_max: int) -> FakeProducer:
        self.tick()
        producer = FakeProducer(self, topic, on_delivered)
        self._producers.append(producer)
        return producer

    def look(self, volume: str) -> Log:
        self.tick()
        topic = writes_topic(volume)
        return Log(self.topic_ids[topic], self.starts[topic], len(self.logs[topic]))


class FakeReader:
    def __init__(self, broker: FakeBroker, topic: str) -> None:
        self._broker = broker
        self._topic = topic

    def bounds(self) -> tuple[int, int]:
        self._broker.tick()
        return self._broker.starts[self._topic], len(self._broker.logs[self._topic])

    def read_range(self, start: int, end: int, *, idle_s_max: float) -> Iterator[StoredMessage]:
        if start < end and not self._broker.starts[self._topic] <= start <= end <= len(self._broker.logs[self._topic]):
            raise ResyncError("the log does not have that")
        for kafka_offset in range(start, end):
            if self._broker.rng.random() < 0.002:
                raise RetryError("the broker does not answer")
            yield self._broker.logs[self._topic][kafka_offset]
            self._broker.tick()

    def close(self) -> None:
        pass


class FakeProducer:
    """Ordered and idempotent: its messages land in order and once; acknowledgements follow later, in order."""

    def __init__(self, broker: FakeBroker, topic: str, on_delivered: Delivered) -> None:
        self._broker = broker
        self._topic = topic
        self._on_delivered = on_delivered
        self._under_way: deque[tuple[bytes, Sequence[tuple[str, bytes]], object]] = deque()
        self._landed: deque[tuple[object, int]] = deque()
        self._closed = False

    def produce(self, value: bytes, headers: Sequence[tuple[str, bytes]], tag: object, *, key: str | None = None) -> None:
        self._broker.tick()
        self._under_way.append((value, headers, tag))

    def land(self) -> None:
        """Append some of what is under way to the log."""
        while self._under_way and not self._broker.stuck and self._broker.rng.random() < 0.25:
            value, headers, tag = self._under_way.popleft()
            self._landed.append((tag, self._broker.append(self._topic, value, headers)))

    def poll(self, timeout_s: float) -> int:
        self._broker.tick()
        if self._broker.failure is not None:
            raise self._broker.failure
        while self._landed and not self._closed and self._broker.rng.random() < 0.6:
            tag, kafka_offset = self._landed.popleft()
            self._on_delivered(tag, None if self._broker.rng.random() < 0.005 else kafka_offset)
        return 0

    def close(self) -> None:
        """Throw away part of what is under way; what was sent already may still land."""
        self._closed = True
        for _ in range(self._broker.rng.randint(0, len(self._under_way))):
            self._under_way.pop()
