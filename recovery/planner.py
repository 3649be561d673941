"""The planner: from what the store and the journal's tail hold, and the wanted point, to a plan, or to a conflict that explains itself.

Pure: `Facts` are asked, nothing is changed, no clock is read. Called by `recovery.opening`. A point is offered only if a chain of segments
leads to it from the begin of the history, no gap is open there, and it does not stand inside a split write (design rule 6). A conflict is
a RecoveryError, or an IntegrityError where a damaged segment stands in the way; it names the nearest good points before and after.
Names are looked at first; headers only of segments that matter, blocks only where a point must be found inside one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NoReturn, Protocol, TypeVar

from history.doubts import Doubt, in_doubt
from history.segment import SegmentHeader, SegmentName
from recovery.gaps import sound_records
from recovery.plan import Moment, Plan, told_nearest
from recovery.point import Ago, AtBookmark, AtPosition, AtTime, Wanted
from recovery.reach import Reach
from stream.errors import IntegrityError, RecoveryError
from stream.position import ZERO, Position
from stream.record import FLAG_MORE, Batch, Kind

LABELS_TOLD_MAX = 8
_Got = TypeVar("_Got")


class Facts(Protocol):
    """What is known of a volume's history; segments of the store and of the journal's tail alike. Raises IntegrityError for what is
    damaged."""

    volume: str

    def doubts(self) -> Sequence[Doubt]:
        """Return the stretches in which the store is known to be wrong (design rule 26)."""
        ...

    def names(self) -> Sequence[SegmentName]:
        """Return all segments, of every level."""
        ...

    def header(self, name: SegmentName) -> SegmentHeader: ...

    def columns(self, name: SegmentName, block: int) -> Batch:
        """Return the records of a block; their payload may be left out."""
        ...


class Planner:
    """Plan points of one listing of the facts.

    `lacking` are segments known to be of no use; `damaged` are these and what was found wrong since, with what is wrong with each.
    """

    def __init__(self, facts: Facts, lacking: dict[SegmentName, IntegrityError] | None = None) -> None:
        self.volume = facts.volume
        self.damaged = dict(lacking or {})
        self.doubts = tuple(facts.doubts())
        self._facts = facts
        self._lacking = frozenset(self.damaged)
        self.reach = Reach([name for name in facts.names() if name not in self._lacking], self.header)
        self._last = max((name.last for name in facts.names()), default=ZERO)

    def plan(self, wanted: Wanted, now_ns: int = 0) -> Plan:
        """Return the plan for a wanted point. Raises RecoveryError, IntegrityError."""
        if not self.reach.written and not self.reach.folds:
            self._refuse_empty()
        if isinstance(wanted, Ago):
            wanted = AtTime(max(0, now_ns - wanted.age_ns))
        if isinstance(wanted, AtPosition):
            return self._exactly(wanted.position, f"{self.volume} can't be recovered to {wanted.position}")
        if isinstance(wanted, AtBookmark):
            position = self.bookmarked(wanted.label)
            return self._exactly(position, f"{self.volume} can't be recovered to the bookmark {wanted.label!r} at {position}")
        bound, ceiling = self.bound_of(wanted.time_ns) if isinstance(wanted, AtTime) else (self._last, self._last)
        found = self.before(bound)
        if self.damage_is_new:
            return self.without({}).plan(wanted)
        self._check_undamaged(found, ceiling)
        if found is None:
            when = f"at or before {wanted}" if isinstance(wanted, AtTime) else "yet"
            self._conflict(f"{self.volume} has no recovery point {when}", "no consistent stretch is stored there", bound)
        return self._assemble(found, f"{self.volume} can't be recovered to {found}")

    def before(self, bound: Position) -> Position | None:
        """Return the last recovery point at or before a position, None if there is none."""
        best = next((name.last for name in reversed(_through(self.reach.folds, bound)) if self.fold_offers(name)), None)
        written = self.reach.written
        for name in reversed(written[: bisect_right(written, bound, key=attrgetter("first"))]):
            if best is not None and name.last <= best:
                break
            if (found := self._last_in(name, bound)) is not None:
                return found if best is None else max(found, best)
        return best

    def after(self, bound: Position) -> Position | None:
        """Return the first recovery point after a position, None if there is none."""
        folds, written = self.reach.folds, self.reach.written
        ahead = folds[bisect_right(folds, bound, key=attrgetter("last")) :]
        best = next((name.last for name in ahead if self.fold_offers(name)), None)
        for name in written[bisect_right(written, bound, key=attrgetter("last")) :]:
            if best is not None and name.first >= best:
                break
            if (found := self._first_in(name, bound)) is not None:
                return found if best is None else min(found, best)
        return best

    def offers(self, position: Position) -> bool:
        """Tell whether a position is a recovery point."""
        return self._why_not(position) is None

    def moment(self, position: Position) -> Moment:
        """Return a recovery point with its capture time."""
        if (place := self._place(position)) is not None:
            name, header, record = place
            if position == name.last:
                return Moment(position, header.coverage.last_capture_time_ns)
            block, index = header.block_of(record)
            columns = self._seen(name, lambda: self._facts.columns(name, block))
            if columns is not None:
                return Moment(position, columns.capture_time_ns + columns.ages_ns[index])
        for name in self.reach.folds:
            if name.last == position and (header := self.header(name)) is not None:
                return Moment(position, header.coverage.last_capture_time_ns)
        return Moment(position, 0)

    def without(self, damaged: dict[SegmentName, IntegrityError]) -> Planner:
        """Return a planner that makes no use of these segments."""
        return Planner(self._facts, self.damaged | damaged)

    def nearest(self, position: Position) -> tuple[Moment | None, Moment | None]:
        """Return the nearest recovery points before and after a position that itself is none."""
        before = self.before(Position(position.epoch, position.sequence - 1)) if position.sequence else None
        after = self.after(position)
        return (None if before is None else self.moment(before)), (None if after is None else self.moment(after))

    # -- one point -----------------------------------------------------------------------------------------------------

    def _exactly(self, position: Position, sentence: str) -> Plan:
        reason = self._why_not(position)
        if reason is not None and self.damage_is_new:
            return self.without({})._exactly(position, sentence)
        if reason is not None:
            self._conflict(sentence, reason, position)
        return self._assemble(position, sentence)

    def _why_not(self, position: Position) -> str | None:
        """Return why a position is no recovery point, None if it is one."""
        if any(name.last == position and self.fold_offers(name) for name in self.reach.folds):
            return None
        if in_doubt(self.doubts, position) is not None:
            return "a verification found the store to show something else there than the volume had"
        if position > self._last:
            return f"nothing after {self._last} is stored"
        place = self._place(position)
        if place is None:
            if any(name.first <= position <= name.last for name in self.reach.folds):
                return "the writes around it were folded: only the end of a fold is kept"
            return "no record of that position is stored"
        name, header, record = place
        if not any(start <= record < stop for start, stop in self.sound(header)):
            return "order was lost there: a gap is open"
        if self._unsplit(name, header, record, record, -1) is None:
            return "it stands inside a split write"
        if not self.reach.restorable(position):
            return "the history before it is not stored"
        return None

    def _assemble(self, position: Position, sentence: str) -> Plan:
        parts = self.reach.chain(position)
        headers = [] if parts is None else [self.header(part.name) for part in parts]
        if parts is None or None in headers:
            return self._around(position, sentence)
        for part, header in zip(reversed(parts), reversed(headers), strict=True):
            size_bytes = _size_told(header, part.through)
            if size_bytes is not None:
                return Plan(self.volume, self.moment(position), size_bytes, tuple(parts))
        return self._conflict(sentence, "no mark tells how large the volume was then", position)

    def _around(self, position: Position, sentence: str) -> Plan:
        """Plan without the segments found damaged since; their damage is told if nothing else leads there."""
        if self.damage_is_new:
            return self.without({})._exactly(position, sentence)
        return self._conflict(sentence, "the history before it is not stored", position)

    def bookmarked(self, label: str) -> Position:
        """Return the position of the newest bookmark of this label."""
        known: dict[str, None] = {}
        for name in [*reversed(self.reach.written), *reversed(self.reach.folds)]:
            header = self.header(name)
            marks = [] if header is None else [one for one in header.marks if one.kind == Kind.BOOKMARK]
            for one in reversed(marks):
                if one.attributes.get("label") == label:
                    return one.position
                known[one.attributes.get("label", "")] = None
        self._raise_if_damaged(self._damage(), f"The bookmark {label!r} of {self.volume} can't be looked for")
        told = ", ".join(list(known)[:LABELS_TOLD_MAX]) or "none"
        raise RecoveryError(f"{self.volume} has no bookmark {label!r}", hint=f"Its bookmarks: {told}.", volume=self.volume)

    def bound_of(self, time_ns: int) -> tuple[Position, Position]:
        """Return the last stored position captured at or before a time, and one that what was captured then does not lie beyond, whatever
        is damaged."""
        bound, ceiling = ZERO, self._last
        for names in (self.reach.folds, self.reach.written):
            index = bisect_right(names, time_ns, key=self._ends_at)
            bound = max(bound, names[index - 1].last) if index else bound
            ceiling = min(ceiling, names[index].last) if index < len(names) else ceiling
        written = self.reach.written
        index = bisect_right(written, time_ns, key=self._ends_at)
        header = self.header(written[index]) if index < len(written) else None
        if header is None or header.coverage.first_capture_time_ns > time_ns:
            return bound, ceiling
        block = bisect_right(header.blocks, time_ns, key=attrgetter("capture_time_ns")) - 1
        columns = self._seen(written[index], lambda: self._facts.columns(written[index], block))
        if columns is None:
            return bound, ceiling
        count = bisect_right(columns.ages_ns, time_ns - columns.capture_time_ns)
        bound = max(bound, Position(columns.epoch, columns.first_sequence + count - 1))
        return bound, bound

    def _ends_at(self, name: SegmentName) -> int:
        header = self.header(name)
        return 0 if header is None else header.coverage.last_capture_time_ns

    # -- points inside a segment ---------------------------------------------------------------------------------------

    def fold_offers(self, name: SegmentName) -> bool:
        """Tell whether a fold's end is a recovery point."""
        header = self.header(name)
        sound = header is not None and not header.coverage.open_gaps and in_doubt(self.doubts, name.last) is None
        return sound and self.reach.restorable(name.last)

    def sound(self, header: SegmentHeader) -> list[tuple[int, int]]:
        """Return the ranges `[start, stop)` of a segment's records at which no gap is open and nothing is in doubt."""
        return sound_records(header, self.doubts)

    def _last_in(self, name: SegmentName, bound: Position) -> Position | None:
        """Return the last recovery point of a segment of level 0 at or before a position."""
        return self._first_of(name, lambda header, low: reversed(_clipped(self.sound(header), low, header.records_through(bound))), -1)

    def _first_in(self, name: SegmentName, bound: Position) -> Position | None:
        """Return the first recovery point of a segment of level 0 after a position."""
        return self._first_of(
            name, lambda header, low: _clipped(self.sound(header), max(low, header.records_through(bound)), header.records), +1
        )

    def _first_of(self, name: SegmentName, ranges: Callable[[SegmentHeader, int], Iterable[tuple[int, int]]], step: int) -> Position | None:
        lowest = self.reach.lowest_in(name)
        header = self.header(name) if lowest is not None else None
        if header is None or lowest is None:
            return None
        low = max(0, header.records_through(lowest) - 1) if lowest >= name.first else 0
        for start, stop in ranges(header, low):
            record = self._unsplit(name, header, start, stop - 1, step)
            if record is not None:
                return position_of(header, record)
        return None

    def _unsplit(self, name: SegmentName, header: SegmentHeader, low: int, high: int, step: int) -> int | None:
        """Return the last (step -1) or first (+1) record of `[low, high]` after which no write is left half; None if there is none."""
        record = high if step < 0 else low
        if record == header.records - 1:
            return record if low <= high else None  # no segment ends inside a split write
        while low <= record <= high:
            block, index = header.block_of(record)
            columns = self._seen(name, lambda block=block: self._facts.columns(name, block))
            if columns is None:
                return None
            while 0 <= index < columns.count and low <= record <= high:
                if not columns.flags[index] & FLAG_MORE:
                    return record
                index, record = index + step, record + step
        return None

    def _place(self, position: Position) -> tuple[SegmentName, SegmentHeader, int] | None:
        """Return the segment of level 0 that has a record of this position, its header, and the record's number."""
        name = self.reach.holding(position)
        header = self.header(name) if name is not None else None
        if name is None or header is None:
            return None
        record = header.records_through(position) - 1
        return (name, header, record) if record >= 0 and position_of(header, record) == position else None

    # -- damage and conflicts ------------------------------------------------------------------------------------------

    def header(self, name: SegmentName) -> SegmentHeader | None:
        """Return a segment's header, None if it is damaged, which is noted."""
        return self._seen(name, lambda: self._facts.header(name))

    def _seen(self, name: SegmentName, look: Callable[[], _Got]) -> _Got | None:
        """Return what is seen of a segment, None if it is damaged, which is noted."""
        if name in self._lacking:
            return None
        try:
            return look()
        except IntegrityError as error:
            self.damaged[name] = error
            return None

    @property
    def damage_is_new(self) -> bool:
        """Tell whether damage was found that this planner still counted on."""
        return not set(self.damaged) <= self._lacking

    def _damage(self, above: Position = ZERO, through: Position | None = None) -> IntegrityError | None:
        """Return what is wrong with the newest damaged segment that holds positions of `(above, through]`."""
        for name in sorted(self.damaged, key=attrgetter("last"), reverse=True):
            if name.last > above and (through is None or name.first <= through):
                return self.damaged[name]
        return None

    def _check_undamaged(self, found: Position | None, bound: Position) -> None:
        """Refuse an older point than the one that was asked for where the difference is damage."""
        damage = self._damage(found or ZERO, bound)
        if damage is not None:
            self._raise_if_damaged(damage, f"{self.volume} can't be recovered to {bound}", self.without({}).nearest(bound))

    def _raise_if_damaged(
        self, damage: IntegrityError | None, sentence: str, nearest: tuple[Moment | None, Moment | None] = (None, None)
    ) -> None:
        if damage is not None:
            raise IntegrityError(
                f"{sentence}: {damage.sentence}",
                hint=f"{told_nearest(*nearest)} {damage.hint}",
                **damage.facts,
                volume=self.volume,
                before=nearest[0],
                after=nearest[1],
            ) from damage

    def _conflict(self, sentence: str, reason: str, position: Position) -> NoReturn:
        """Raise what says why there is no such point, and where the nearest good ones are."""
        planner = self.without({}) if self.damage_is_new else self
        nearest = planner.nearest(position)
        around = (nearest[0].position if nearest[0] else ZERO), (nearest[1].position if nearest[1] else None)
        self._raise_if_damaged(planner._damage(*around), sentence, nearest)
        raise RecoveryError(
            f"{sentence}: {reason}",
            hint=told_nearest(*nearest),
            volume=self.volume,
            position=position,
            reason=reason,
            before=nearest[0],
            after=nearest[1],
        )

    def _refuse_empty(self) -> NoReturn:
        self._raise_if_damaged(self._damage(), f"{self.volume} can't be recovered")
        raise RecoveryError(
            f"Nothing is stored of {self.volume}", hint="See `hostoffload volume list` and cx.store_url.", volume=self.volume
        )


def _size_told(header: SegmentHeader | None, through: Position) -> int | None:
    """Return the size of the volume that the last mark at or before a position tells."""
    for mark in reversed(header.marks if header is not None else ()):
        if mark.position <= through and mark.size_bytes is not None:
            return mark.size_bytes
    return None


def _through(names: Sequence[SegmentName], bound: Position) -> Sequence[SegmentName]:
    return names[: bisect_right(names, bound, key=attrgetter("last"))]


def _clipped(ranges: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    return [(max(start, low), min(stop, high)) for start, stop in ranges if max(start, low) < min(stop, high)]


def position_of(header: SegmentHeader, record: int) -> Position:
    """Return the position of a record by its number in a segment."""
    block, index = header.block_of(record)
    first = header.blocks[block].first
    return Position(first.epoch, first.sequence + index)
