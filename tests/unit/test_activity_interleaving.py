"""The activity log's hit path takes no lock: every order of the steps of a write and of a sweep in which one waits once for the other.

The bytes that both look at count the steps. At a chosen step of the one, the other runs in a thread of its own, until it is done, waits for
a lock, or comes to a chosen step of its own; there it goes on when the first is done, or waits for a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.activity_log import SWEEP_INTERVAL_S, ActivityLog
from agent.generations import CLEAR_AFTER_S, Standing
from tests.activity_disk import MIB, SimDisk, set_in, source

PATH = Path("/state/agent/v.activity")
COUNT = 12
STEPS_MAX = 200
EXTENTS = {"hit": (5 * MIB, 5 * MIB + 1), "across": (5 * MIB - 1, 6 * MIB + 1), "miss": (9 * MIB, 9 * MIB + 1)}


class Marks(bytearray):
    """A byte a region that calls `step` before each access."""

    step: Callable[[], None]

    def __getitem__(self, key: Any) -> Any:
        self.step()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.step()
        super().__setitem__(key, value)

    def find(self, *args: Any) -> int:
        self.step()
        return super().find(*args)


class TellingLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, waits: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._waits = waits

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waits()
            assert self._lock.acquire(timeout=10)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Meeting:
    """A log with regions 4, 5 and 6 set, quiet, durable, and cleared by the next sweep; and what two sides do to it."""

    def __init__(self) -> None:
        disk = SimDisk()
        self.log = log = ActivityLog.create(PATH, "v", source(COUNT * MIB), owed=False, files=disk)
        self.file = disk.files[PATH]
        self.flying: list[tuple[int, int]] = []
        self.head = self.acked = 0
        self.now_s = 0.0
        self.arrived = False
        self._steps: dict[int, int] = {}
        log.owe(4 * MIB, 7 * MIB)
        self.sweep()
        self.sweep()
        self.now_s += CLEAR_AFTER_S
        log.touch(11 * MIB, 12 * MIB)
        self._other: threading.Thread | None = None
        self._main_goes_on, self._other_goes_on = threading.Event(), threading.Event()
        log._mapping = TellingLock(self._wait)  # type: ignore[assignment]
        log._active, log._touched, log._bits._raw = Marks(log._active), Marks(log._touched), Marks(log._bits._raw)
        for one in (log._active, log._touched, log._bits._raw):
            one.step = self._step  # type: ignore[attr-defined]

    def meet(self, number: int, other_number: int, main: Callable[[], None], other: Callable[[], None]) -> tuple[bool, bool]:
        """Run `main`, and before its step of that number `other`, up to its step of the other number; tell whether there are such steps."""

        def run() -> None:
            try:
                self._steps[threading.get_ident()] = other_number
                other()
                self.paused = self._steps.pop(threading.get_ident()) < 0
            finally:
                self._main_goes_on.set()

        self.paused = False
        self._other = threading.Thread(target=run)
        self._steps[threading.get_ident()] = number
        main()
        met = self._steps.pop(threading.get_ident()) < 0
        self._other_goes_on.set()
        if met:
            self._other.join(10)
            assert not self._other.is_alive()
        return met, self.paused

    def sweep(self) -> None:
        self.now_s += SWEEP_INTERVAL_S
        self.log.sweep(self.now_s, self._look, self._step)

    def sweep_long(self) -> None:
        for _ in range(round(2 * CLEAR_AFTER_S / SWEEP_INTERVAL_S)):
            self.sweep()

    def write(self, extent: tuple[int, int], *, leaves: bool) -> None:
        """Enter, touch, reach the source; leave with a record that Kafka does not get."""
        self.flying.append(extent)
        self.log.touch(*extent)
        self.check(extent)
        self.arrived = True
        if leaves:
            self.head += 1
            self.flying.remove(extent)

    def check(self, extent: tuple[int, int]) -> None:
        covered = set(range(extent[0] // MIB, -(-extent[1] // MIB)))
        assert covered <= set_in(self.file.kept, COUNT), "clear on the disk"
        assert covered <= set_in(self.file.seen, COUNT), "may become clear on the disk"

    def _look(self) -> Standing:
        self._step()
        return Standing(self.head, self.acked, list(self.flying))

    def _step(self) -> None:
        """Count a step of whoever takes it; at the chosen one let the other go first."""
        me = threading.get_ident()
        if self._steps.get(me, -1) < 0:
            return
        self._steps[me] -= 1
        if self._steps[me] >= 0:
            return
        assert self._other is not None
        if me == self._other.ident:
            self._main_goes_on.set()
            assert self._other_goes_on.wait(10)
        else:
            self._other.start()
            assert self._main_goes_on.wait(10)

    def _wait(self) -> None:
        """Somebody has to wait for a lock: let whoever holds it go on."""
        self._main_goes_on.set()
        self._other_goes_on.set()


def settled(meeting: Meeting, extent: tuple[int, int]) -> None:
    """The write was over or is in flight, its record is not durable: its regions stay set, for ever."""
    assert meeting.arrived
    meeting.check(extent)
    meeting.sweep_long()
    meeting.check(extent)
    meeting.flying.clear()
    meeting.acked = meeting.head = meeting.head + 1
    meeting.sweep_long()
    assert meeting.log.regions() == []


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("extent", EXTENTS.values(), ids=EXTENTS)
def test_a_write_inside_a_sweep(extent: tuple[int, int], leaves: bool) -> None:
    def meet(meeting: Meeting, number: int, other_number: int) -> tuple[bool, bool]:
        return meeting.meet(number, other_number, meeting.sweep, lambda: meeting.write(extent, leaves=leaves))

    assert every_order(extent, meet) > 10


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("sweeps", ["sweep", "sweep_long"])
@pytest.mark.parametrize("extent", EXTENTS.values(), ids=EXTENTS)
def test_a_sweep_inside_a_write(extent: tuple[int, int], sweeps: str, leaves: bool) -> None:
    def meet(meeting: Meeting, number: int, other_number: int) -> tuple[bool, bool]:
        return meeting.meet(number, other_number, lambda: meeting.write(extent, leaves=leaves), getattr(meeting, sweeps))

    assert every_order(extent, meet) > 10


def every_order(extent: tuple[int, int], meet: Callable[[Meeting, int, int], tuple[bool, bool]]) -> int:
    """Try all pairs of steps; return how many there are."""
    count = 0
    for number in range(STEPS_MAX):
        for other_number in range(STEPS_MAX):
            meeting = Meeting()
            met, paused = meet(meeting, number, other_number)
            if not met:
                return count
            settled(meeting, extent)
            count += 1
            if not paused:
                break
    raise AssertionError("more steps than there can be")
