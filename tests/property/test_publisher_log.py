"""Whatever the broker loses, repeats or delays: the log holds the ring's records in order, and nothing counts that it lacks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent import ring as layout
from agent.in_flight import InFlight
from stream.codec import decode_writes
from stream.errors import HostoffloadError, RetryError
from tests.agent_parts import CHUNK, MIB
from tests.publication_parts import OTHER, Bench, FakeKafka, foreign, install


class PublisherLog(RuleBasedStateMachine):
    """A publisher that is killed, whose producer fails, whose messages arrive late; a log that order reads."""

    @initialize()
    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._patch = pytest.MonkeyPatch()
        kafka = self.kafka = FakeKafka()
        install(kafka, self._patch)
        self.bench = Bench(Path(self._folder.name), kafka)
        self.late: list[tuple[bytes, list[tuple[str, bytes]]]] = []
        self.written: dict[int, bytes] = {}
        self.count = 0

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.settle()
        assert self.contiguous() == self.bench.parts.head
        assert self.bench.in_flight.bytes == 0
        assert self.bench.publication.backlog_bytes() == 0
        self._patch.undo()
        self._folder.cleanup()

    def guarded(self, act) -> None:
        """Do what the Kafka thread does; after an error it opens a new producer."""
        try:
            act()
        except RetryError:
            self.bench.open()
        except HostoffloadError as error:
            raise AssertionError(f"it would have stopped: {error}") from error

    @rule(count=st.integers(1, 5), length=st.integers(1, 200_000))
    def write(self, count: int, length: int) -> None:
        for _ in range(count):
            self.count += 1
            payload = (b"%08d" % self.count * (length // 8 + 1))[:length]
            self.bench.parts.log.reclaim()
            if self.bench.parts.allocator.free_count < 10:
                return
            sequence = self.bench.parts.write(0, payload)
            self.written[sequence] = payload

    @rule()
    def publish(self) -> None:
        self.bench.publication.publish()

    @rule(count=st.integers(1, 5), told=st.booleans())
    def deliver(self, count: int, told: bool) -> None:
        for _ in range(count):
            if self.bench.producer.queue:
                self.guarded(lambda: self.bench.producer.deliver(told_offset=told))

    @rule(count=st.integers(1, 3))
    def arrive_unreported(self, count: int) -> None:
        """The broker has it, the report is lost: the producer fails."""
        for _ in range(count):
            if self.bench.producer.queue:
                self.bench.producer.deliver(report=False)
        self.replace()

    @rule(count=st.integers(0, 4))
    def replace(self, count: int = 0) -> None:
        """The producer fails with messages on the way, which may arrive later."""
        self.late += [(value, told) for value, told, _ in self.bench.producer.queue[:count]]
        self.guarded(self.bench.open)

    @rule(count=st.integers(0, 4))
    def kill(self, count: int) -> None:
        """A new publisher process over the same ring."""
        self.late += [(value, told) for value, told, _ in self.bench.producer.queue[:count]]
        self.bench.in_flight = InFlight(16 * MIB)
        self.guarded(self.bench.renew)

    @rule()
    def a_late_one_arrives(self) -> None:
        if self.late:
            self.kafka.append(*self.late.pop(0))

    @rule(back=st.integers(0, 6))
    def rewind(self, back: int) -> None:
        self.bench.publication.rewind(self.bench.parts.head - back)

    @rule()
    def scribble(self) -> None:
        """What was acknowledged is somebody else's memory by now."""
        parts = self.bench.parts
        parts.log.reclaim()
        free = parts.allocator.take(max(0, parts.allocator.free_count - 2))
        for number in free:
            parts.pool.chunk(number)[:] = b"\x55" * CHUNK
        parts.allocator.give(free)

    @rule()
    def settle(self) -> None:
        """All is well for a while: everything is published and reported, and that alone must drain the ring."""
        for _ in range(200):
            if self.bench.publication.drained:
                return
            self.bench.publication.publish()
            self.deliver(5, True)
        raise AssertionError("the ring does not drain")

    @rule()
    def somebody_else_writes(self) -> None:
        """A fenced agent of the past, and a claim that lost."""
        foreign(self.kafka, 1, 3, OTHER, start=False)
        foreign(self.kafka, 1, 1, OTHER, start=True)

    def contiguous(self) -> int:
        """Read the log as order does; return the last sequence that it could journal."""
        last, incarnation = 0, None
        for message in self.kafka.messages:
            batch, found = decode_writes(message.value)
            incarnation = incarnation or found
            if found != incarnation or batch.first_sequence > last + 1:
                continue
            for record in batch.records():
                if record.position.sequence in self.written:
                    assert record.payload == self.written[record.position.sequence], f"other bytes under {record.position}"
            last = max(last, batch.last.sequence)
        return last

    @invariant()
    def nothing_counts_that_the_log_lacks(self) -> None:
        if hasattr(self, "bench"):
            words = self.bench.words
            assert words[layout.W_ACKED] <= self.contiguous()
            assert words[layout.W_ACKED] <= words[layout.W_HEAD]
            assert words[layout.W_NEXT_OFFSET] <= self.kafka.end
            assert self.bench.in_flight.bytes >= 0


TestPublisherLog = PublisherLog.TestCase
TestPublisherLog.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
