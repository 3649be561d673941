"""Modes of a volume (design section 1 and 8): what is promised now, how one mode follows another, and where that is written down.

The transitions are data; whoever notices something tells it as an `Event`, and nobody sets a mode. Every change has a time and a reason,
in the ring (so in the status) and in the log; the stream hears of it by `gap_begin`, `sync_begin` and `sync_end`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType

from agent import ring as layout
from agent.ring import VolumeRing
from stream.log import event as log_event

_log = logging.getLogger(__name__)


class Mode(IntEnum):
    """What is promised now, as the ring holds it.

    SYNC: first copy. DATA: write order is kept. BITMAP: order is lost, changed extents are written down. RESYNC: those are copied, while
    new writes are captured in order again. OFFLINE: the volume is not served.
    """

    OFFLINE = 0
    SYNC = 1
    DATA = 2
    BITMAP = 3
    RESYNC = 4


class Event(StrEnum):
    """What happens to a volume."""

    SERVED_IN_ORDER = "served, nothing is owed"
    SERVED_NEW = "served, the first copy is owed"
    SERVED_OWING = "served, a resync is owed"
    SERVED_UNTRACKED = "served, as a dead process left it in BITMAP"
    FULL = "the buffer is full"
    ROOM = "the buffer is empty again, the first copy is over"
    ROOM_NEW = "the buffer is empty again, the first copy is not over"
    RESYNC_OWED = "a resync is owed"
    COPIED = "everything owed is durable in Kafka"
    ENDED = "out of service"


TRANSITIONS: Mapping[tuple[Mode, Event], Mode] = MappingProxyType(
    {
        (Mode.OFFLINE, Event.SERVED_IN_ORDER): Mode.DATA,
        (Mode.OFFLINE, Event.SERVED_NEW): Mode.SYNC,
        (Mode.OFFLINE, Event.SERVED_OWING): Mode.RESYNC,
        (Mode.OFFLINE, Event.SERVED_UNTRACKED): Mode.BITMAP,
        (Mode.SYNC, Event.FULL): Mode.BITMAP,
        (Mode.DATA, Event.FULL): Mode.BITMAP,
        (Mode.RESYNC, Event.FULL): Mode.BITMAP,
        (Mode.BITMAP, Event.FULL): Mode.BITMAP,
        (Mode.BITMAP, Event.ROOM): Mode.RESYNC,
        (Mode.BITMAP, Event.ROOM_NEW): Mode.SYNC,
        (Mode.DATA, Event.RESYNC_OWED): Mode.RESYNC,
        (Mode.RESYNC, Event.RESYNC_OWED): Mode.RESYNC,
        (Mode.SYNC, Event.RESYNC_OWED): Mode.SYNC,
        (Mode.BITMAP, Event.RESYNC_OWED): Mode.BITMAP,
        (Mode.SYNC, Event.COPIED): Mode.DATA,
        (Mode.RESYNC, Event.COPIED): Mode.DATA,
        (Mode.OFFLINE, Event.ENDED): Mode.OFFLINE,
        (Mode.SYNC, Event.ENDED): Mode.OFFLINE,
        (Mode.DATA, Event.ENDED): Mode.OFFLINE,
        (Mode.BITMAP, Event.ENDED): Mode.OFFLINE,
        (Mode.RESYNC, Event.ENDED): Mode.OFFLINE,
    }
)


class ModeKeeper:
    """The mode of one volume. `happen` is called with the volume's mutex held; reading needs none."""

    def __init__(self, ring: VolumeRing) -> None:
        self._ring = ring
        self._words = ring.words
        self._volume = ring.path.stem

    @property
    def mode(self) -> Mode:
        return Mode(self._words[layout.W_MODE])

    @property
    def reason(self) -> str:
        return self._ring.text("mode_reason")

    def happen(self, event: Event, reason: str) -> Mode:
        """Go on to the mode that follows; return it. An event that the present mode does not know is our bug."""
        before = self.mode
        after = TRANSITIONS[before, event]
        if after != before or reason != self.reason:
            self._ring.set_text("mode_reason", reason)
            self._words[layout.W_MODE_SINCE_NS] = time.time_ns()
            self._words[layout.W_MODE] = after
            level = logging.WARNING if after is Mode.BITMAP else logging.INFO
            told = {"before": before.name, "after": after.name, "event": event.name.lower()}
            log_event(_log, level, "mode", volume=self._volume, reason=reason, **told)
        return after

    def say(self, reason: str) -> None:
        """Put the present mode's reason differently; its time stays."""
        self._ring.set_text("mode_reason", reason)

    def lay_down(self) -> None:
        """Forget what a dead process was in, before the volume is served anew."""
        self._words[layout.W_MODE] = Mode.OFFLINE
