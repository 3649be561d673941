"""The activity log through crashes: whatever happens, every region that may differ is set in what the disk kept.

A model of its own says what may differ: for every operation that reached the source, until Kafka has its record and the source was flushed
after it; for every debt, until its copy is in Kafka. Operations overlap with sweeps, syncs and copies in any order; the power is cut
at any step, with any part of what was not synced on the disk, or the process is killed, or the disk fails.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.activity_log import SWEEP_INTERVAL_S, ActivityLog
from agent.generations import Standing
from tests.activity_disk import MIB, SimDisk, regions_of, set_in, source

PATH = Path("/state/agent/v.activity")
GRAIN = 64 << 10
# Two sectors; few places, so that things meet, at the border and the ends.
COUNT = 4032 + 9
PLACES = st.sampled_from([0, 1, 8, 4031, 4032, COUNT - 1])


@dataclass(eq=False)
class Operation:
    """A write: the regions it covers, and how far it came."""

    start: int
    end: int
    reached: bool = False
    sequence: int | None = None
    flushed: bool = False

    @property
    def regions(self) -> set[int]:
        return set(range(self.start // MIB, -(-self.end // MIB)))


@dataclass(eq=False)
class Debt:
    """Owed grains that became owed, were taken by the copier, and got a position together."""

    grains: set[int]
    taken: bool = False
    sequence: int | None = None
    written_down: bool = field(default=True)

    @property
    def regions(self) -> set[int]:
        return {grain // 16 for grain in self.grains}


class Crashes(RuleBasedStateMachine):
    """Capture, copier, keeper, Kafka, source and the disk below the log, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.now_s = 0.0
        self.head = self.acked = 0
        self.flying: list[Operation] = []
        self.left: list[Operation] = []
        self.debts: list[Debt] = []
        self.failed = False

    @initialize(owed=st.integers(0, 9))
    def begin(self, owed: int) -> None:
        self.log = ActivityLog.create(PATH, "v", source(COUNT * MIB), owed=owed == 0, files=self.disk)
        if owed == 0:
            self.debts.append(Debt(set(range(COUNT * 16))))

    # -- the application -----------------------------------------------------------------------------------------------

    @rule(region=PLACES, count=st.sampled_from([1, 1, 1, 2, 5]))
    def write(self, region: int, count: int) -> None:
        """A write that nothing delays."""
        before = len(self.flying)
        self.enter_and_touch(region, count, 3)
        if len(self.flying) > before:
            self.finish(self.flying[-1])

    @rule(region=PLACES, count=st.sampled_from([1, 1, 1, 2, 5]), shift=st.integers(0, 2))
    def enter_and_touch(self, region: int, count: int, shift: int) -> None:
        """In flight first; then the log; then the source may be changed, now or later."""
        start = region * MIB + shift * 4096
        one = Operation(start, min(start + (count - 1) * MIB + 8192, COUNT * MIB))
        if any(other.start < one.end and one.start < other.end for other in self.flying):
            return
        self.flying.append(one)
        try:
            self.log.touch(one.start, one.end)
        except OSError:
            assert self.failed
            self.flying.remove(one)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def reach(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.flying)).reached = True

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), fails=st.integers(0, 4))
    def leave(self, data: st.DataObject, fails: int) -> None:
        """Leave with a position; one that failed leaves a debt in the map (its region is set: it was touched)."""
        one = data.draw(st.sampled_from(self.flying))
        self.finish(one)
        if fails == 0:
            self.debts.append(Debt(set(range(one.start // GRAIN, -(-one.end // GRAIN)))))

    def finish(self, one: Operation) -> None:
        self.flying.remove(one)
        one.reached = True
        self.left.append(one)
        self.head += 1
        one.sequence = self.head

    # -- the copier ----------------------------------------------------------------------------------------------------

    @rule(region=PLACES, grains=st.integers(1, 40))
    def owe(self, region: int, grains: int) -> None:
        """In the ring's map first, then in the log; only then it counts."""
        debt = Debt(set(range(region * 16 + 3, min(region * 16 + 3 + grains, COUNT * 16))), written_down=False)
        self.debts.append(debt)
        try:
            self.log.owe(min(debt.grains) * GRAIN, (max(debt.grains) + 1) * GRAIN)
            debt.written_down = True
        except OSError:
            assert self.failed

    @rule()
    def copy_all(self) -> None:
        """Take and pay whatever is owed."""
        for debt in self.debts:
            if debt.sequence is None:
                self.head += 1
                debt.taken, debt.sequence = True, self.head

    @precondition(lambda self: any(not debt.taken for debt in self.debts))
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([debt for debt in self.debts if not debt.taken])).taken = True

    @precondition(lambda self: any(debt.taken and debt.sequence is None for debt in self.debts))
    @rule(data=st.data(), unpaid=st.booleans())
    def pay(self, data: st.DataObject, unpaid: bool) -> None:
        debt = data.draw(st.sampled_from([debt for debt in self.debts if debt.taken and debt.sequence is None]))
        if unpaid:
            debt.taken = False
            return
        self.head += 1
        debt.sequence = self.head

    # -- Kafka, the keeper, time -----------------------------------------------------------------------------------------

    @rule(share=st.sampled_from([0.3, 0.8, 1.0]))
    def acknowledge(self, share: float) -> None:
        self.acked += int((self.head - self.acked) * share)

    @rule(
        steps=st.sampled_from([1, 1, 2, 17, 18, 40]),
        flush_fails=st.integers(0, 3),
        meanwhile=st.lists(PLACES, max_size=2),
        acknowledged=st.booleans(),
    )
    def sweep(self, steps: int, flush_fails: int, meanwhile: list[int], acknowledged: bool) -> None:
        """Time passes; while a sweep flushes the source, operations begin, and some end."""
        self.acked = self.head if acknowledged else self.acked

        def flush() -> None:
            self.flush(fails=flush_fails == 0)
            for number, region in enumerate(meanwhile):
                self.enter_and_touch(region, 1, 1)
                if number == 0 and self.flying:
                    self.finish(self.flying[-1])

        for _ in range(steps):
            self.now_s += SWEEP_INTERVAL_S
            self.log.sweep(self.now_s, self.look, flush)

    def look(self) -> Standing:
        owed = bytearray(COUNT * 2)
        for debt in self.debts:
            if not debt.taken:
                for grain in debt.grains:
                    owed[grain // 8] |= 1 << grain % 8
        paying = [debt for debt in self.debts if debt.taken and debt.sequence is None]
        extents = [(one.start, one.end) for one in self.flying]
        extents += [(min(debt.grains) * GRAIN, (max(debt.grains) + 1) * GRAIN) for debt in paying]
        return Standing(self.head, self.acked, extents, bytes(owed) if any(owed) else b"")

    def flush(self, *, fails: bool) -> None:
        if fails:
            raise OSError(errno.EIO, "planted")
        for one in self.left:
            one.flushed = True

    # -- what goes wrong -------------------------------------------------------------------------------------------------

    @rule(data=st.data(), grain=st.sampled_from([512, 4096, 100]))
    def cut_power(self, data: st.DataObject, grain: int) -> None:
        """The host is gone: the log is what the disk kept, the ring is lost, and all that the log says is owed."""
        self.disk.files[PATH].cut_power(grain, lambda count: data.draw(st.lists(st.integers(0, count - 1), unique=True)) if count else [])
        self.start_again(lost_ring=True)

    @rule()
    def kill(self) -> None:
        """The process is gone: the page cache and the ring are there, what was in flight is settled as owed."""
        self.start_again(lost_ring=False)

    @precondition(lambda self: not self.failed)
    @rule(what=st.sampled_from(["pwrite", "fdatasync"]), region=PLACES, killed=st.booleans())
    def fail(self, what: str, region: int, killed: bool) -> None:
        """The disk below the log fails for a moment; or the process is killed there: the same is left behind, and the client repeats."""
        file = self.disk.files[PATH]
        file.errors[what] = errno.EIO
        self.failed = True
        self.enter_and_touch(region, 1, 0)
        if self.log.failure is None:
            self.failed = False  # nothing had to be written
        file.errors.clear()
        if killed:
            self.start_again(lost_ring=False)
            self.write(region, 1)

    def start_again(self, *, lost_ring: bool) -> None:
        self.failed = False
        must = self.may_differ()
        log = ActivityLog.open(PATH, "v", source(COUNT * MIB), files=self.disk)
        assert log is not None
        assert must <= regions_of(log.regions())
        self.log = log
        settled = [Debt(set(range(one.start // GRAIN, -(-one.end // GRAIN)))) for one in self.flying]
        self.debts += [] if lost_ring else settled
        for debt in self.debts:
            debt.taken = debt.taken and debt.sequence is not None
        self.flying = []
        if lost_ring:
            self.acked = self.head
            self.left = []
            self.debts = [Debt({region * 16 + 5 for region in regions_of(log.regions())})] if log.regions() else []
        for debt in self.debts:
            if not debt.written_down:
                log.owe(min(debt.grains) * GRAIN, (max(debt.grains) + 1) * GRAIN)
                debt.written_down = True

    # -- what must hold --------------------------------------------------------------------------------------------------

    def may_differ(self) -> set[int]:
        """Return the regions that may differ if the host is lost now, the ring with it."""
        found: set[int] = set()
        for one in self.flying:
            found |= one.regions if one.reached else set()
        for one in self.left:
            found |= one.regions if not one.flushed or (one.sequence or 0) > self.acked else set()
        for debt in self.debts:
            paid = debt.sequence is not None and debt.sequence <= self.acked
            found |= debt.regions if debt.written_down and not paid else set()
        return found

    @invariant()
    def the_disk_knows(self) -> None:
        """With nothing of what was not synced, and with all of it."""
        if hasattr(self, "log"):
            file, must = self.disk.files[PATH], self.may_differ()
            assert must <= set_in(file.kept, COUNT)
            assert must <= set_in(file.seen, COUNT)

    def teardown(self) -> None:
        """Heal: everything is recorded, acknowledged, flushed; then nothing stays set."""
        if not hasattr(self, "log"):
            return
        self.start_again(lost_ring=False)
        self.debts = []
        self.acked = self.head
        for _ in range(25):
            self.now_s += SWEEP_INTERVAL_S
            self.log.sweep(self.now_s, self.look, lambda: None)
        assert self.log.regions() == []


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
