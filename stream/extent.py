"""Extents: half-open byte ranges of a volume, and sets of them.

Pure values. `ExtentSet` answers which bytes are covered; it keeps its extents sorted, disjoint and merged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VOLUME_BYTES_MAX = 1 << 62


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Name the bytes `[offset_bytes, offset_bytes + length_bytes)` of a volume; never empty."""

    offset_bytes: int
    length_bytes: int

    def __post_init__(self) -> None:
        if self.offset_bytes < 0 or self.length_bytes <= 0 or self.end_bytes > VOLUME_BYTES_MAX:
            raise ValueError(f"extent out of range: offset {self.offset_bytes}, length {self.length_bytes}")

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes

    def overlaps(self, other: Extent) -> bool:
        return self.offset_bytes < other.end_bytes and other.offset_bytes < self.end_bytes


class ExtentSet:
    """Hold disjoint, merged, sorted extents; adding and removing keep them so."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for extent in extents:
            self.add(extent.offset_bytes, extent.end_bytes)

    def __iter__(self) -> Iterator[Extent]:
        return (Extent(start, end - start) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total_bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def add(self, start_bytes: int, end_bytes: int) -> None:
        """Cover `[start_bytes, end_bytes)`."""
        if start_bytes >= end_bytes:
            return
        first = bisect_left(self._ends, start_bytes)
        last = bisect_right(self._starts, end_bytes)
        if first < last:
            start_bytes = min(start_bytes, self._starts[first])
            end_bytes = max(end_bytes, self._ends[last - 1])
        self._starts[first:last] = [start_bytes]
        self._ends[first:last] = [end_bytes]

    def remove(self, start_bytes: int, end_bytes: int) -> None:
        """Uncover `[start_bytes, end_bytes)`."""
        if start_bytes >= end_bytes:
            return
        first = bisect_right(self._ends, start_bytes)
        last = bisect_left(self._starts, end_bytes)
        starts: list[int] = []
        ends: list[int] = []
        if first < last and self._starts[first] < start_bytes:
            starts.append(self._starts[first])
            ends.append(start_bytes)
        if first < last and self._ends[last - 1] > end_bytes:
            starts.append(end_bytes)
            ends.append(self._ends[last - 1])
        self._starts[first:last] = starts
        self._ends[first:last] = ends

    def covered(self, start_bytes: int, end_bytes: int) -> list[tuple[int, int]]:
        """Return the covered parts of `[start_bytes, end_bytes)` as `(start, end)`, sorted."""
        found = []
        for index in range(bisect_right(self._ends, start_bytes), bisect_left(self._starts, end_bytes)):
            found.append((max(start_bytes, self._starts[index]), min(end_bytes, self._ends[index])))
        return found

    def missing(self, start_bytes: int, end_bytes: int) -> list[tuple[int, int]]:
        """Return the uncovered parts of `[start_bytes, end_bytes)` as `(start, end)`, sorted."""
        holes = []
        at = start_bytes
        for start, end in self.covered(start_bytes, end_bytes):
            if at < start:
                holes.append((at, start))
            at = end
        if at < end_bytes:
            holes.append((at, end_bytes))
        return holes
