"""A broker in memory: topics that are lists, with an identity, a first offset, and a network that fails on the way there and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from tests.simulation.scheduler import Scheduler, Task
from tests.simulation.threads import EPOCH_S

LATENCY_S = 0.0008


@dataclass(slots=True)
class Stored:
    """One message of a log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


@dataclass(slots=True)
class Topic:
    """One partition; `messages[0]` has the offset `start`."""

    name: str
    id: str
    config: dict[str, str]
    start: int = 0
    messages: list[Stored] = field(default_factory=list)
    readers: list[Task] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.messages)

    def at(self, offset: int, count: int) -> list[Stored]:
        first = offset - self.start
        return self.messages[first : first + count]


class Cluster:
    """The broker and the network to it. `appended` is told of every message that became durable."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.topics: dict[str, Topic] = {}
        self.appended: Callable[[Topic, Stored], None] = lambda topic, message: None
        self.up = True
        self.cut: set[str] = set()
        self.slowness = 1.0
        self.producers: list[Any] = []
        self._waiting: list[Task] = []
        self._ids = 0

    # -- logs ----------------------------------------------------------------------------------------------------------

    def create(self, name: str, config: dict[str, str]) -> Topic:
        """Make a topic, or make it anew under another id."""
        self._ids += 1
        topic = Topic(name, f"id-{self._ids}", config)
        old = self.topics.get(name)
        self.topics[name] = topic
        if old is not None:
            self._wake(old.readers)
        return topic

    def append(self, name: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> int | None:
        """Append a message for good; return its offset, None if there is no such topic."""
        topic = self.topics.get(name)
        if topic is None:
            return None
        told = [(one, bytes(two) if not isinstance(two, str) else two.encode()) for one, two in headers]
        message = Stored(topic.end, key, value, told, int((EPOCH_S + self.scheduler.now) * 1000))
        topic.messages.append(message)
        self.appended(topic, message)
        self._wake(topic.readers)
        return message.offset

    def expire(self, name: str, start: int) -> None:
        """Delete everything before an offset, as retention does."""
        topic = self.topics[name]
        start = min(start, topic.end)
        if start > topic.start:
            del topic.messages[: start - topic.start]
            topic.start = start

    def lose_end(self, name: str, count: int) -> list[Stored]:
        """Lose the last messages of a topic, as a broker does that was made leader without having them; return them."""
        topic = self.topics[name]
        lost = topic.messages[len(topic.messages) - count :]
        del topic.messages[len(topic.messages) - count :]
        return lost

    # -- the network ---------------------------------------------------------------------------------------------------

    def reachable(self, machine: str) -> bool:
        return self.up and machine not in self.cut

    def set_up(self, up: bool) -> None:
        """Stop the broker, or start it again: connections are gone either way, what it acknowledged is not."""
        self.up = up
        self._changed()

    def disconnect(self, machine: str) -> None:
        self.cut.add(machine)
        self._changed()

    def connect(self, machine: str) -> None:
        self.cut.discard(machine)
        self._changed()

    def wait_reachable(self, timeout_s: float) -> bool:
        """Block the calling thread until the broker can be reached, or until the time is over; tell which."""
        scheduler = self.scheduler
        task, until_s = scheduler.current, scheduler.now + timeout_s
        while not self.reachable(task.process.machine.name):
            if scheduler.now >= until_s:
                return False
            self._waiting.append(task)
            scheduler.park("broker", until_s - scheduler.now)
            if task in self._waiting:
                self._waiting.remove(task)
        return True

    def query(self, timeout_s: float) -> None:
        """Take the time of one question and its answer. Raises KafkaException when there is none in time."""
        self.scheduler.point()
        if not self.wait_reachable(timeout_s):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self.scheduler.sleep(self.delay_s(), "broker")

    def delay_s(self) -> float:
        return LATENCY_S * self.slowness * self.scheduler.rng.expovariate(1.0)

    def _changed(self) -> None:
        for producer in list(self.producers):
            producer.network_changed()
        self._wake(self._waiting)

    def _wake(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.scheduler.wake(task)
        tasks.clear()
