"""What the segments of a volume can restore: which positions a chain of them leads to from the begin of the history, and by which.

Pure, and mostly by names: headers are asked for only where names do not tell (a new epoch, a recorded gap), and of the chain that is
chosen. A segment of level 0 leads to each of its positions, a fold to its end alone. Segments may overlap (design rule 27): one may be
laid over whatever reaches into it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from history.segment import SegmentHeader, SegmentName, in_order
from stream.position import ZERO, Position

Headers = Callable[[SegmentName], SegmentHeader | None]
"""The header of a segment, None if it is damaged: then it leads nowhere by itself."""
NEIGHBOURS_MAX = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of a plan, applied up to and with `through`."""

    name: SegmentName
    through: Position


class Reach:
    """Answer for one listing. `written` are the segments of level 0 that contribute, `folds` the others, both sorted by last position."""

    def __init__(self, names: Iterable[SegmentName], header: Headers) -> None:
        self._header = header
        names = list(names)
        self.written: list[SegmentName] = in_order(name for name in names if name.level == 0)
        self.folds: list[SegmentName] = sorted((name for name in names if name.level > 0), key=attrgetter("last", "level"))
        self._lows: list[Position] = [ZERO]  # disjoint, sorted: everything from a low to its high can be restored
        self._highs: list[Position] = [ZERO]
        for name in sorted([*self.written, *self.folds], key=attrgetter("last")):
            self._extend(name)

    def restorable(self, position: Position) -> bool:
        """Tell whether a chain of segments ends exactly there."""
        index = bisect_left(self._highs, position)
        return index < len(self._highs) and self._lows[index] <= position

    def lowest_in(self, name: SegmentName) -> Position | None:
        """Return the first position that can be restored with this segment of level 0, at or before its first; None if none can."""
        index = bisect_left(self._highs, name.last)
        if index < len(self._highs) and self._lows[index] < name.last:
            return self._lows[index]
        return None

    def holding(self, position: Position) -> SegmentName | None:
        """Return the segment of level 0 that holds a record of this position, None if none does."""
        index = bisect_left(self.written, position, key=attrgetter("last"))
        found = self.written[index] if index < len(self.written) else None
        return found if found is not None and found.first <= position else None

    def chain(self, position: Position) -> list[Part] | None:
        """Return the fewest segments that lead to a position, oldest first, proved by their headers; None if none do."""
        usable = [name for name in (*self.written, *self.folds) if name.first <= position and (name.level == 0 or name.last <= position)]
        usable.sort(key=attrgetter("first", "last"))
        parts: list[Part] = []
        at, index, best = ZERO, 0, None
        while at < position:
            while index < len(usable) and self._names_join(at, usable[index]):
                best = _farther(best, usable[index], position)
                index += 1
            chosen = best if best is not None and best.last > at else self._by_headers(at, usable[index:], position)
            if chosen is None:
                return None
            at = min(chosen.last, position)
            parts.append(Part(chosen, at))
        return parts

    def begins(self, name: SegmentName) -> Position:
        """Return the position that a segment may be laid upon: what it follows, or where a gap is recorded before its first record."""
        header = self._header(name)
        if header is None:
            return name.last
        return begin_of(header)

    def _extend(self, name: SegmentName) -> None:
        """Note what a segment adds; those that end before it are noted already."""
        low = self._lowest_join(name)
        if low is None:
            return
        if name.level > 0:
            low = name.last
        lows, highs = self._lows, self._highs
        while lows and lows[-1] >= low:
            lows.pop()
            highs.pop()
        if highs and highs[-1] >= low:
            low = lows.pop()
            highs.pop()
        lows.append(low)
        highs.append(name.last)

    def _lowest_join(self, name: SegmentName) -> Position | None:
        """Return the least position that can be restored without this segment and that it may be laid upon, None if there is none."""
        floor = Position(name.first.epoch, name.first.sequence - 1)
        if self.restorable(floor):
            return floor
        found = self._lowest_from(self.begins(name))
        if found is not None and found < name.last:
            return found
        bridge = self._bridge(name)
        return bridge if bridge is not None and self.restorable(bridge) else None

    def _lowest_from(self, position: Position) -> Position | None:
        index = bisect_left(self._highs, position)
        return max(self._lows[index], position) if index < len(self._highs) else None

    def _bridge(self, name: SegmentName) -> Position | None:
        """Return the end of the segment of level 0 before this one if a gap is recorded there, behind which the next message of the journal
        may stand elsewhere, and this one begins with that message."""
        index = bisect_left(self.written, name.first, key=attrgetter("last"))
        before, header = self._header(self.written[index - 1]) if index else None, self._header(name)
        if before is None or header is None or before.origin.topic_id != header.origin.topic_id:
            return None
        adjoins = header.origin.first_kafka_offset <= before.origin.next_kafka_offset
        return before.name.last if adjoins and any(gap.position == before.name.last for gap in before.gaps) else None

    @staticmethod
    def _names_join(at: Position, name: SegmentName) -> bool:
        return name.first <= at or name.first == at.next()

    def _by_headers(self, at: Position, ahead: Sequence[SegmentName], position: Position) -> SegmentName | None:
        """Return the best of the next segments that say themselves that they may be laid upon `at`."""
        groups = groupby(ahead, key=attrgetter("first"))
        for number, (_, group) in enumerate(groups):
            best = None
            for name in group:
                if self.begins(name) <= at or self._bridge(name) == at:
                    best = _farther(best, name, position)
            if best is not None:
                return best
            if number >= NEIGHBOURS_MAX:
                return None
        return None


def begin_of(header: SegmentHeader) -> Position:
    """Return the position that a segment may be laid upon: what it follows, or where a gap is recorded before its first record."""
    return min([header.coverage.follows, *(gap.position for gap in header.gaps if gap.position < header.name.first)])


def _farther(best: SegmentName | None, name: SegmentName, position: Position) -> SegmentName:
    """Return the one that leads farther; of equals the fold, which is smaller."""
    if best is None:
        return name
    mine, others = (min(name.last, position), name.level), (min(best.last, position), best.level)
    return name if mine > others else best
