"""The backlog of a volume: payload captured or copied that Kafka has not acknowledged.

Counted by two words of the ring, what capture appended and what the publisher saw acknowledged. In BITMAP capture counts what it does not
record; the records that wait are summed up once then, and the publisher's word is kept right by that.
"""

from __future__ import annotations

from contextlib import suppress

from agent import ring as layout
from agent.modes import Mode
from agent.ring import VolumeRing
from stream.errors import IntegrityError
from stream.record import Kind


class Backlog:
    """Kept by a publication, under its mutex."""

    def __init__(self, ring: VolumeRing, pool: memoryview) -> None:
        self._ring = ring
        self._words = ring.words
        self._pool = pool
        self._waiting: int | None = None

    def payload_bytes(self, after: int, upto: int) -> int:
        """Return the payload of the records behind `after`, up to `upto`."""
        return sum(entry[3] for entry in self._ring.entries(self._pool, after + 1, upto) if entry[6] == Kind.WRITE)

    def acknowledged(self, payload_bytes: int) -> None:
        """Hear that so much more is durable."""
        self._words[layout.W_ACKED_BYTES] += payload_bytes
        if self._waiting is not None:
            self._waiting = max(0, self._waiting - payload_bytes)

    def bytes(self) -> int:
        """Return what waits. A kill between a record and its count leaves the words wrong; they are put right when nothing is left."""
        words = self._words
        acked, head = words[layout.W_ACKED], words[layout.W_HEAD]
        appended = words[layout.W_CAPTURED_BYTES] + words[layout.W_RESYNC_BYTES]
        if acked == head:
            self._waiting = None
            words[layout.W_ACKED_BYTES] = appended
            return 0
        if words[layout.W_MODE] != Mode.BITMAP:
            self._waiting = None
        elif self._waiting is None:
            with suppress(IntegrityError):  # capture has made the pool anew, and this one is attached to it in a moment
                self._waiting = self.payload_bytes(acked, head)
        if self._waiting is not None:
            words[layout.W_ACKED_BYTES] = appended - self._waiting
        return max(0, appended - words[layout.W_ACKED_BYTES])
