"""Debts: the extents of a volume that must be copied, and the copy that pays them (first copy, resync, single settled extents).

They stand in the ring's owed map (64 KiB a bit), and before that in the activity log, so that neither a kill nor the loss of the host
forgets them (design rule 13). A *copy* is announced in the stream: `sync_begin` when it starts, `sync_end` when nothing is owed, naming
the gaps that it closes; its state stands in the ring. Single extents (a failed write, a repair) are paid in whatever mode the volume is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Protocol

from agent import ring as layout
from agent.intents import IntentSlots
from agent.modes import Event, Mode, ModeKeeper
from agent.record_log import RecordLog
from agent.ring import GAP_REASONS, INTENT
from stream.position import Position
from stream.record import Kind

COPIED = "everything that was owed is copied"
OVERFLOW = GAP_REASONS.index("overflow")
_pack_intent = INTENT.pack_into

Extents = Iterable[tuple[int, int]]


class Activity(Protocol):
    """What a volume needs of the activity log (`agent.activity_log`)."""

    def touch(self, start_bytes: int, end_bytes: int) -> None:
        """Return when the extent stands in the log durably. Raises OSError: then the source must not be changed."""

    def owe(self, start_bytes: int, end_bytes: int) -> None:
        """The same for an extent that must be copied."""

    def owe_all(self, extents: Iterable[tuple[int, int]]) -> None:
        """The same for many, at the price of one."""


class Debts:
    """The debts of one volume. Thread-safe; one thread at a time pays. `pending` is set when there is something to pay."""

    def __init__(self, log: RecordLog, modes: ModeKeeper, intents: IntentSlots, activity: Activity) -> None:
        self.pending = threading.Event()
        self._log = log
        self._ring = log.ring
        self._words = log.ring.words
        self._mutex = log.mutex
        self._modes = modes
        self._intents = intents.memory
        self._activity = activity
        self._paying: tuple[int, int] | None = None
        self._paying_bytes = 0

    # -- what is owed --------------------------------------------------------------------------------------------------

    def owe(self, start_bytes: int, end_bytes: int) -> None:
        """Write down that the extent must be copied, durably, and wake the copier. Raises OSError: then it is not written down."""
        self._activity.owe(start_bytes, end_bytes)
        with self._mutex:
            self._doubt_digests()
            self._ring.owe(start_bytes, end_bytes)
        self.pending.set()

    def owe_touched(self, start_bytes: int, end_bytes: int) -> None:
        """The same for an extent whose operation is in flight, so that the activity log has it already; the mutex is held."""
        self._doubt_digests()
        self._ring.owe(start_bytes, end_bytes)

    def owe_copy(self, extents: Extents, reason: str, gap: str, event: Event = Event.RESYNC_OWED) -> None:
        """Begin a copy of these extents that closes `gap` (a gap's name or empty). Killed in the middle, it can be repeated."""
        listed = list(extents)
        self._activity.owe_all(listed)
        with self._mutex:
            self._doubt_digests()
            if gap:
                self._ring.add_listed("closes", gap)
            for start_bytes, end_bytes in listed:
                self._ring.owe(start_bytes, end_bytes)
            if event is Event.SERVED_NEW:
                self._words[layout.W_FIRST_COPY] = 1
            self._words[layout.W_SYNC_STATE] = layout.SYNC_OWED
            self._modes.happen(event, reason)
        self.pending.set()

    def compare(self, gap: str) -> None:
        """Have the replicas asked for digests of what is owed, before the copy that closes `gap` begins (design rule 3)."""
        self._ring.set_text("compare_gap", gap)
        self._words[layout.W_COMPARE_AT] = self._words[layout.W_ORDER_LOST]
        self._words[layout.W_COMPARE] = layout.COMPARE_WANTED

    def _doubt_digests(self) -> None:
        """Let no digest count that was told before a new debt: what the replica holds there changes by what is recorded since, and the
        debt says that the source went another way. So equal to the digest is not equal to the replica. The mutex is held."""
        if self._words[layout.W_COMPARE] != layout.COMPARE_NONE:
            self._words[layout.W_COMPARE_AT] = layout.COMPARE_DOUBTED

    def owed_bytes(self) -> int:
        """Return what is owed, what is being copied now included; the mutex is held."""
        return self._paying_bytes + self._ring.owed_bytes()

    def owes(self, start_bytes: int, end_bytes: int) -> bool:
        """Tell whether something of the extent is owed, or being copied; the mutex is held."""
        if self._paying is not None and self._paying[0] < end_bytes and start_bytes < self._paying[1]:
            return True
        run = self._ring.next_owed(start_bytes, 1)
        return run is not None and run[0] < end_bytes

    def paying(self) -> list[tuple[int, int]]:
        """Return the run that is being copied; the mutex is held."""
        return [] if self._paying is None else [self._paying]

    # -- losing order --------------------------------------------------------------------------------------------------

    def lose_order(self, reason: str) -> None:
        """Go to BITMAP: from here on extents are owed instead of recorded. The mutex is held.

        What is in the ring is published in order; the gap begins behind it (design rule 4), unless one is open already. Killed
        anywhere in here, the next process knows of the gap.
        """
        words = self._words
        if self._modes.mode is Mode.BITMAP:
            return
        if not words[layout.W_GAP_OPEN]:
            self.begin_gap(OVERFLOW)
        if self._modes.mode is Mode.RESYNC:
            words[layout.W_RELAPSES] += 1
        words[layout.W_ORDER_LOST] += 1
        words[layout.W_SYNC_STATE] = layout.SYNC_OWED
        self._modes.happen(Event.FULL, reason)

    def begin_gap(self, reason: int) -> Position:
        """Append a `gap_begin` that the next copy closes; the mutex is held. Return its position."""
        gap = Position(self._words[layout.W_EPOCH], self._log.head + 1)
        self._ring.add_listed("closes", str(gap))
        self._log.reserve_mark()
        self._log.append(Kind.GAP_BEGIN, start=reason)
        self._words[layout.W_GAP_OPEN] = 1
        self._words[layout.W_GAPS] += 1
        return gap

    def regain_order(self, reason: str) -> None:
        """Leave BITMAP: new writes are recorded again, what is owed is copied."""
        with self._mutex:
            if self._modes.mode is Mode.BITMAP:
                self._modes.happen(Event.ROOM_NEW if self._words[layout.W_FIRST_COPY] else Event.ROOM, reason)
        self.pending.set()

    # -- the copy ------------------------------------------------------------------------------------------------------

    @property
    def copy_owed(self) -> bool:
        """Tell whether a copy waits to be begun."""
        return self._words[layout.W_SYNC_STATE] == layout.SYNC_OWED

    @property
    def copying(self) -> bool:
        """Tell whether a copy is under way, up to the moment that its `sync_end` is durable."""
        return self._words[layout.W_SYNC_STATE] in (layout.SYNC_RUNNING, layout.SYNC_ENDING)

    def begin_copy(self) -> Mapping[str, str] | None:
        """Start the copy and return what its `sync_begin` says; None in BITMAP, or if it has begun. The mutex is held."""
        words = self._words
        if words[layout.W_SYNC_STATE] != layout.SYNC_OWED or self._modes.mode is Mode.BITMAP:
            return None
        owed = self.owed_bytes()
        words[layout.W_SYNC_TOTAL_BYTES] = owed
        words[layout.W_SYNC_STATE] = layout.SYNC_RUNNING
        return {"reason": self._modes.reason or "first copy", "owed_bytes": str(owed)}

    def end_copy(self) -> Mapping[str, str] | None:
        """Return what the `sync_end` says, None if something is owed or another copy was begun. The mutex is held.

        From here on the gaps count as closed: order that is lost now is a new gap.
        """
        words = self._words
        if not self.copying or self._modes.mode is Mode.BITMAP or self._paying_bytes or self._ring.next_owed(0, 1) is not None:
            return None
        words[layout.W_SYNC_STATE] = layout.SYNC_ENDING
        words[layout.W_GAP_OPEN] = 0
        return {"closes": self._ring.text("closes")}

    def finish_copy(self) -> bool:
        """Go to DATA, the `sync_end` being durable, unless order was lost or another copy begun meanwhile; tell whether it was done."""
        with self._mutex:
            words = self._words
            if words[layout.W_SYNC_STATE] != layout.SYNC_ENDING or self._modes.mode is Mode.BITMAP:
                return False
            self._ring.set_text("closes", "")
            words[layout.W_SYNC_STATE] = layout.SYNC_NONE
            words[layout.W_FIRST_COPY] = words[layout.W_RELAPSES] = 0
            self._modes.happen(Event.COPIED, COPIED)
            return True

    # -- paying --------------------------------------------------------------------------------------------------------

    def take(self, place: int, start_bytes: int, length_bytes_max: int) -> tuple[int, int] | None:
        """Return the next owed run at or after `start_bytes`; its bits are cleared.

        Its intent stands at `place` from now on: it is owed again if this process dies before `pay`. None as well while a copy waits to
        be begun: what closes a gap is what stands behind its `sync_begin`, readers may never see what comes before.
        """
        with self._mutex:
            if self.copy_owed:
                return None
            run = self._ring.next_owed(start_bytes, length_bytes_max)
            if run is None:
                return None
            _pack_intent(self._intents, place, run[0], run[1] - run[0], 1)
            self._paying, self._paying_bytes = run, run[1] - run[0]
            self._ring.settle(*run)
            return run

    def paid(self, length_bytes: int) -> None:
        """Hear that so much of the run has a position; called by the thread that took it."""
        self._paying_bytes = max(1, self._paying_bytes - length_bytes)

    def pay(self, place: int, unpaid: list[tuple[int, int]]) -> None:
        """End what `take` began: everything of the run has a position now, or is `unpaid` and owed again."""
        with self._mutex:
            for start_bytes, end_bytes in unpaid:
                self._ring.owe(start_bytes, end_bytes)
            self._paying, self._paying_bytes = None, 0
            _pack_intent(self._intents, place, 0, 0, 0)
