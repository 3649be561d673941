"""Any history of writes, failures, copies, deliveries and kills ends with replica and source equal, and no chunk lost."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent import ring as layout
from tests.agent_parts import CHUNK, MIB, Parts

SIZE = 2 * MIB
LENGTHS = st.sampled_from([1, 100, 512, 4096, 5000, 65_536, CHUNK - 1, CHUNK, CHUNK + 1, 700_000])


class Killed(BaseException):
    """A SIGKILL in the middle of an operation."""


class Histories(RuleBasedStateMachine):
    """One volume whose capture is killed at any step; the model is the fake source's own bytes."""

    @initialize(start=st.sampled_from([1, 4090, 4096 * 1024 - 3]))
    def begin(self, start: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.parts = Parts(Path(self._folder.name), size_bytes=SIZE, chunks=48, claimed=start)
        self.acked = start
        self.head = start
        self.count = 0

    def teardown(self) -> None:
        if not hasattr(self, "parts"):
            return
        self.pay()
        self.parts.assert_equal()
        self.parts.log.reclaim()
        assert self.parts.allocator.free_count >= self.parts.pool.count - 2, "chunks were lost"  # a block of entries, and perhaps the next
        sequences = [entry[0] for entry in self.parts.delivered]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences))) if sequences else True
        times = [entry[1] for entry in self.parts.delivered]
        assert times == sorted(times)
        self._folder.cleanup()

    def payload(self, length: int) -> bytes:
        self.count += 1
        return (b"%08d" % self.count * (length // 8 + 1))[:length]

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS)
    def write(self, offset: int, length: int) -> None:
        length = min(length, SIZE - offset)
        self.parts.write(offset, self.payload(length))

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS, punch=st.booleans())
    def zero(self, offset: int, length: int, punch: bool) -> None:
        self.parts.volume.zero(self.parts.slot, offset, min(length, SIZE - offset), punch=punch, fast=False, durable=False)

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS, works=st.booleans())
    def trim(self, offset: int, length: int, works: bool) -> None:
        self.parts.source.file.trims = works
        self.parts.volume.trim(self.parts.slot, offset, min(length, SIZE - offset), durable=False)
        self.parts.source.file.trims = True

    @rule()
    def flush(self) -> None:
        self.parts.volume.flush()

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS, reached=st.integers(0, 700_000))
    def write_that_stops_short(self, offset: int, length: int, reached: int) -> None:
        length = min(length, SIZE - offset)
        self.parts.source.file.short_bytes = min(reached, length)
        try:
            self.parts.write(offset, self.payload(length))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        self.parts.source.file.short_bytes = None

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS, after=st.booleans())
    def killed_in_a_write(self, offset: int, length: int, after: bool) -> None:
        """The process dies before or after the source has the bytes, and before they have a position."""
        length = min(length, SIZE - offset)
        payload = self.payload(length)

        def die(at: int, count: int) -> None:
            self.parts.source.file.before.clear()
            if after:
                self.parts.source.file.write(at, memoryview(payload), count)
            raise Killed

        self.parts.source.file.before["write"] = die
        try:
            self.parts.write(offset, payload)
        except Killed:
            self.kill()

    @rule()
    def kill(self) -> None:
        self.parts.restart()
        self.parts.volume.settle_intents()

    @rule(more=st.integers(0, 5))
    def deliver(self, more: int) -> None:
        self.parts.deliver(self.parts.acked + more)
        self.parts.log.reclaim()

    @rule(offset=st.integers(0, SIZE - 1), length=LENGTHS)
    def owe(self, offset: int, length: int) -> None:
        self.parts.volume.debts.owe(offset, min(SIZE, offset + length))

    @rule(pieces=st.integers(0, 3), dies=st.booleans())
    def copy_some(self, pieces: int, dies: bool) -> None:
        """The copier takes a run and records a part of it; then it is stopped, or dies."""
        parts = self.parts
        slot = parts.volume.intents.open()
        run = parts.volume.debts.take(slot, 0, MIB)
        if run is None:
            parts.volume.intents.close(slot)
            return
        at = run[0]
        for _ in range(pieces):
            if at >= run[1]:
                break
            stop = min(at + CHUNK, run[1])
            if not parts.volume.copy_hole(at, stop):
                parts.volume.copy(at, stop)
            at = stop
        if dies:
            self.kill()
        else:
            parts.volume.debts.pay(slot, [(at, run[1])] if at < run[1] else [])
            parts.volume.intents.close(slot)

    def pay(self) -> None:
        parts = self.parts
        slot = parts.volume.intents.open()
        while (run := parts.volume.debts.take(slot, 0, CHUNK)) is not None:
            parts.deliver()
            parts.volume.copy(*run)
            parts.volume.debts.pay(slot, [])
        parts.volume.intents.close(slot)

    @invariant()
    def what_is_not_owed_is_in_the_ring(self) -> None:
        """Apply what waits to a copy of the replica: it differs from the source in owed extents alone."""
        if not hasattr(self, "parts"):
            return
        parts = self.parts
        assert parts.acked <= parts.head
        assert parts.head >= self.head
        self.head = parts.head
        if parts.allocator.free_count < 12:
            self.deliver(1 << 30)
        image = bytearray(parts.replica)
        for _, _, offset, length, chunk, start, kind, _ in parts.pending():
            if kind == 1:
                at = 4096 + chunk * CHUNK + start
                image[offset : offset + length] = parts.pool.memory.view[at : at + length]
            elif kind == 2:
                image[offset : offset + length] = bytes(length)
        owed = parts.owed()
        for bit in range(SIZE >> 16):
            if bit not in owed:
                span = slice(bit << 16, (bit + 1) << 16)
                assert image[span] == parts.source.file.data[span], f"64 KiB at {bit << 16} differ and are not owed"
        assert parts.ring.words[layout.W_HEAD] == parts.log.head


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
