"""The builder of a segment: takes what a volume's journal brings, in order, and seals it into the bytes of one file.

Called by persist. In memory and pure. What is sealed never ends inside a split write: a write whose last fragment has not come stays
behind, in the builder of the next segment. Memory: the stored blocks once; sealing adds the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from history.chain import NO_FENCE, cut
from history.container import SYNC_BYTES, encode_block, encode_head
from history.extent_index import ZEROES, ExtentIndex
from history.segment import Coverage, Origin, SegmentHeader, SegmentName, StoredBlock, StoredGap, StoredMark, header_body
from stream.codec import journal_body, unpack
from stream.journal import JournalBatch, OpenGap
from stream.position import Position
from stream.record import FLAG_MORE, Kind

RECORD_COST_BYTES = 16  # about what a record takes in the extent index


@dataclass(frozen=True, slots=True)
class Start:
    """Where a segment goes on from: the end of the history before it."""

    volume: str
    position: Position
    digest: bytes
    topic_id: str
    next_kafka_offset: int
    fence: int = NO_FENCE
    open_gaps: tuple[OpenGap, ...] = ()


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A finished segment: its name, its header, and the file in parts to be written one after the other."""

    header: SegmentHeader
    parts: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return str(self.header.name)

    @property
    def size_bytes(self) -> int:
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Kept:
    """An entry, and what was true in the journal after its message."""

    entry: JournalBatch | StoredGap
    kafka_offset: int
    fence: int
    open_gaps: tuple[OpenGap, ...]


class SegmentBuilder:
    """Collect one segment. `append` and `skip` go in the order of the journal."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._follows: Position | None = None
        self._digest_before = start.digest
        self._gaps_before = start.open_gaps
        self._last = start
        self._blocks: list[bytes] = []
        self._table: list[StoredBlock] = []
        self._blocks_bytes = 0
        self._records = 0
        self._extents: list[tuple[int, int, int, int]] = []
        self._run: list[tuple[int, int, int, int]] = []
        self._marks: list[StoredMark] = []
        self._flushes: list[int] = []
        self._gaps: list[StoredGap] = []
        self._held: list[_Kept] = []
        self._held_bytes = 0
        self._writes_next = 0

    @property
    def size_bytes(self) -> int:
        """About the size that the file has if it is sealed now; what waits for the end of a split write counts."""
        return self._blocks_bytes + self._held_bytes + self._records * RECORD_COST_BYTES

    @property
    def is_empty(self) -> bool:
        """Tell whether no record came yet."""
        return not self._table and not self._held

    @property
    def sealable(self) -> bool:
        """Tell whether a whole write or a mark came: nothing else can end a segment."""
        return bool(self._table) or (bool(self._held) and _whole(self._held[0].entry) > 0)

    @property
    def position(self) -> Position:
        """Return the position that a segment would end at if it were sealed now."""
        if self._held and (whole := _whole(self._held[0].entry)) > 0:
            records = self._held[0].entry.records
            return Position(records.epoch, records.first_sequence + whole - 1)
        return self._table[-1].last if self._table else self._start.position

    def append(self, entry: JournalBatch | StoredGap, kafka_offset: int, fence: int, open_gaps: tuple[OpenGap, ...]) -> None:
        """Take the next entry as `history.chain` gave it; `open_gaps` stand after it."""
        kept = _Kept(entry, kafka_offset, fence, open_gaps)
        if isinstance(entry, StoredGap):
            if self._held:
                self._held.append(kept)
            else:
                self._take(kept)
            return
        whole = _whole(entry)
        if whole > 0:
            for waiting in self._held:
                self._take(waiting)
            self._held, self._held_bytes = [], 0
        if whole == entry.records.count:
            self._take(kept)
        else:
            self._held.append(kept)
            self._held_bytes += len(entry.packed)

    def skip(self, kafka_offset: int, fence: int) -> None:
        """Pass a message of which nothing is kept."""
        if not self._held:
            self._move(kafka_offset + 1, fence, self._last.open_gaps)

    def seal(self) -> tuple[SealedSegment, SegmentBuilder]:
        """Return the segment and the builder of the next one, which has what had to stay behind."""
        assert self.sealable
        rest = self._held
        if rest and _whole(rest[0].entry) > 0:
            rest = [self._split(rest[0]), *rest[1:]]
        header = self._header()
        index, checksum = encode_block("SegmentHeader", header_body(header))
        head, sync = encode_head(checksum)
        parts = [head, index, sync]
        for block in self._blocks:
            parts += [block, sync]
        following = SegmentBuilder(self._last)
        following._writes_next = self._writes_next
        for kept in rest:
            following.append(kept.entry, kept.kafka_offset, kept.fence, kept.open_gaps)
        return SealedSegment(header, tuple(parts)), following

    def _split(self, kept: _Kept) -> _Kept:
        """Take the whole writes of a batch that ends inside one; return the rest of it.

        Behind the cut are fragments alone, so the gaps open there are those open after the whole batch. The message is read again from the
        journal by whoever resumes from this segment.
        """
        entry, whole = kept.entry, _whole(kept.entry)
        records = unpack(entry)
        left = cut(entry, records, 0, whole, digest_before=entry.digest_before, next_kafka_offset=self._writes_next)
        last = self._last
        self._take(_Kept(left, kept.kafka_offset, kept.fence, kept.open_gaps))
        self._move(kept.kafka_offset, last.fence, kept.open_gaps)
        right = cut(entry, records, whole, records.count, digest_before=left.state.digest)
        return _Kept(right, kept.kafka_offset, kept.fence, kept.open_gaps)

    def _take(self, kept: _Kept) -> None:
        entry = kept.entry
        if isinstance(entry, StoredGap):
            self._gaps.append(entry)
            self._move(kept.kafka_offset + 1, kept.fence, kept.open_gaps)
            return
        if self._follows is None:
            self._follows = entry.follows
            self._digest_before = entry.digest_before
        records = entry.records
        if records.first != self._last.position.next():
            self._run.clear()
        block, checksum = encode_block("StoredBatch", journal_body(entry) | {"kafka_offset": kept.kafka_offset})
        self._table.append(
            StoredBlock(
                records.first,
                records.count,
                records.capture_time_ns,
                records.last_capture_time_ns,
                self._blocks_bytes,
                len(block) + SYNC_BYTES,
                entry.payload_bytes,
                checksum,
            )
        )
        self._blocks.append(block)
        self._blocks_bytes += len(block) + SYNC_BYTES
        self._index(entry)
        self._records += records.count
        self._writes_next = entry.state.next_kafka_offset
        self._move(kept.kafka_offset + 1, kept.fence, kept.open_gaps, records.last, entry.state.digest)

    def _move(
        self,
        next_kafka_offset: int,
        fence: int,
        open_gaps: tuple[OpenGap, ...],
        position: Position | None = None,
        digest: bytes | None = None,
    ) -> None:
        last = self._last
        self._last = Start(
            last.volume, position or last.position, digest or last.digest, last.topic_id, next_kafka_offset, fence, open_gaps
        )

    def _index(self, entry: JournalBatch) -> None:
        """Enter a batch's extents, flushes and marks; a split write enters with its last fragment, one that was given up never does."""
        records = entry.records
        sizes = (length if kind == Kind.WRITE else 0 for kind, length in zip(records.kinds, records.lengths, strict=True))
        columns = zip(records.kinds, records.flags, records.offsets, records.lengths, accumulate(sizes, initial=0), strict=False)
        for number, (kind, flag, offset, length, payload) in enumerate(columns, self._records):
            if kind == Kind.WRITE:
                self._run.append((offset, length, number, payload))
                if not flag & FLAG_MORE:
                    self._extents += self._run
                    self._run.clear()
            else:
                self._run.clear()
                if length > 0 and kind in (Kind.ZERO, Kind.TRIM):
                    self._extents.append((offset, length, number, ZEROES))
                elif kind == Kind.FLUSH:
                    self._flushes.append(number)
                elif kind >= Kind.EPOCH_START and kind != Kind.HEARTBEAT:
                    self._marks.append(self._mark(entry, number - self._records, number))

    def _mark(self, entry: JournalBatch, index: int, number: int) -> StoredMark:
        records = entry.records
        return StoredMark(
            Position(records.epoch, records.first_sequence + index),
            Kind(records.kinds[index]),
            records.capture_time_ns + records.ages_ns[index],
            number,
            records.marks.get(index, {}),
        )

    def _header(self) -> SegmentHeader:
        start, last, table = self._start, self._last, self._table
        return SegmentHeader(
            SegmentName(start.volume, 0, table[0].first, table[-1].last),
            Coverage(
                self._follows or start.position,
                self._digest_before,
                last.digest,
                table[0].capture_time_ns,
                table[-1].last_capture_time_ns,
                self._gaps_before,
                last.open_gaps,
            ),
            Origin(last.topic_id, start.next_kafka_offset, last.next_kafka_offset, last.fence),
            tuple(self._gaps),
            tuple(self._marks),
            tuple(self._flushes),
            tuple(table),
            ExtentIndex.of(self._extents),
        )


def _whole(entry: JournalBatch) -> int:
    """Return how many records of a batch stand before the split write that it ends inside of: all, if it ends inside none."""
    flags = entry.records.flags
    count = len(flags)
    while count and flags[count - 1] & FLAG_MORE:
        count -= 1
    return count
