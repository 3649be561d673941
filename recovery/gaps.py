"""Gaps as a reader of segment headers counts them: which are open after each mark, and which records stand at a recovery point.

Pure; used by planner and timeline. The rules are those of `schemas/README.md` (*gap*): as long as one gap is open no position is a
recovery point. Where a header's own account and its marks disagree, less is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from history.chain import HOLES, closed_names, closing_name
from history.doubts import Doubt
from history.moments import BEGUN_BY_ORDER
from history.segment import SegmentHeader, StoredGap, StoredMark
from stream.journal import FIRST_COPY, OpenGap
from stream.position import Position
from stream.record import Kind

UNCLEAN_STOP = "unclean_stop"
UNKNOWN = "unknown"
GAP_MARKS = frozenset({Kind.EPOCH_START, Kind.GAP_BEGIN, Kind.SYNC_END})


@dataclass(frozen=True, slots=True)
class GapEvent:
    """Something that may open or close gaps: a mark, or a place where something is missing. `record` is its number in the segment: it
    holds from that record on."""

    record: int
    event: StoredMark | StoredGap

    @property
    def position(self) -> Position:
        return self.event.position


class OpenGaps:
    """The gaps open at a place, by position and reason: order may lose something right where the agent began a gap. `apply` moves on."""

    def __init__(self, gaps: Iterable[OpenGap] = ()) -> None:
        self.open = {(gap.position, gap.reason): gap for gap in gaps}

    def __bool__(self) -> bool:
        return bool(self.open)

    @property
    def positions(self) -> set[Position]:
        return {position for position, _ in self.open}

    def apply(self, event: StoredMark | StoredGap) -> None:
        """Open and close what the event says."""
        if isinstance(event, StoredGap):
            self._open(event.position, event.reason, event.at_ns)
        elif event.kind == Kind.SYNC_END:
            closed = closed_names(event.attributes)
            self._keep(lambda gap: closing_name(gap) not in closed)
        elif event.kind == Kind.GAP_BEGIN:
            self._open(event.position, event.attributes.get("reason") or UNKNOWN, event.capture_time_ns)
        elif event.kind == Kind.EPOCH_START and event.attributes.get("clean") != "true":
            first = event.attributes.get("first") == "true" or any(gap.reason == FIRST_COPY for gap in self.open.values())
            self._keep(lambda gap: gap.reason in BEGUN_BY_ORDER or gap.reason in HOLES)
            self._open(event.position, FIRST_COPY if first else UNCLEAN_STOP, event.capture_time_ns)

    def _open(self, position: Position, reason: str, at_ns: int) -> None:
        self.open[position, reason] = OpenGap(position, reason, at_ns)

    def _keep(self, stays: Callable[[OpenGap], bool]) -> None:
        self.open = {key: gap for key, gap in self.open.items() if stays(gap)}


def gap_events(header: SegmentHeader) -> list[GapEvent]:
    """Return what opens or closes gaps in a segment, in order."""
    events = [GapEvent(mark.record, mark) for mark in header.marks if mark.kind in GAP_MARKS]
    events += [GapEvent(header.records_through(gap.position), gap) for gap in header.gaps]
    events.sort(key=lambda one: (one.record, isinstance(one.event, StoredMark)))  # what is missing stands before the record of that number
    return events


def sound_records(header: SegmentHeader, doubts: Iterable[Doubt] = ()) -> list[tuple[int, int]]:
    """Return the ranges `[start, stop)` of record numbers at which no gap is open and nothing is in doubt."""
    open_gaps = OpenGaps(header.coverage.open_gaps_before)
    ranges: list[tuple[int, int]] = []
    begun = None if open_gaps else 0
    events = gap_events(header)
    for event in events:
        open_gaps.apply(event.event)
        if open_gaps and begun is not None:
            ranges.append((begun, event.record))
            begun = None
        elif not open_gaps and begun is None:
            begun = event.record
    if begun is not None:
        ranges.append((begun, header.records))
    if open_gaps.positions != {gap.position for gap in header.coverage.open_gaps}:
        doubtful = events[0].record if events else 0
        ranges = [(low, min(high, doubtful)) for low, high in ranges]
    for doubt in doubts:
        low, high = header.records_through(doubt.after), header.records if doubt.until is None else _records_before(header, doubt.until)
        if low < high:
            ranges = [part for start, stop in ranges for part in ((start, min(stop, low)), (max(start, high), stop))]
    return [(low, high) for low, high in ranges if low < high]


def _records_before(header: SegmentHeader, position: Position) -> int:
    return header.records_through(Position(position.epoch, position.sequence - 1)) if position.sequence else 0
