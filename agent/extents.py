"""Locks on extents: overlapping operations on a volume have one order, all others run side by side (design rule 17).

The caller holds the volume's mutex for every call, so that entering, leaving and taking a position are one short step each. Who waits
goes before whoever comes later and overlaps it, so a large extent is not starved by small ones.
"""

from __future__ import annotations

import threading

from stream.extent import VOLUME_BYTES_MAX


class Watch:
    """Tell whether an operation was in an extent since the watch began; a settled read reads without a lock under it."""

    __slots__ = ("end_bytes", "start_bytes", "touched")

    def __init__(self, start_bytes: int, end_bytes: int) -> None:
        self.start_bytes = start_bytes
        self.end_bytes = end_bytes
        self.touched = False


class _Waiter:
    """An operation that waits for its extent; compared by identity."""

    __slots__ = ("end_bytes", "start_bytes")

    def __init__(self, start_bytes: int, end_bytes: int) -> None:
        self.start_bytes = start_bytes
        self.end_bytes = end_bytes


Gate = _Waiter
"""A place in the queue of a volume's locks, over all of it: what comes behind it waits until it is opened."""


class ExtentLocks:
    """The operations in flight on one volume. `mutex` is the volume's; every method is called with it held."""

    __slots__ = ("_changed", "_flying", "_waiters", "_watches", "mutex")

    def __init__(self, mutex: threading.Lock) -> None:
        self.mutex = mutex
        self._flying: dict[int, int] = {}
        self._changed = threading.Condition(mutex)
        self._waiters: list[_Waiter] = []
        self._watches: list[Watch] = []

    @property
    def idle(self) -> bool:
        return not self._flying

    def enter(self, start_bytes: int, end_bytes: int) -> None:
        """Wait until nothing in flight overlaps, then be in flight. Two overlapping operations never are, so the start is the key."""
        if self._flying or self._waiters:
            self._wait_turn(start_bytes, end_bytes)
        self._flying[start_bytes] = end_bytes
        for watch in self._watches:
            if watch.start_bytes < end_bytes and start_bytes < watch.end_bytes:
                watch.touched = True

    def leave(self, start_bytes: int) -> None:
        """Be out of flight; wake who waits."""
        del self._flying[start_bytes]
        if self._waiters:
            self._changed.notify_all()

    def begin_watch(self, watch: Watch) -> None:
        """Watch an extent; what is in flight there now counts as touching it: it may reach the source after the watcher has read."""
        watch.touched = self._flies(watch.start_bytes, watch.end_bytes)
        self._watches.append(watch)

    def enter_watched(self, watch: Watch) -> bool:
        """Enter the watched extent and end the watch; tell whether anything else was in it meanwhile."""
        self._wait_turn(watch.start_bytes, watch.end_bytes)
        self._watches.remove(watch)
        self._flying[watch.start_bytes] = watch.end_bytes
        return watch.touched

    def end_watch(self, watch: Watch) -> None:
        """Give up the watch without entering."""
        self._watches.remove(watch)

    def close(self) -> Gate:
        """Admit nothing any more that comes from now on."""
        gate = Gate(0, VOLUME_BYTES_MAX)
        self._waiters.append(gate)
        return gate

    def drained(self, gate: Gate, timeout_s: float) -> bool:
        """Wait until everything that came before the gate is out of flight, at most that long; tell whether it is."""
        return self._changed.wait_for(lambda: not self._flying and self._waiters[0] is gate, timeout_s)

    def open(self, gate: Gate) -> None:
        """Let in who waits behind the gate."""
        self._waiters.remove(gate)
        self._changed.notify_all()

    def in_flight(self) -> list[tuple[int, int]]:
        """Return the extents of the operations in flight."""
        return list(self._flying.items())

    def _wait_turn(self, start_bytes: int, end_bytes: int) -> None:
        waiter = _Waiter(start_bytes, end_bytes)
        if not self._flies(start_bytes, end_bytes) and not self._waits_before(waiter):
            return
        self._waiters.append(waiter)
        while self._flies(start_bytes, end_bytes) or self._waits_before(waiter):
            self._changed.wait()
        self._waiters.remove(waiter)

    def _flies(self, start_bytes: int, end_bytes: int) -> bool:
        return any(start < end_bytes and start_bytes < end for start, end in self._flying.items())

    def _waits_before(self, waiter: _Waiter) -> bool:
        """Tell whether a waiter that came before this one overlaps it; a waiter not in the list came last."""
        for one in self._waiters:
            if one is waiter:
                return False
            if one.start_bytes < waiter.end_bytes and waiter.start_bytes < one.end_bytes:
                return True
        return False
