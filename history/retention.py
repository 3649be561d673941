"""Retention: what to fold and what to delete, decided from a listing. Pure; `history.upkeep` carries it out.

Level k is folded into level k+1 as soon as a step of time is complete, so that any moment is opened from few segments. What is folded is
deleted when its moments are old enough:

    a segment of level k goes when the fold of level k+1 that holds its end is there and that fold's end is older than level k is kept

So all segments that lead from one end of level k+1 to the next go together, the newest first: whatever stays of them can still be reached.
What stays in any case: a pinned moment (it becomes an end of each level in turn, by a fold of its own), a leased segment, the newest
segment of level 0, where persist goes on. Ages are told by the newest record of the volume: a volume that nobody writes loses nothing.

Folds come before deletions, and deletions rely only on what the listing shows, so a kill between any two steps costs nothing, and two that
work at once make too many folds at worst.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from history.catalog import cover
from history.fold import SOURCES_MAX, FoldTask
from history.levels import AS_WRITTEN, SNAPSHOT
from history.moments import gap_open_at
from history.retention_table import RetentionTable
from history.segment import SegmentHeader, SegmentName, StoredMark
from stream.position import ZERO, Position
from stream.record import Kind

SNAPSHOT_AFTER = 8  # so many segments of the last level that are old are worth a new snapshot
SNAPSHOT_EVERY = 32  # so many that are not, if they are half as large as the last one: any moment is opened from few files


@dataclass(frozen=True, slots=True)
class Facts:
    """What retention must know of a segment beside its name."""

    last_time_ns: int
    gap_open: bool

    @classmethod
    def of(cls, header: SegmentHeader) -> Facts:
        return cls(header.coverage.last_capture_time_ns, bool(header.coverage.open_gaps))


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in the store of one volume. `facts` and `header` are asked for few segments, the rest is decided by name."""

    levels: Mapping[int, Sequence[SegmentName]]
    facts: Callable[[SegmentName], Facts]
    header: Callable[[SegmentName], SegmentHeader]
    sizes: Mapping[SegmentName, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Folds to be made, then, of what the listing shows already, segments to be deleted; both in this order."""

    folds: tuple[FoldTask, ...]
    deletes: tuple[SegmentName, ...]


def plan(
    listing: Listing,
    table: RetentionTable,
    *,
    pins: Collection[Position] = (),
    leased: Collection[SegmentName] = (),
    bookmarks_ns: int = 0,
    bytes_max: int = 0,
    now_ns_max: int | None = None,
) -> Plan:
    """Return what is due. `pins` are moments to be kept whatever their age, as bookmarks are up to `bookmarks_ns`; `leased` are segments
    that are read now; beyond `bytes_max` (0: no limit) the finest and oldest history goes before its time. No time later than `now_ns_max`
    counts as now: else a record with a false capture time would make all others old.

    Raises what `listing.facts` and `listing.header` raise.
    """
    if not listing.levels.get(AS_WRITTEN):
        return Plan((), ())
    return _Planner(listing, table, frozenset(pins), frozenset(leased), bookmarks_ns, bytes_max, now_ns_max).plan()


class _Planner:
    def __init__(
        self,
        listing: Listing,
        table: RetentionTable,
        pins: frozenset[Position],
        leased: frozenset[SegmentName],
        bookmarks_ns: int,
        bytes_max: int,
        now_ns_max: int | None,
    ) -> None:
        self._listing = listing
        self._table = table
        self._pins = pins
        self._leased = leased
        self._bookmarks_ns = bookmarks_ns
        self._levels = {level: sorted(listing.levels.get(level, ()), key=_last) for level in table.levels}
        newest_ns = listing.facts(self._levels[AS_WRITTEN][-1]).last_time_ns
        self._now_ns = newest_ns if now_ns_max is None else min(newest_ns, now_ns_max)
        self._excess_bytes = sum(listing.sizes.values()) - bytes_max if bytes_max else 0
        self._folds: list[FoldTask] = []
        self._deletes: list[SegmentName] = []

    def plan(self) -> Plan:
        levels = self._table.levels
        for below, level in pairwise(levels[:-1]):
            self._fold_next(below, level)
        for level, above in pairwise(levels):
            self._expire(level, above)
        self._expire_snapshots()
        return Plan(tuple(self._folds), tuple(self._deletes))

    def _fold_next(self, below: int, level: int) -> None:
        """Fold the next complete step of a level, if there is one; the one after it is found in the next listing."""
        reached = max((name.last for above in self._table.levels if above >= level for name in self._levels[above]), default=ZERO)
        waiting = [name for name in self._levels[below] if name.last > reached]
        span_ns = self._table.steps[level - 1].span_ns
        end: SegmentName | None = None
        step = None
        for name in waiting:
            facts = self._listing.facts(name)
            now = (facts.last_time_ns - 1) // span_ns
            if end is not None and now != step:
                break  # the step is over
            if not facts.gap_open:
                end, step = name, now
        else:
            return
        self._fold(below, level, end.last, reached)

    def _fold(self, below: int, level: int, through: Position, reached: Position) -> bool:
        """Plan a fold of a level from an end of it, or of one above, to a position; False if the level below does not lead there."""
        sources, at = cover({below: self._levels[below]}, through, self._listing.header, reached)
        after = next((name for above in self._table.levels[1:] for name in self._levels[above] if name.last == reached), None)
        if at != through or (after is None and sources[0].first <= reached):
            return False
        if below > AS_WRITTEN and len(sources) > SOURCES_MAX:
            sources = sources[:SOURCES_MAX]
            through = sources[-1].last
        self._folds.append(FoldTask(sources[0].volume, level, tuple(sources), through, after))
        return True

    def _expire(self, level: int, above: int) -> None:
        """Delete what level `above` holds and is old enough; before, make what is missing there."""
        folds = self._levels[above]
        ends = [name.last for name in folds]
        steps: dict[int, list[SegmentName]] = {}
        beyond: list[SegmentName] = []
        for name in self._levels[level]:
            step = bisect_left(ends, name.last)
            if step < len(ends):
                steps.setdefault(step, []).append(name)
            else:
                beyond.append(name)
        if above == SNAPSHOT:
            self._snapshot(level, beyond, needed=self._excess_bytes > 0 and not steps and not self._deletes)
        for step in sorted(steps):
            if not self._is_old(level, folds[step]) and self._excess_bytes <= 0:
                break
            follows = self._listing.header(folds[step]).coverage.follows
            bottom = max(follows, ends[step - 1]) if step else follows
            pins = [pin for pin in self._pinned(level, steps[step], folds[step]) if bottom < pin < ends[step]]
            if not self._keep(pins, level, above, bottom):
                self._delete(steps[step])

    def _is_old(self, level: int, name: SegmentName) -> bool:
        return self._now_ns - self._listing.facts(name).last_time_ns > self._table.keep_ns(level)

    def _pinned(self, level: int, names: Sequence[SegmentName], fold: SegmentName) -> list[Position]:
        """Return the moments to be kept among segments of a level that `fold` is made of, in order."""
        if level > AS_WRITTEN:
            return sorted(name.last for name in names if self._is_pinned(name))
        header = self._listing.header(fold) if self._bookmarks_ns or self._pins else None
        if header is None:
            return []
        wanted = {mark.position for mark in header.marks if self._is_kept_bookmark(mark)} | self._pins
        return sorted(position for position in wanted if position <= fold.last and not gap_open_at(header, position))

    def _is_pinned(self, name: SegmentName) -> bool:
        """Tell whether the end of a fold is a moment to be kept."""
        if name.last in self._pins or not self._bookmarks_ns:
            return name.last in self._pins
        marks = self._listing.header(name).marks
        return any(mark.position == name.last and self._is_kept_bookmark(mark) for mark in marks[-1:])

    def _is_kept_bookmark(self, mark: StoredMark) -> bool:
        return mark.kind == Kind.BOOKMARK and self._now_ns - mark.capture_time_ns <= self._bookmarks_ns

    def _keep(self, pins: Sequence[Position], level: int, above: int, bottom: Position) -> bool:
        """Plan folds of level `above` from its end `bottom` to these moments; tell whether there was any to be made."""
        needed = False
        for pin in pins:
            needed |= self._snapshot_at(level, pin) if above == SNAPSHOT else self._fold(level, above, pin, bottom)
        return needed

    def _snapshot(self, level: int, beyond: Sequence[SegmentName], *, needed: bool) -> None:
        """Plan a snapshot, if many segments are old, or many are there; or up to the first, if room is needed."""
        old = [name for name in beyond if self._is_old(level, name)]
        last = self._levels[SNAPSHOT][-1:]
        large = 2 * sum(map(self._size, beyond)) >= sum(map(self._size, last))
        if len(old) >= SNAPSHOT_AFTER:
            self._snapshot_at(level, old[min(len(old), SOURCES_MAX - 1) - 1].last)
        elif len(beyond) >= SNAPSHOT_EVERY and large:
            self._snapshot_at(level, beyond[SNAPSHOT_EVERY - 1].last)
        elif needed and len(beyond) > 1:
            self._snapshot_at(level, beyond[0].last)

    def _size(self, name: SegmentName) -> int:
        return self._listing.sizes.get(name, 0)

    def _snapshot_at(self, level: int, through: Position) -> bool:
        """Plan a snapshot that ends at a position, from the last one before it; False if nothing leads there."""
        base = [name for name in self._levels[SNAPSHOT] if name.last < through]
        reached = base[-1].last if base else ZERO
        folds = {one: names for one, names in self._listing.levels.items() if level <= one < SNAPSHOT}  # of a former table too
        sources, at = cover(folds, through, self._listing.header, reached)
        if at != through:
            return False
        sources = [*base[-1:], *sources][:SOURCES_MAX]
        self._folds.append(FoldTask(sources[0].volume, SNAPSHOT, tuple(sources), sources[-1].last))
        return True

    def _delete(self, names: Sequence[SegmentName]) -> None:
        newest = self._levels[AS_WRITTEN][-1]
        for name in reversed(names):
            if name not in self._leased and name != newest:
                self._deletes.append(name)
                self._excess_bytes -= self._size(name)

    def _expire_snapshots(self) -> None:
        """Delete the snapshots below the newest one that everything still kept goes on from, and what a former table left there."""
        last = self._table.levels[-2]
        deleted = set(self._deletes)
        kept = [name for level in self._table.levels[:-1] for name in self._levels[level] if name not in deleted]
        lowest = min((name.first for name in self._levels[last] if name not in deleted), default=min(name.first for name in kept))
        snapshots = self._levels[SNAPSHOT]
        base = max((name.last for name in snapshots if name.last < lowest), default=None)
        if base is not None:
            self._delete([name for name in snapshots if name.last < base and not self._is_pinned(name)])
            left = [name for level, names in self._listing.levels.items() if level not in self._table.levels for name in names]
            self._delete([name for name in sorted(left, key=_last) if name.last <= base and not self._is_pinned(name)])


def _last(name: SegmentName) -> tuple[Position, Position]:
    return name.last, name.first
