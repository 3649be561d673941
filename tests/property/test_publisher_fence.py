"""Whenever another agent takes the volume over, and whatever Kafka deletes or loses: no acknowledgement counts that order would drop."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream.codec import decode_writes
from stream.errors import FencedError, ResyncError, RetryError
from tests.publication_parts import INCARNATION, OTHER, Bench, FakeKafka, foreign, install


class FencedPublisher(RuleBasedStateMachine):
    """An agent that flushes, and another that may claim at any moment; a log that ages at its start and may lose its end."""

    @initialize()
    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._patch = pytest.MonkeyPatch()
        kafka = self.kafka = FakeKafka()
        install(kafka, self._patch)
        self.bench = Bench(Path(self._folder.name), kafka)
        self.late: list[tuple[bytes, list[tuple[str, bytes]]]] = []
        self.stopped: Exception | None = None
        self.taken = False
        self.was_taken_or_lost = False
        self.counted = self.bench.acked

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        if self.stopped is None:
            self.guarded(self.bench.open)
        assert not (self.taken and self.stopped is None and self.newer_stands()), "it was never told"
        self._patch.undo()
        self._folder.cleanup()

    def guarded(self, act) -> None:
        """Do what the Kafka thread does: after a failure a new producer, but none after it is fenced."""
        for _ in range(2):
            try:
                act()
                return
            except RetryError:
                act = self.bench.open
            except (FencedError, ResyncError) as error:
                self.stopped = error
                assert self.was_taken_or_lost, f"it stopped for nothing: {error}"
                return
        raise AssertionError("a new producer fails as well")

    @precondition(lambda self: self.stopped is None)
    @rule(count=st.integers(1, 3))
    def flush(self, count: int) -> None:
        self.bench.flushes(count)
        self.bench.publication.publish()

    @precondition(lambda self: self.stopped is None)
    @rule(count=st.integers(1, 3), told=st.booleans())
    def deliver(self, count: int, told: bool) -> None:
        if self.bench.producer.failure is not None:
            self.guarded(self.bench.open)
        for _ in range(count):
            if self.stopped is None and self.bench.producer.queue:
                self.guarded(lambda: self.bench.producer.deliver(told_offset=told))

    @precondition(lambda self: self.stopped is None)
    @rule(count=st.integers(0, 3))
    def replace(self, count: int) -> None:
        """The producer fails; what it had on the way may arrive later."""
        self.late += [(value, told) for value, told, _ in self.bench.producer.queue[:count]]
        self.guarded(self.bench.open)

    @precondition(lambda self: self.stopped is None)
    @rule()
    def kill(self) -> None:
        self.guarded(self.bench.renew)

    @rule()
    def a_late_one_arrives(self) -> None:
        if self.late:
            self.kafka.append(*self.late.pop(0))

    @rule(records=st.integers(0, 3))
    def another_takes_over(self, records: int) -> None:
        last = max((int(one.headers["last"]) for one in self.kafka.messages), default=self.bench.acked)
        if not self.taken:
            foreign(self.kafka, 2, last + 1, OTHER, start=True)
        for sequence in range(records):
            foreign(self.kafka, 2, last + 2 + sequence, OTHER, start=False)
        self.taken = self.was_taken_or_lost = True
        self.bench.known = 2  # it tells ho.control as soon as it can

    @rule()
    def a_rival_lost(self) -> None:
        """Its claim of the same epoch came after ours."""
        if self.newest(INCARNATION):
            foreign(self.kafka, 1, 1, b"latecome", start=True)

    @rule(count=st.integers(1, 4))
    def age(self, count: int) -> None:
        """Kafka deletes the start of the log."""
        count = min(count, len(self.kafka.messages))
        del self.kafka.messages[:count]
        self.kafka.start += count

    @rule(count=st.integers(1, 3), claimed=st.booleans(), late=st.integers(0, 3))
    def lose(self, count: int, claimed: bool, late: int) -> None:
        """A broker loses the end of the log, and refuses the producer whose messages it lacks from then on; others write on."""
        count = min(count, len(self.kafka.messages))
        if not count:
            return
        del self.kafka.messages[len(self.kafka.messages) - count :]
        self.was_taken_or_lost = True
        self.bench.producer.failure = RetryError("planted: out of order")
        self.bench.producer.queue.clear()
        if claimed:
            self.another_takes_over(0)
        for _ in range(late):
            foreign(self.kafka, 1, 9, b"stranger", start=False)

    def newest(self, incarnation: bytes) -> int | None:
        return max((at for at, one in enumerate(self.kafka.messages) if one.headers["incarnation"] == incarnation), default=None)

    def newer_stands(self) -> bool:
        return any(decode_writes(one.value)[0].epoch > 1 for one in self.kafka.messages)

    @invariant()
    def what_counted_since_stands_before_any_newer_epoch(self) -> None:
        if not hasattr(self, "bench"):
            return
        if self.bench.acked > self.counted:
            standing: set[int] = set()
            for message in self.kafka.messages:
                batch, incarnation = decode_writes(message.value)
                if batch.epoch > 1:
                    break
                if incarnation == INCARNATION:
                    standing.update(range(batch.first_sequence, batch.last.sequence + 1))
            missing = set(range(self.counted + 1, self.bench.acked + 1)) - standing
            assert not missing, f"counted, but dropped by order: {sorted(missing)}"
        self.counted = self.bench.acked


TestFencedPublisher = FencedPublisher.TestCase
TestFencedPublisher.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
