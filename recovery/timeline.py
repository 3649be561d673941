"""The timeline of a volume: where one may go back to, where not and why, and what happened on the way.

Pure, made from a planner and so from segment headers, those of the journal's tail included; blocks are read only where a stretch ends.
Shown by `points`, walked through by drills. Every moment in it can be restored; what can't is in a gap, or left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from history.segment import SegmentHeader, SegmentName, StoredGap, StoredMark
from recovery.gaps import OpenGaps, gap_events
from recovery.plan import Moment
from recovery.planner import Planner, position_of
from recovery.reach import begin_of
from stream.journal import OpenGap
from stream.position import EPOCH_MAX, ZERO, Position
from stream.record import Kind

NOT_STORED = "not_stored"
IN_DOUBT = "in_doubt"
END = Position(EPOCH_MAX, 0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """From first to last every write is a recovery point."""

    first: Moment
    last: Moment
    records: int
    flushes: int


@dataclass(frozen=True, slots=True)
class FoldEnd:
    """A recovery point by itself: the end of a fold, whose inside is kept no more."""

    moment: Moment
    level: int


@dataclass(frozen=True, slots=True)
class Gap:
    """No recovery point lies behind `after`, up to `until`, which is one again (None: it is open)."""

    reason: str
    missing: str
    after: Position
    begun_at_ns: int
    until: Position | None = None
    ended_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A named moment; `offered` tells whether it can still be restored."""

    label: str
    group: str
    moment: Moment
    offered: bool


@dataclass(frozen=True, slots=True)
class Round:
    """A round of verification: `chunks` digests of the source stand between first and last; `complete`: they cover all of it."""

    name: str
    first: Moment
    last: Moment
    chunks: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """Everything in order. `damaged` are segments that can't be read, with what is wrong."""

    volume: str
    stretches: tuple[Stretch, ...]
    fold_ends: tuple[FoldEnd, ...]
    gaps: tuple[Gap, ...]
    bookmarks: tuple[Bookmark, ...]
    rounds: tuple[Round, ...]
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Moment | None:
        """Return the oldest recovery point."""
        return min(self._ends(), key=attrgetter("position"), default=None)

    @property
    def latest(self) -> Moment | None:
        """Return the newest recovery point."""
        return max(self._ends(), key=attrgetter("position"), default=None)

    def _ends(self) -> Iterator[Moment]:
        for stretch in self.stretches:
            yield stretch.first
            yield stretch.last
        for end in self.fold_ends:
            yield end.moment


def timeline(planner: Planner, after: Position = ZERO, through: Position = END) -> Timeline:
    """Return the timeline of `(after, through]`; only headers of segments that reach into it are read."""
    written = [name for name in planner.reach.written if name.last > after and name.first <= through]
    folds = [name for name in planner.reach.folds if name.last > after and name.first <= through]
    headers = [header for name in (*written, *folds) if (header := planner.header(name)) is not None]
    if planner.damage_is_new:  # what is behind a damaged segment may lead nowhere
        return timeline(planner.without({}), after, through)
    stretches = tuple(_stretches(planner, written, after, through))
    gaps = [*_gaps(headers), *_not_stored(planner, written), *_in_doubt(planner)]
    return Timeline(
        planner.volume,
        stretches,
        tuple(_fold_ends(planner, folds, stretches, after, through)),
        tuple(sorted((gap for gap in gaps if gap.after <= through and (gap.until or END) > after), key=attrgetter("after"))),
        tuple(_bookmarks(planner, headers, after, through)),
        tuple(_rounds(headers, after, through)),
        {str(name): error.sentence for name, error in planner.damaged.items()},
    )


def flushes(planner: Planner, after: Position, through: Position) -> Iterator[Position]:
    """Yield the recovery points of `(after, through]` at which the application had asked for durability, in order."""
    covered = after
    for name in planner.reach.written:
        if name.last <= covered or name.first > through:
            continue
        lowest, header = planner.reach.lowest_in(name), planner.header(name)
        if lowest is None or header is None:
            continue
        ranges = planner.sound(header)
        for record in header.flushes:
            position = position_of(header, record)
            if max(covered, lowest) < position <= through and any(start <= record < stop for start, stop in ranges):
                yield position
        covered = max(covered, name.last)


def _stretches(planner: Planner, names: list[SegmentName], after: Position, through: Position) -> Iterator[Stretch]:
    """Join what neighbouring segments offer."""
    first: Position | None = None
    last, records, flushed, covered = ZERO, 0, 0, after
    for name in names:
        lowest, header = planner.reach.lowest_in(name), planner.header(name)
        if lowest is None or header is None:
            continue
        low = max(lowest, covered)
        begin = header.records_through(low) - (lowest == low and lowest >= name.first and covered < lowest)
        end = header.records_through(through)
        for start, stop in [(max(start, begin), min(stop, end)) for start, stop in planner.sound(header)]:
            if start >= stop:
                continue
            goes_on = first is not None and last == covered and start == begin and lowest <= last
            if first is not None and not goes_on:
                yield from _settled(planner, first, last, records, flushed)
                first = None
            if first is None:
                first, records, flushed = position_of(header, start), 0, 0
            last = position_of(header, stop - 1)
            records += stop - start
            flushed += sum(start <= record < stop for record in header.flushes)
        covered = max(covered, name.last)
    if first is not None:
        yield from _settled(planner, first, last, records, flushed)


def _settled(planner: Planner, first: Position, last: Position, records: int, flushed: int) -> Iterator[Stretch]:
    """Yield the stretch between the first and the last of these positions that no split write is open at, if there are such."""
    begin = planner.after(Position(first.epoch, first.sequence - 1))
    end = planner.before(last)
    if begin is not None and end is not None and first <= begin <= end <= last:
        yield Stretch(planner.moment(begin), planner.moment(end), records, flushed)


def _fold_ends(
    planner: Planner, names: list[SegmentName], stretches: tuple[Stretch, ...], after: Position, through: Position
) -> Iterator[FoldEnd]:
    for position, same in groupby(names, key=attrgetter("last")):
        if not after < position <= through or any(one.first.position <= position <= one.last.position for one in stretches):
            continue
        offering = [name for name in same if planner.fold_offers(name)]
        if offering:
            yield FoldEnd(planner.moment(position), max(name.level for name in offering))


def _gaps(headers: list[SegmentHeader]) -> list[Gap]:
    """Return every gap that marks and headers tell of, counted over the whole of them."""
    events: dict[tuple[Position, int, str], StoredMark | StoredGap | SegmentHeader] = {}
    for header in headers:
        for one in gap_events(header):
            missing = isinstance(one.event, StoredGap)
            events[(one.position, 1 if missing else 0, one.event.reason if isinstance(one.event, StoredGap) else "")] = one.event
        events[(begin_of(header), 2, str(header.name))] = header
    open_gaps, told, closed = OpenGaps(), dict[Position, str](), list[Gap]()
    for _, event in sorted(events.items()):
        before = dict(open_gaps.open)
        if isinstance(event, SegmentHeader):
            noted = [gap for gap in before.values() if gap.position >= begin_of(event)]  # which its header may not count yet
            open_gaps = OpenGaps([*event.coverage.open_gaps_before, *noted])
            where, when = event.name.first, event.coverage.first_capture_time_ns
        else:
            open_gaps.apply(event)
            where, when = event.position, event.at_ns if isinstance(event, StoredGap) else event.capture_time_ns
        if isinstance(event, StoredGap):
            told[event.position] = event.missing
        for key, gap in before.items():
            if key not in open_gaps.open:
                closed.append(_gap(gap, told, where, when))
    return closed + [_gap(gap, told) for gap in open_gaps.open.values()]


def _gap(gap: OpenGap, told: dict[Position, str], until: Position | None = None, ended_at_ns: int | None = None) -> Gap:
    return Gap(gap.reason, told.get(gap.position, ""), gap.position, gap.begun_at_ns, until, ended_at_ns)


def _not_stored(planner: Planner, names: list[SegmentName]) -> Iterator[Gap]:
    """Yield the stretches of records that nothing leads to, because what stood before them is not in the store."""
    begun: SegmentHeader | None = None
    for name in names:
        lowest, header = planner.reach.lowest_in(name), planner.header(name)
        if header is None or (lowest is None and begun is not None):
            continue
        lost = lowest is None or lowest > name.first
        if lost and begun is None:
            begun = header
        if begun is not None and lowest is not None:
            yield _unreached(begun, planner.moment(lowest) if lowest >= name.first else None)
            begun = None
    if begun is not None:
        yield _unreached(begun, None)


def _unreached(begun: SegmentHeader, until: Moment | None) -> Gap:
    coverage = begun.coverage
    ends = (until.position, until.capture_time_ns) if until is not None else (None, None)
    return Gap(NOT_STORED, f"what stood before {begun.name.first}", coverage.follows, coverage.first_capture_time_ns, *ends)


def _in_doubt(planner: Planner) -> Iterator[Gap]:
    """Yield the stretches in which the store was found to show something else than the volume had (design rule 26)."""
    for doubt in planner.doubts:
        begun = planner.moment(doubt.after if doubt.after > ZERO else doubt.found)
        ended = None if doubt.until is None else planner.moment(doubt.until).capture_time_ns
        chunk = "" if doubt.chunk is None else f"bytes {doubt.chunk.offset_bytes} to {doubt.chunk.end_bytes} as the volume had them"
        yield Gap(IN_DOUBT, chunk, doubt.after, begun.capture_time_ns, doubt.until, ended)


def _bookmarks(planner: Planner, headers: list[SegmentHeader], after: Position, through: Position) -> Iterator[Bookmark]:
    marks = {mark.position: mark for header in headers for mark in header.marks if mark.kind == Kind.BOOKMARK}
    for position, mark in sorted(marks.items()):
        if after < position <= through:
            told = mark.attributes
            moment = Moment(position, mark.capture_time_ns)
            yield Bookmark(told.get("label", ""), told.get("group", ""), moment, planner.offers(position))


def _rounds(headers: list[SegmentHeader], after: Position, through: Position) -> Iterator[Round]:
    marks = {mark.position: mark for header in headers for mark in header.marks if mark.kind == Kind.VERIFY}
    rounds: dict[str, list[StoredMark]] = {}
    for position, mark in sorted(marks.items()):
        if after < position <= through:
            rounds.setdefault(mark.attributes.get("round", ""), []).append(mark)
    for name, found in rounds.items():
        first, last = found[0], found[-1]
        yield Round(
            name,
            Moment(first.position, first.capture_time_ns),
            Moment(last.position, last.capture_time_ns),
            len(found),
            last.attributes.get("last") == "true",
        )
