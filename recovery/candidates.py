"""The recovery points of a range as a sequence, for a bisection: counted without being listed, so that a million cost as little as ten.

Pure; made from a planner's headers. Inside a split write there are positions that are no points: opening one tells.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from history.segment import SegmentHeader
from recovery.drill import Candidate
from recovery.planner import Planner
from recovery.point import AtPosition
from stream.position import Position


class Candidates(Sequence[Candidate]):
    """The positions above `after`, up to and with `through`, that may be recovered to, in order."""

    def __init__(self, planner: Planner, after: Position, through: Position) -> None:
        runs = sorted([*_written(planner, after, through), *_fold_ends(planner, after, through)])
        self._firsts: list[Position] = []
        self._counts: list[int] = [0]  # how many stand before each run, and in all
        last = after
        for first, count in runs:
            if first <= last:  # the end of a fold inside a stretch that is kept as written
                continue
            self._firsts.append(first)
            self._counts.append(self._counts[-1] + count)
            last = Position(first.epoch, first.sequence + count - 1)

    def __len__(self) -> int:
        return self._counts[-1]

    def __getitem__(self, index: int) -> Candidate:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        run = bisect_right(self._counts, index) - 1
        first = self._firsts[run]
        position = Position(first.epoch, first.sequence + index - self._counts[run])
        return Candidate(AtPosition(position), position)


def _written(planner: Planner, after: Position, through: Position) -> Iterator[tuple[Position, int]]:
    """Yield first position and length of each run of positions of one epoch at which no gap is open and nothing is in doubt."""
    covered = after
    for name in planner.reach.written:
        if name.last <= covered or name.first > through:
            continue
        lowest, header = planner.reach.lowest_in(name), planner.header(name)
        if lowest is None or header is None:
            continue
        low, high = header.records_through(max(covered, lowest)), header.records_through(through)
        for start, stop in planner.sound(header):
            yield from _by_epoch(header, max(start, low), min(stop, high))
        covered = max(covered, name.last)


def _by_epoch(header: SegmentHeader, start: int, stop: int) -> Iterator[tuple[Position, int]]:
    number = 0
    for block in header.blocks:
        low, high = max(start, number), min(stop, number + block.records)
        if low < high:
            yield Position(block.first.epoch, block.first.sequence + low - number), high - low
        number += block.records


def _fold_ends(planner: Planner, after: Position, through: Position) -> Iterator[tuple[Position, int]]:
    for name in planner.reach.folds:
        if after < name.last <= through and planner.fold_offers(name):
            yield name.last, 1
