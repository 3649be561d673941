"""Stand-ins for confluent-kafka's `Producer`, `Consumer` and `AdminClient`, over the simulated cluster.

The producer is idempotent and ordered: a message lands once, in order, and is acknowledged afterwards; an acknowledgement that got lost is
repeated by the retry, with an offset or without one. What was under way when its process died may land seconds later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException

from tests.simulation.cluster import Cluster, Stored
from tests.simulation.scheduler import Task

WIRE_MAX = 5
LATE_S_MAX = 6.0


class Message:
    """What a callback or a poll gives."""

    def __init__(self, topic: str, stored: Stored | None, offset: int | None, error: KafkaError | None = None) -> None:
        self._topic, self._stored, self._offset, self._error = topic, stored, offset, error

    def __len__(self) -> int:
        return 0 if self._stored is None or self._stored.value is None else len(self._stored.value)

    def topic(self) -> str:
        return self._topic

    def offset(self) -> int | None:
        return self._offset

    def key(self) -> bytes | None:
        return self._stored.key

    def value(self) -> bytes | None:
        return self._stored.value

    def headers(self) -> list[tuple[str, bytes]]:
        return self._stored.headers

    def timestamp(self) -> tuple[int, int]:
        return 2, self._stored.timestamp_ms

    def error(self) -> KafkaError | None:
        return self._error


class _Sent:
    __slots__ = ("born_s", "generation", "headers", "key", "landed", "offset", "report", "topic", "value")

    def __init__(self, topic: str, value: Any, key: Any, headers: Any, report: Any, born_s: float) -> None:
        self.topic, self.value, self.key, self.headers, self.report, self.born_s = topic, value, key, headers, report, born_s
        self.offset: int | None = None
        self.landed = False
        self.generation = 0


class Producer:
    """`confluent_kafka.Producer`; a subclass of the run names the cluster."""

    cluster: Cluster

    def __init__(self, config: dict[str, Any]) -> None:
        self._scheduler = self.cluster.scheduler
        self.process = self._scheduler.current.process
        self._machine = self.process.machine.name
        self._error_cb = config.get("error_cb")
        self.ordered = self._error_cb is not None
        self._timeout_s = config.get("delivery.timeout.ms", 300_000) / 1000
        self._bytes_max = config.get("queue.buffering.max.kbytes", 1 << 20) << 10
        self._bytes = 0
        self._queue: deque[_Sent] = deque()
        self._wire: list[_Sent] = []
        self._reports: deque[tuple[_Sent, KafkaError | None, int | None]] = deque()
        self._pollers: list[Task] = []
        self._last_land_s = 0.0
        self._generation = 0
        self._topics: dict[str, Any] = {}
        self.broken: KafkaError | None = None
        self._told_broken = False
        self.cluster.producers.append(self)
        self.process.closers.append(self._die)

    def produce(
        self, topic: str, value: Any = None, key: Any = None, partition: int = 0, headers: Any = None, on_delivery: Any = None
    ) -> None:
        self._scheduler.point()
        if self.broken is not None:
            raise KafkaException(self.broken)
        if self._bytes + len(value or b"") > self._bytes_max and self._bytes:
            raise BufferError("queue full")
        key = key.encode() if isinstance(key, str) else key
        self._topics.setdefault(topic, self.cluster.topics.get(topic))
        self._queue.append(_Sent(topic, value, key, list(headers or ()), on_delivery, self._scheduler.now))
        self._bytes += len(value or b"")
        self._send()

    def poll(self, timeout: float = 0) -> int:
        scheduler = self._scheduler
        scheduler.point()
        self._expire()
        if not self._reports and timeout > 0 and (self.broken is None or self._told_broken):
            task = scheduler.current
            self._pollers.append(task)
            scheduler.park("delivery reports", timeout)
            if task in self._pollers:
                self._pollers.remove(task)
        if self.broken is not None and not self._told_broken:
            self._told_broken = True
            if self._error_cb is not None:
                self._error_cb(self.broken)
        served = 0
        while self._reports:
            sent, error, offset = self._reports.popleft()
            self._bytes -= len(sent.value or b"")
            served += 1
            if sent.report is not None:
                sent.report(error, Message(sent.topic, None, offset, error))
        return served

    def flush(self, timeout: float = 1e9) -> int:
        until_s = self._scheduler.now + timeout
        while len(self) and self._scheduler.now < until_s:
            self.poll(min(0.1, until_s - self._scheduler.now))
        return len(self)

    def purge(self, in_queue: bool = True, in_flight: bool = True, blocking: bool = True) -> None:
        self._abandon(0.2, KafkaError._PURGE_QUEUE)

    def __len__(self) -> int:
        return len(self._queue) + len(self._wire) + len(self._reports)

    def break_for_good(self) -> None:
        """Fail as a producer does that lost its place: everything under way is reported as failed, some of it will land all the same."""
        self.broken = KafkaError(KafkaError._FATAL, "planted: the producer failed for good", True)
        self._abandon(0.5, KafkaError._FATAL)

    def sends_to(self, topic: str) -> bool:
        return topic in self._topics

    def network_changed(self) -> None:
        """Lose the connection, or find it again: what was on the way did land or did not, and is sent again."""
        if self.cluster.reachable(self._machine):
            self._send()
            return
        unlanded = [sent for sent in self._wire if not sent.landed]
        for sent in unlanded[: self._scheduler.rng.randint(0, len(unlanded))]:
            self._append(sent)
        self._generation += 1
        self._queue.extendleft(reversed(self._wire))
        self._wire.clear()

    def _send(self) -> None:
        scheduler = self._scheduler
        while self._queue and len(self._wire) < WIRE_MAX and self.cluster.reachable(self._machine):
            sent = self._queue.popleft()
            self._wire.append(sent)
            self._last_land_s = max(self._last_land_s, scheduler.now + self.cluster.delay_s())
            scheduler.at(self._last_land_s, self._when_current(sent, self._land))

    def _when_current(self, sent: _Sent, then: Callable[[_Sent], None]) -> Callable[[], None]:
        generation = self._generation

        def call() -> None:
            if generation == self._generation and sent in self._wire:
                then(sent)

        return call

    def _land(self, sent: _Sent) -> None:
        if sent.landed and self._scheduler.rng.random() < 0.5:
            sent.offset = None  # a duplicate: the broker may have forgotten where the first one stands
        elif not sent.landed and not self._append(sent):
            self._wire.remove(sent)
            self._report(sent, KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), None)
            return
        self._last_land_s = max(self._last_land_s, self._scheduler.now)
        self._scheduler.at(self._scheduler.now + self.cluster.delay_s(), self._when_current(sent, self._acknowledge))

    def _append(self, sent: _Sent) -> bool:
        sent.offset = self.cluster.append(sent.topic, sent.key, sent.value, sent.headers)
        sent.landed = sent.offset is not None
        return sent.landed

    def _acknowledge(self, sent: _Sent) -> None:
        while self._wire and self._wire[0] is not sent and self._wire[0].landed:  # acknowledgements come in order
            self._acknowledge(self._wire[0])
        self._wire.remove(sent)
        self._report(sent, None, sent.offset)
        self._send()

    def _report(self, sent: _Sent, error: KafkaError | None, offset: int | None) -> None:
        self._reports.append((sent, error, offset))
        for task in self._pollers:
            self._scheduler.wake(task)
        self._pollers.clear()

    def _expire(self) -> None:
        if self._timeout_s <= 0:
            return
        while self._queue and self._queue[0].born_s + self._timeout_s < self._scheduler.now:
            self._report(self._queue.popleft(), KafkaError(KafkaError._MSG_TIMED_OUT), None)

    def _abandon(self, late_s: float, code: int) -> None:
        """Give up what is under way; a first part of it lands later all the same."""
        scheduler = self._scheduler
        unlanded = [sent for sent in self._wire if not sent.landed]
        if self.cluster.reachable(self._machine):
            when_s, lost = scheduler.now, set[str]()
            for sent in unlanded[: scheduler.rng.randint(0, len(unlanded))]:
                when_s = max(when_s, self._last_land_s) + late_s * scheduler.rng.random() ** 3
                scheduler.at(when_s, self._late(sent, lost))
        self._generation += 1
        for sent in [*self._wire, *self._queue]:
            self._report(sent, KafkaError(code), None)
        self._wire.clear()
        self._queue.clear()

    def _late(self, sent: _Sent, lost: set[str]) -> Callable[[], None]:
        """Return what lets it land after its producer is gone; not in a topic made anew since the producer was, nor behind one that was
        `lost` there: a broker refuses what does not follow in an idempotent producer's sequence."""
        topic = self._topics[sent.topic]

        def land() -> None:
            if sent.topic not in lost and self.cluster.up and self.cluster.topics.get(sent.topic) is topic:
                self._append(sent)
            else:
                lost.add(sent.topic)

        return land

    def _die(self) -> None:
        """The process is gone: nobody hears of anything any more."""
        self._abandon(LATE_S_MAX, KafkaError._DESTROY)
        if self in self.cluster.producers:
            self.cluster.producers.remove(self)


class Consumer:
    """`confluent_kafka.Consumer`, for one assigned partition."""

    cluster: Cluster

    def __init__(self, config: dict[str, Any]) -> None:
        self._scheduler = self.cluster.scheduler
        self._topic: Any = None
        self._next = 0

    def get_watermark_offsets(self, partition: Any, timeout: float = 10.0, cached: bool = False) -> tuple[int, int]:
        self.cluster.query(timeout)
        topic = self.cluster.topics.get(partition.topic)
        if topic is None:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        return topic.start, topic.end

    def assign(self, partitions: list[Any]) -> None:
        self._scheduler.point()
        self._topic = self.cluster.topics.get(partitions[0].topic)
        wanted = partitions[0].offset
        self._next = (self._topic.start if self._topic is not None else 0) if wanted == OFFSET_BEGINNING else wanted

    def poll(self, timeout: float = 0) -> Message | None:
        found = self._take(1, timeout)
        return found[0] if found else None

    def consume(self, num_messages: int = 1, timeout: float = 0) -> list[Message]:
        return self._take(num_messages, timeout)

    def close(self) -> None:
        self._scheduler.point()

    def _take(self, count: int, timeout_s: float) -> list[Message]:
        scheduler, cluster, topic = self._scheduler, self.cluster, self._topic
        scheduler.point()
        until_s = scheduler.now + timeout_s
        while True:
            reached = topic is not None and cluster.reachable(scheduler.current.process.machine.name)
            if reached and cluster.topics.get(topic.name) is topic:  # of a topic made anew a reader is told nothing
                if not topic.start <= self._next <= topic.end:
                    return [Message(topic.name, None, None, KafkaError(KafkaError._AUTO_OFFSET_RESET))]
                found = topic.at(self._next, count)
                if found:
                    self._next += len(found)
                    if timeout_s:
                        scheduler.sleep(cluster.delay_s(), "fetch")
                    return [Message(topic.name, one, one.offset) for one in found]
            left_s = until_s - scheduler.now
            if left_s <= 0:
                return []
            if topic is None or not cluster.reachable(scheduler.current.process.machine.name):
                scheduler.sleep(min(left_s, 0.2), "fetch")
                continue
            task = scheduler.current
            topic.readers.append(task)
            scheduler.park("fetch", left_s)
            if task in topic.readers:
                topic.readers.remove(task)


class AdminClient:
    """`confluent_kafka.admin.AdminClient`, as far as `stream.topics` asks."""

    cluster: Cluster

    def __init__(self, config: dict[str, Any]) -> None:
        """Nothing is opened before the first question."""

    def create_topics(self, new: list[Any], request_timeout: float = 15.0) -> dict[str, Any]:
        def create(one: Any) -> None:
            if one.topic in self.cluster.topics:
                raise KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS))
            self.cluster.create(one.topic, dict(one.config or {}))

        return {one.topic: self._answer(request_timeout, lambda one=one: create(one)) for one in new}

    def delete_topics(self, names: list[str], request_timeout: float = 15.0) -> dict[str, Any]:
        return {name: self._answer(request_timeout, lambda name=name: self.cluster.topics.pop(name)) for name in names}

    def describe_configs(self, resources: list[Any], request_timeout: float = 15.0) -> dict[Any, Any]:
        def describe(name: str) -> dict[str, Any]:
            return {key: SimpleNamespace(value=value) for key, value in self._found(name).config.items()}

        return {one: self._answer(request_timeout, lambda one=one: describe(one.name)) for one in resources}

    def describe_topics(self, wanted: Any, request_timeout: float = 15.0) -> dict[str, Any]:
        def describe(name: str) -> SimpleNamespace:
            return SimpleNamespace(topic_id=self._found(name).id, partitions=[SimpleNamespace(leader=SimpleNamespace(id=1), isr=[1])])

        return {name: self._answer(request_timeout, lambda name=name: describe(name)) for name in wanted.topic_names}

    def list_topics(self, timeout: float = 15.0) -> SimpleNamespace:
        self.cluster.query(timeout)
        return SimpleNamespace(topics=dict.fromkeys(self.cluster.topics))

    def _found(self, name: str) -> Any:
        topic = self.cluster.topics.get(name)
        if topic is None:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        return topic

    def _answer(self, timeout_s: float, give: Callable[[], Any]) -> SimpleNamespace:
        """Return a future; the question is asked when its answer is waited for."""

        def result(_: float | None = None) -> Any:
            self.cluster.query(timeout_s)
            return give()

        return SimpleNamespace(result=result)


def clients_of(cluster: Cluster) -> tuple[type, type, type]:
    """Return producer, consumer and admin client of this cluster."""
    return tuple(type(kind.__name__, (kind,), {"cluster": cluster}) for kind in (Producer, Consumer, AdminClient))
