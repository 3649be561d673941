"""Lag of a volume: how much Kafka and the targets lack, and how old the oldest of it is.

A publication tells it what it gives to Kafka; the publisher's report asks. Ages come from capture times, kept within what the report
itself saw of the head on the monotonic clock: a wall clock that jumps, which capture times follow forward, ages nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque

from agent import ring as layout
from agent.ring import VolumeRing
from stream.errors import HostoffloadError
from stream.position import Position

UNAPPLIED_BATCHES_MAX = 65_536
SIGHTS_MAX = 4096


class Lag:
    """The oldest record that somebody lacks. `given` is called by the publishing thread, all else by the reporting one."""

    def __init__(self, ring: VolumeRing, pool: memoryview) -> None:
        self._ring = ring
        self._words = ring.words
        self._pool = pool
        self._unapplied: deque[tuple[int, int]] = deque(maxlen=UNAPPLIED_BATCHES_MAX)
        if ring.words[layout.W_ACKED]:  # of what a former process published only the newest capture time is known
            self._unapplied.append((0, ring.words[layout.W_CAPTURE_NS]))
        self._seen_heads: list[int] = []
        self._seen_at_ns: list[int] = []

    def given(self, first: int, captured_ns: int) -> None:
        """Hear that Kafka was given a batch."""
        self._unapplied.append((first, captured_ns))

    def oldest_after(self, position: Position) -> tuple[Position, int] | None:
        """Return position and capture time of the oldest record after `position`, as far as it is known; None if there is none."""
        words = self._words
        head = words[layout.W_HEAD]
        if position.epoch > words[layout.W_EPOCH] or (position.epoch == words[layout.W_EPOCH] and position.sequence >= head):
            return None
        wanted = position.sequence + 1
        if self._unapplied:
            first, captured_ns = self._unapplied[max(0, bisect_right(self._unapplied, wanted, key=_first) - 1)]
            if first <= max(wanted, words[layout.W_ACKED]):
                return Position(words[layout.W_EPOCH], wanted), captured_ns
        return self.oldest_unacked()

    def forget(self, position: Position) -> None:
        """Forget the capture times of what is not after `position`; whoever asks for it still is told what was seen of the head."""
        while len(self._unapplied) > 1 and self._unapplied[1][0] <= position.sequence + 1:
            self._unapplied.popleft()

    def oldest_unacked(self) -> tuple[Position, int] | None:
        """Return position and capture time of the oldest record that Kafka has not acknowledged."""
        sequence, head = self._words[layout.W_ACKED] + 1, self._words[layout.W_HEAD]
        if sequence > head:
            return None
        try:
            entry = next(self._ring.entries(self._pool, sequence, sequence))
        except HostoffloadError:
            return None  # acknowledged and freed since just now
        return Position(self._words[layout.W_EPOCH], sequence), entry[1]

    def look(self, monotonic_ns: int) -> None:
        """See how far the head is now; called at every report."""
        if len(self._seen_heads) == SIGHTS_MAX:
            del self._seen_heads[::2], self._seen_at_ns[::2]  # what is long ago need not be known so well
        self._seen_heads.append(self._words[layout.W_HEAD])
        self._seen_at_ns.append(monotonic_ns)

    def age_ns(self, sequence: int, captured_ns: int, now_ns: int, monotonic_ns: int) -> int:
        """Return how old a record is, both times being of the agent's clock; never less or more than what was seen allows."""
        age = max(0, now_ns - captured_ns)
        at = bisect_left(self._seen_heads, sequence)  # the first sight that shows the record
        if at > 0:
            age = min(age, monotonic_ns - self._seen_at_ns[at - 1])
        if at < len(self._seen_heads):
            age = max(age, monotonic_ns - self._seen_at_ns[at])
        return age


def _first(batch: tuple[int, int]) -> int:
    return batch[0]
