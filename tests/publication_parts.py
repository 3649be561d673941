"""What a publication is tried with: a broker, producer and reader in memory, and a bench that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent import claim as claim_module
from agent import publication as publication_module
from agent import refusals as refusals_module
from agent import ring as layout
from agent.claim import headers
from agent.in_flight import InFlight
from agent.publication import Publication
from stream.codec import encode_writes
from stream.config import KafkaConfig
from stream.consumer import StoredMessage
from stream.control import EpochClaim
from stream.errors import HostoffloadError, ResyncError, TooLargeError
from stream.record import Batch, Kind
from stream.topics import TopicCondition
from tests.agent_parts import MIB, Parts

INCARNATION = (7).to_bytes(8, "little")
OTHER = b"otheragt"


@dataclass
class FakeKafka:
    """One topic: its messages, and the producers that were made for it.

    It takes messages of `message_bytes_max`, and none while `refusal` is set. `on_poll` is called in every poll of a producer.
    """

    messages: list[StoredMessage] = field(default_factory=list)
    start: int = 0
    topic_id: str | None = "id-1"
    producers: list[FakeProducer] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    refusal: HostoffloadError | None = None
    message_bytes_max: int = 4 << 20
    condition: TopicCondition | None = None
    asked: int = 0
    on_poll: Callable[[FakeProducer], None] = lambda _: None

    @property
    def end(self) -> int:
        return self.start + len(self.messages)

    def append(self, value: bytes, told: list[tuple[str, bytes]]) -> int:
        offset = self.end
        self.messages.append(StoredMessage("ho.v.writes", offset, b"v", value, dict(told), 0))
        return offset

    def sequences(self) -> list[tuple[int, int]]:
        return [(int(one.headers["first"]), int(one.headers["last"])) for one in self.messages]


class FakeProducer:
    """Takes messages; `deliver` lets the oldest become durable and reports it, or is refused and poisons the producer."""

    def __init__(self, kafka: FakeKafka, on_delivered: Callable, messages_joined_max: int = 0) -> None:
        self.messages_joined_max = messages_joined_max
        self._kafka = kafka
        self._on_delivered = on_delivered
        self.queue: list[tuple[bytes, list[tuple[str, bytes]], object]] = []
        self.failure: Exception | None = None
        self.refused: object = None
        self.full = False
        self.closed = False
        kafka.producers.append(self)

    def produce(self, value: bytes, told: list[tuple[str, bytes]], tag: object, *, key: str | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        if self.full:
            raise BufferError
        self.queue.append((value, told, tag))

    def deliver(self, *, told_offset: bool = True, report: bool = True) -> int:
        value, told, tag = self.queue.pop(0)
        failure = self._kafka.refusal
        if len(value) > self._kafka.message_bytes_max:
            failure = TooLargeError("planted: too large", bytes=len(value))
        if failure is not None:
            self.failure, self.refused = failure, tag
            raise failure
        offset = self._kafka.append(value, told)
        if report:
            self._on_delivered(tag, offset if told_offset else None)
        return offset

    def deliver_all(self) -> None:
        while self.queue:
            self.deliver()

    def poll(self, timeout_s: float) -> int:
        self._kafka.on_poll(self)
        if self.failure is not None:
            raise self.failure
        return 0

    def flush(self, timeout_s: float) -> bool:
        self.deliver_all()
        return True

    def close(self) -> None:
        self.closed = True
        self.queue.clear()


class FakeTopics:
    """An admin client."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    def topic_id(self, _: str) -> str | None:
        return self._kafka.topic_id

    def condition(self, _: str) -> TopicCondition | None:
        kafka = self._kafka
        kafka.asked += 1
        return kafka.condition or TopicCondition(kafka.topic_id, True, 1, 1, kafka.message_bytes_max)


def install(kafka: FakeKafka, patch: pytest.MonkeyPatch) -> None:
    """Let the agent's publishing side meet this Kafka."""
    for module in (publication_module, claim_module):
        patch.setattr(module, "PartitionReader", lambda *_: FakeReader(kafka))
        patch.setattr(
            module,
            "OrderedProducer",
            lambda _, __, delivered, *, queue_bytes_max, messages_joined_max=0: FakeProducer(kafka, delivered, messages_joined_max),
        )
    for module in (publication_module, claim_module, refusals_module):
        patch.setattr(module, "Topics", lambda _: FakeTopics(kafka))


class FakeReader:
    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    def __enter__(self) -> FakeReader:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def bounds(self) -> tuple[int, int]:
        if self._kafka.failures:
            raise self._kafka.failures.pop(0)
        return self._kafka.start, self._kafka.end

    def read_range(self, start: int, end: int) -> Iterator[StoredMessage]:
        self._kafka.reads.append((start, end))
        if start >= end:
            return
        if start < self._kafka.start or end > self._kafka.end:
            raise ResyncError("planted: gone")
        yield from self._kafka.messages[start - self._kafka.start : end - self._kafka.start]


class Bench:
    """A ring that capture writes, a publication that is driven step by step."""

    def __init__(self, folder: Path, kafka: FakeKafka, limit_bytes: int = 16 * MIB) -> None:
        self.kafka = kafka
        self.parts = Parts(folder, size_bytes=16 * MIB, chunks=200)
        self.words = self.parts.ring.words
        self.parts.ring.set_text("topic_id", kafka.topic_id)
        start = Batch("v", 1, 1, 5, bytes([Kind.EPOCH_START]), b"\0", [0], [0], [0], b"", {0: {"agent": "me"}})
        kafka.append(encode_writes(start, INCARNATION), headers("v", 1, 1, 1, INCARNATION))
        self.words[layout.W_NEXT_OFFSET] = self.words[layout.W_EPOCH_FIRST] = 1
        self.acknowledged: list[int] = []
        self.claims: list[EpochClaim] = []
        self.known, self.claimant = 0, "me"
        self.in_flight = InFlight(limit_bytes)
        self.renew()

    def renew(self) -> Publication:
        """A new publisher process: only the ring is left."""
        told = self.acknowledged.append
        claims, known, claimant = self.claims.append, lambda _: self.known, lambda _: self.claimant
        self.publication = Publication(
            KafkaConfig(), "me", self.parts.ring, self.parts.pool, self.in_flight, lambda: told(1), claims, claims, known, claimant
        )
        self.open()
        return self.publication

    def open(self) -> FakeProducer:
        """Do what the Kafka thread does before it polls."""
        self.publication._close()
        self.publication._recount()
        self.publication._open()
        return self.kafka.producers[-1]

    @property
    def producer(self) -> FakeProducer:
        return self.kafka.producers[-1]

    @property
    def acked(self) -> int:
        return self.words[layout.W_ACKED]

    def flushes(self, count: int) -> None:
        for _ in range(count):
            self.parts.volume.flush()


def foreign(kafka: FakeKafka, epoch: int, first: int, incarnation: bytes, *, start: bool) -> None:
    """Append somebody else's message."""
    kind, marks = (Kind.EPOCH_START, {0: {"agent": "you"}}) if start else (Kind.FLUSH, {})
    batch = Batch("v", epoch, first, 5, bytes([kind]), b"\0", [0], [0], [0], b"", marks)
    kafka.append(encode_writes(batch, incarnation), headers("v", epoch, first, first, incarnation))
