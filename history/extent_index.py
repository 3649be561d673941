"""The extent index of a segment: which record wrote which bytes, and where their payload is.

Made by `history.builder`, stored in the segment's first block, used by whoever asks for the bytes of an extent at a position. Pure.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from stream.extent import ExtentSet

ZEROES = -1  # in `payloads`: the extent reads as zero and has no payload
LARGE_BYTES = 256 << 10  # longer entries are looked at one by one: a hole of gigabytes must not slow the search for others


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `[start_bytes, end_bytes)` of the volume, written last by record number `record` of the segment.

    Their payload begins `payload_bytes` into the blob of that record's batch; None means that they read as zero.
    """

    start_bytes: int
    end_bytes: int
    record: int
    payload_bytes: int | None


@dataclass(frozen=True, slots=True)
class ExtentIndex:
    """Columns with an entry for each extent that a segment's records write or zero, sorted by offset, then by record.

    `records` are numbers of records in the segment, from 0, so a position is a bound on them. A split write that was given up (its last
    fragment never came) has no entry: its bytes are never applied.
    """

    offsets: Sequence[int]
    lengths: Sequence[int]
    records: Sequence[int]
    payloads: Sequence[int]
    _reach_bytes: int = field(init=False)
    _large: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.offsets) == len(self.lengths) == len(self.records) == len(self.payloads):
            raise ValueError("columns of different lengths")
        reach = max(self.lengths, default=0)
        large = tuple(index for index, length in enumerate(self.lengths) if length > LARGE_BYTES) if reach > LARGE_BYTES else ()
        object.__setattr__(self, "_reach_bytes", min(reach, LARGE_BYTES))
        object.__setattr__(self, "_large", large)

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int, int, int]]) -> ExtentIndex:
        """Sort `(offset_bytes, length_bytes, record, payload)` entries into an index."""
        ordered = sorted(entries, key=lambda entry: (entry[0], entry[2]))
        return cls(*(array("q", (entry[column] for entry in ordered)) for column in range(4)))

    @classmethod
    def from_steps(cls, steps: Sequence[int], lengths: Sequence[int], records: Sequence[int], payloads: Sequence[int]) -> ExtentIndex:
        """Return the index that was stored with `steps`. Raises ValueError for columns that can't be one."""
        columns = [array("q", accumulate(steps)), array("q", lengths), array("q", records), array("q", payloads)]
        if any(min(column, default=low) < low for column, low in zip((steps, *columns[1:]), (0, 1, 0, ZEROES), strict=True)):
            raise ValueError("an extent out of range")
        return cls(*columns)

    def steps(self) -> list[int]:
        """Return the offsets as the file holds them: each minus the one before."""
        return [offset - before for offset, before in zip(self.offsets, [0, *self.offsets], strict=False)]

    def find(self, start_bytes: int, end_bytes: int, records: int) -> list[Piece]:
        """Return the pieces of `[start_bytes, end_bytes)` as they stand after the first `records` records, sorted.

        What none of them wrote is left out. The end of those records must be a recovery point, or bytes of half a split write would be
        shown.
        """
        found = self.last(start_bytes, end_bytes, records)
        return [Piece(start, end, record, None if payload == ZEROES else payload) for start, end, record, payload in found]

    def last(
        self, start_bytes: int, end_bytes: int, records: int, cuts: Sequence[tuple[int, int]] = ()
    ) -> list[tuple[int, int, int, int]]:
        """Return what `find` does as `(start, end, record, payload)`, `payload` ZEROES where it reads as zero.

        `cuts` are `(record, size_bytes)` of records that gave the volume this size: what lay behind it reads as zero from there on.
        """
        offsets, lengths, numbers, payloads = self.offsets, self.lengths, self.records, self.payloads
        low = bisect_left(offsets, start_bytes - self._reach_bytes + 1)
        high = bisect_left(offsets, end_bytes)
        touching = []
        for index in range(low, high):
            offset = offsets[index]
            length = lengths[index]
            if offset + length > start_bytes and length <= LARGE_BYTES and numbers[index] < records:
                touching.append((offset, offset + length, numbers[index], payloads[index]))
        for index in self._large:
            offset = offsets[index]
            if offset < end_bytes and offset + lengths[index] > start_bytes and numbers[index] < records:
                touching.append((offset, offset + lengths[index], numbers[index], payloads[index]))
        touching += [(size, end_bytes, number, ZEROES) for number, size in cuts if number < records and size < end_bytes]
        return newest(touching, start_bytes, end_bytes)


def newest(touching: list[tuple[int, int, int, int]], start_bytes: int, end_bytes: int) -> list[tuple[int, int, int, int]]:
    """Return the parts of `(start, end, record, payload)` within the bounds that no entry of a higher record covers, sorted."""
    if len(touching) > 1:
        touching.sort()
    pieces = []
    at = start_bytes
    for start, end, record, payload in touching:
        if start < at and pieces:
            break
        if start < start_bytes:
            payload, start = payload if payload == ZEROES else payload + start_bytes - start, start_bytes
        at = min(end, end_bytes)
        pieces.append((start, at, record, payload))
    else:
        return pieces
    touching.sort(key=_record, reverse=True)
    shown = ExtentSet()
    pieces = []
    for start, end, record, payload in touching:
        begin, stop = max(start_bytes, start), min(end_bytes, end)
        for hole_begin, hole_end in shown.missing(begin, stop):
            pieces.append((hole_begin, hole_end, record, payload if payload == ZEROES else payload + hole_begin - start))
        shown.add(begin, stop)
    pieces.sort()
    return pieces


def _record(entry: tuple[int, int, int, int]) -> int:
    return entry[2]
