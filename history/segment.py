"""Segments: sealed, immutable pieces of a volume's history in the store; their names and their headers.

A listing of names is the manifest: `<volume>/L<level>/<first>_<last>.avro` with printed positions, so names sort as the history does.
Segments may overlap; each contributes only the positions above those already covered (design rule 27). A segment never ends inside a split
write (rule 6). Byte tables: `schemas/README.md`. The file is made by `history.builder` and read by `history.reader`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from history.extent_index import ExtentIndex
from stream.codec import open_gaps, open_gaps_body
from stream.journal import OpenGap
from stream.position import ZERO, Position
from stream.record import Kind

LEVEL_MAX = 9
_NAME = re.compile(r"([a-z0-9][a-z0-9-]*)/L(\d)/(\d{8}-\d{16})_(\d{8}-\d{16})\.avro")


@dataclass(frozen=True, slots=True)
class SegmentName:
    """Name a segment by what it holds: positions `[first, last]` of a volume at a level."""

    volume: str
    level: int
    first: Position
    last: Position

    def __post_init__(self) -> None:
        if not 0 <= self.level <= LEVEL_MAX or not ZERO < self.first <= self.last:
            raise ValueError(f"no such segment: level {self.level}, positions {self.first} to {self.last}")

    def __str__(self) -> str:
        return f"{folder(self.volume, self.level)}{self.first}_{self.last}.avro"

    @classmethod
    def parse(cls, path: str) -> SegmentName | None:
        """Return the name, or None if the path is no segment's."""
        match = _NAME.fullmatch(path)
        if match is None:
            return None
        volume, level, first, last = match.groups()
        try:
            return cls(volume, int(level), Position.parse(first), Position.parse(last))
        except ValueError:
            return None


def folder(volume: str, level: int = 0) -> str:
    """Return the prefix that the names of a volume's segments of a level have in common."""
    return f"{volume}/L{level}/"


def in_order(names: Iterable[SegmentName]) -> list[SegmentName]:
    """Return the segments that contribute, in order: one whose positions another covers is left out."""
    ordered: list[SegmentName] = []
    for name in sorted(names, key=lambda one: (one.first, one.last)):
        if ordered and name.last <= ordered[-1].last:
            continue
        if ordered and name.first == ordered[-1].first:
            ordered.pop()
        ordered.append(name)
    return ordered


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """Where a stored batch stands: `offset_bytes` after the end of the file's first block."""

    first: Position
    records: int
    capture_time_ns: int
    last_capture_time_ns: int
    offset_bytes: int
    length_bytes: int
    payload_bytes: int
    checksum: bytes

    @property
    def last(self) -> Position:
        return Position(self.first.epoch, self.first.sequence + self.records - 1)

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class StoredMark:
    """A mark that is not a heartbeat; `record` is its number in the segment."""

    position: Position
    kind: Kind
    capture_time_ns: int
    record: int
    attributes: Mapping[str, str]

    @property
    def size_bytes(self) -> int | None:
        """Return the size that the mark says the volume has from there on; None for a mark that says none."""
        text = self.attributes.get("size_bytes", "") if self.kind in (Kind.EPOCH_START, Kind.RESIZE) else ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


@dataclass(frozen=True, slots=True)
class StoredGap:
    """A place after `position` where something is missing: a JournalGap, or what the journal had lost before it was stored."""

    position: Position
    reason: str
    missing: str
    at_ns: int
    kafka_offset: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of the history a segment holds, and what was true at both ends of it."""

    follows: Position
    digest_before: bytes
    digest_after: bytes
    first_capture_time_ns: int
    last_capture_time_ns: int
    open_gaps_before: tuple[OpenGap, ...]
    open_gaps: tuple[OpenGap, ...]
    ends_inside_split: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a segment came from: the journal's topic id and kafka_offsets, and the highest fence before `next_kafka_offset`."""

    topic_id: str
    first_kafka_offset: int
    next_kafka_offset: int
    fence: int


@dataclass(frozen=True, slots=True)
class PageEntry:
    """Where a page of a fold stands, and which bytes of the volume its extents lie in; `offset_bytes` after the end of the first block."""

    start_bytes: int
    end_bytes: int
    extents: int
    offset_bytes: int
    length_bytes: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Everything about a segment but its records; one ranged read of the file's beginning gives it.

    A fold has `pages` (`history.fold_page`) in the place of `blocks`, `flushes` and `extents`, and its marks are numbered -1.
    """

    name: SegmentName
    coverage: Coverage
    origin: Origin
    gaps: tuple[StoredGap, ...]
    marks: tuple[StoredMark, ...]
    flushes: tuple[int, ...]
    blocks: tuple[StoredBlock, ...]
    extents: ExtentIndex
    pages: tuple[PageEntry, ...] = ()
    cuts: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    """`(record, size_bytes)` of the marks that tell the volume's size, in order: what lies behind it reads as zero from there on."""
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)
        cuts = tuple((mark.record, size) for mark in self.marks if (size := mark.size_bytes) is not None)
        object.__setattr__(self, "cuts", cuts)
        object.__setattr__(self, "_starts", tuple(accumulate((block.records for block in self.blocks), initial=0)))

    @property
    def records(self) -> int:
        return sum(block.records for block in self.blocks)

    def records_through(self, position: Position) -> int:
        """Return how many records of this segment stand at or below a position: the bound that `ExtentIndex.find` takes."""
        count = 0
        for block in self.blocks:
            if block.last <= position:
                count += block.records
            elif block.first <= position:
                count += position.sequence - block.first.sequence + 1
        return count

    def block_of(self, record: int) -> tuple[int, int]:
        """Return `(block, index in its batch)` of a record by its number in the segment."""
        starts = self._starts
        if not 0 <= record < starts[-1]:
            raise ValueError(f"no record {record} in a segment of {starts[-1]}")
        block = bisect_right(starts, record) - 1
        return block, record - starts[block]

    def _problem(self) -> str | None:
        if self.name.level > 0:
            return self._problem_of_fold()
        if self.pages:
            return "it has pages, as folds have"
        if not self.blocks or self.blocks[0].first != self.name.first or self.blocks[-1].last != self.name.last:
            return "its blocks are not the positions that it names"
        end = 0
        last = self.coverage.follows
        for block in self.blocks:
            if block.first <= last or block.records <= 0:
                return "its blocks are not in order"
            if block.offset_bytes != end or block.length_bytes <= 0:
                return "its blocks do not follow each other in the file"
            last, end = block.last, block.end_bytes
        if self.coverage.ends_inside_split and self.name.level == 0:
            return "it ends inside a split write"
        if max(self.extents.records, default=0) >= self.records:
            return "its extent index names a record that it does not have"
        return None

    def _problem_of_fold(self) -> str | None:
        if self.blocks or self.flushes or len(self.extents):
            return "it is a fold, and has an index of records"
        if self.coverage.open_gaps or self.coverage.ends_inside_split or self.coverage.follows >= self.name.first:
            return "it is a fold that ends or begins where no history does"
        volume_bytes = file_bytes = 0
        for page in self.pages:
            if not volume_bytes <= page.start_bytes < page.end_bytes or page.extents <= 0:
                return "its pages are not in order"
            if page.offset_bytes < file_bytes or page.length_bytes <= 0:
                return "its pages do not follow each other in the file"
            volume_bytes, file_bytes = page.end_bytes, page.offset_bytes + page.length_bytes
        return None


def header_body(header: SegmentHeader) -> dict[str, Any]:
    """Return the fields of a SegmentHeader as its schema names them."""
    name, coverage, origin, extents = header.name, header.coverage, header.origin, header.extents
    return {
        "volume": name.volume,
        "level": name.level,
        "first_epoch": name.first.epoch,
        "first_sequence": name.first.sequence,
        "last_epoch": name.last.epoch,
        "last_sequence": name.last.sequence,
        "follows_epoch": coverage.follows.epoch,
        "follows_sequence": coverage.follows.sequence,
        "digest_before": coverage.digest_before,
        "digest_after": coverage.digest_after,
        "first_capture_time_ns": coverage.first_capture_time_ns,
        "last_capture_time_ns": coverage.last_capture_time_ns,
        "topic_id": origin.topic_id,
        "first_kafka_offset": origin.first_kafka_offset,
        "next_kafka_offset": origin.next_kafka_offset,
        "fence": origin.fence,
        "ends_inside_split": coverage.ends_inside_split,
        "open_gaps_before": open_gaps_body(coverage.open_gaps_before),
        "open_gaps": open_gaps_body(coverage.open_gaps),
        "gaps": [_gap_body(gap) for gap in header.gaps],
        "marks": [_mark_body(mark) for mark in header.marks],
        "flushes": header.flushes,
        "blocks": [_block_body(block) for block in header.blocks],
        "extent_steps": extents.steps(),
        "extent_lengths": list(extents.lengths),
        "extent_records": list(extents.records),
        "extent_payloads": list(extents.payloads),
        "pages": [_page_body(page) for page in header.pages],
    }


def header_of(body: dict[str, Any]) -> SegmentHeader:
    """Return the header of these fields. Raises ValueError for fields that can't be a segment's."""
    return SegmentHeader(
        SegmentName(
            body["volume"],
            body["level"],
            Position(body["first_epoch"], body["first_sequence"]),
            Position(body["last_epoch"], body["last_sequence"]),
        ),
        Coverage(
            Position(body["follows_epoch"], body["follows_sequence"]),
            body["digest_before"],
            body["digest_after"],
            body["first_capture_time_ns"],
            body["last_capture_time_ns"],
            open_gaps(body["open_gaps_before"]),
            open_gaps(body["open_gaps"]),
            body["ends_inside_split"],
        ),
        Origin(body["topic_id"], body["first_kafka_offset"], body["next_kafka_offset"], body["fence"]),
        tuple(_gap_of(gap) for gap in body["gaps"]),
        tuple(_mark_of(mark) for mark in body["marks"]),
        tuple(body["flushes"]),
        tuple(_block_of(block) for block in body["blocks"]),
        ExtentIndex.from_steps(body["extent_steps"], body["extent_lengths"], body["extent_records"], body["extent_payloads"]),
        tuple(PageEntry(**page) for page in body["pages"]),
    )


def _page_body(page: PageEntry) -> dict[str, Any]:
    return {name: getattr(page, name) for name in PageEntry.__slots__}


def _gap_body(gap: StoredGap) -> dict[str, Any]:
    told = {"reason": gap.reason, "missing": gap.missing, "at_ns": gap.at_ns, "kafka_offset": gap.kafka_offset}
    return {"epoch": gap.position.epoch, "sequence": gap.position.sequence, **told}


def _gap_of(body: dict[str, Any]) -> StoredGap:
    return StoredGap(Position(body["epoch"], body["sequence"]), body["reason"], body["missing"], body["at_ns"], body["kafka_offset"])


def _mark_body(mark: StoredMark) -> dict[str, Any]:
    told = {"kind": int(mark.kind), "capture_time_ns": mark.capture_time_ns, "record": mark.record, "attributes": dict(mark.attributes)}
    return {"epoch": mark.position.epoch, "sequence": mark.position.sequence, **told}


def _mark_of(body: dict[str, Any]) -> StoredMark:
    position = Position(body["epoch"], body["sequence"])
    return StoredMark(position, Kind(body["kind"]), body["capture_time_ns"], body["record"], body["attributes"])


def _block_body(block: StoredBlock) -> dict[str, Any]:
    return {
        "epoch": block.first.epoch,
        "first_sequence": block.first.sequence,
        "records": block.records,
        "capture_time_ns": block.capture_time_ns,
        "last_capture_time_ns": block.last_capture_time_ns,
        "offset_bytes": block.offset_bytes,
        "length_bytes": block.length_bytes,
        "payload_bytes": block.payload_bytes,
        "checksum": block.checksum,
    }


def _block_of(body: dict[str, Any]) -> StoredBlock:
    return StoredBlock(
        Position(body["epoch"], body["first_sequence"]),
        body["records"],
        body["capture_time_ns"],
        body["last_capture_time_ns"],
        body["offset_bytes"],
        body["length_bytes"],
        body["payload_bytes"],
        body["checksum"],
    )
