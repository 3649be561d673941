"""Reading segments: the header by one ranged read, then the records wanted, each byte proved before it is used.

Used by persist to resume, and by everything that recovers. What does not fit its checksum, its digest or its name raises IntegrityError
that names the file and the place; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from history.container import decode_block, decode_head, index_bytes
from history.fold_page import FoldBlock, Page, extents_of, page_of
from history.segment import PageEntry, SegmentHeader, SegmentName, StoredBlock, folder, header_of, in_order
from history.store import Store
from stream.codec import journal_batch, unpack
from stream.compression import decompress
from stream.errors import IntegrityError
from stream.journal import JournalBatch
from stream.position import ZERO, Position
from stream.record import Batch

HEAD_READ_BYTES = 256 << 10
READ_BYTES_MAX = 8 << 20


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it stands in a segment; `entry` is what the journal said, `unpack` gives its records."""

    entry: JournalBatch
    kafka_offset: int
    path: str

    def unpack(self) -> Batch:
        """Return the records with their payload, checked against the running digest. Raises IntegrityError."""
        try:
            return unpack(self.entry, kafka_offset=self.kafka_offset)
        except IntegrityError as error:
            error.facts |= {"path": self.path, "topic": None}
            raise


def list_segments(store: Store, volume: str, level: int = 0) -> list[SegmentName]:
    """Return the segments of a level that contribute to the history, in order (design rule 27). Raises what the store raises."""
    names = (SegmentName.parse(found.name) for found in store.list(folder(volume, level)))
    return in_order(name for name in names if name is not None)


class SegmentReader:
    """Read one segment. Opening it reads and proves its header."""

    def __init__(self, store: Store, name: SegmentName) -> None:
        self._store = store
        self.path = str(name)
        data = store.get_range(self.path, 0, HEAD_READ_BYTES)
        self._head = decode_head(data, self.path)
        begin = self._head.length_bytes
        end = begin + index_bytes(data, self._head, self.path)
        if end > len(data) == HEAD_READ_BYTES:
            data += store.get_range(self.path, len(data), end)
        if end > len(data):
            raise self._wrong("A segment ends inside its header", begin)
        body = decode_block(memoryview(data)[begin:end], self._head, self._head.index_checksum, self.path, begin)
        try:
            self.header: SegmentHeader = header_of(body)
        except (KeyError, ValueError) as error:
            raise self._wrong(f"A segment's header contradicts itself: {error}", begin) from error
        if self.header.name != name:
            raise self._wrong(f"A segment holds {self.header.name}, not what its name says", begin)
        self._blocks_begin = end
        self._read = (0, data[end:])  # bytes after the first block, and where they begin

    @property
    def size_bytes(self) -> int:
        """Return the length that the file must have."""
        pages, blocks = self.header.pages, self.header.blocks
        if pages:
            return self._blocks_begin + pages[-1].offset_bytes + pages[-1].length_bytes
        return self._blocks_begin + (blocks[-1].end_bytes if blocks else 0)

    def batches(self, after: Position = ZERO) -> Iterator[StoredBatch]:
        """Yield the stored batches that hold positions above `after`, in order; the first may begin below."""
        for index, block in enumerate(self.header.blocks):
            if block.last > after:
                yield self.batch(index)

    def batch(self, index: int) -> StoredBatch:
        """Return one stored batch by the number of its block. Raises IntegrityError."""
        block = self.header.blocks[index]
        at = self._blocks_begin + block.offset_bytes
        body = decode_block(self._bytes(index), self._head, block.checksum, self.path, at)
        try:
            entry = journal_batch(body)
            if (entry.records.first, entry.records.count) != (block.first, block.records):
                raise ValueError("its positions are not those of the header")
            return StoredBatch(entry, body["kafka_offset"], self.path)
        except (KeyError, ValueError) as error:
            raise self._wrong(f"A block of a segment contradicts its header: {error}", at) from error

    def payload(self, index: int) -> bytes:
        """Return the payload blob of one stored batch, decompressed, its block proved. Reads that block alone and keeps nothing of it; any
        thread may call it. Raises IntegrityError."""
        block = self.header.blocks[index]
        return self._unpacked(self._alone(block), block)

    def flags(self, index: int) -> bytes:
        """Return the flags of one stored batch's records, as `payload` returns their bytes."""
        return self._alone(self.header.blocks[index])["flags"]

    @property
    def pages(self) -> tuple[PageEntry, ...]:
        """Return where the pages of a fold stand."""
        return self.header.pages

    def page(self, index: int) -> Page:
        """Return a page of a fold. Raises IntegrityError."""
        entry = self.header.pages[index]
        try:
            return page_of(self._alone(entry), entry)
        except (KeyError, ValueError) as error:
            raise self._wrong(f"A page of a fold contradicts itself: {error}", self._blocks_begin + entry.offset_bytes) from error

    def fold_payload(self, block: FoldBlock) -> bytes:
        """Return the payload blob of one block of a fold, decompressed. Raises IntegrityError."""
        return self._unpacked(self._alone(block), block)

    def fold_extents(self, block: FoldBlock) -> list[tuple[int, int]]:
        """Return `(start_bytes, end_bytes)` of the extents that a block of a fold says it holds. Raises IntegrityError."""
        try:
            return [(start, end) for start, end, _ in extents_of(self._alone(block))]
        except (KeyError, ValueError) as error:
            raise self._wrong(f"A block of a fold contradicts itself: {error}", self._blocks_begin + block.offset_bytes) from error

    def forget(self) -> None:
        """Let go of everything that was read but the header."""
        self._read = (0, b"")

    def check(self) -> None:
        """Prove every byte, every digest and the whole chain of a file of level 0, from the header's digest before to the one after."""
        size = len(self._store.get_range(self.path, self.size_bytes, self.size_bytes + 1))
        if size:
            raise self._wrong("A segment has bytes after its end", self.size_bytes)
        coverage = self.header.coverage
        digest = coverage.digest_before
        last = coverage.follows
        jumps = {gap.position for gap in self.header.gaps}
        for stored in self.batches():
            entry = stored.entry
            stored.unpack()
            if (entry.digest_before, entry.follows) != (digest, last) and last not in jumps:
                raise self._wrong("The digests of a segment are not a chain", self._blocks_begin, position=entry.records.first)
            digest, last = entry.state.digest, entry.records.last
        if digest != coverage.digest_after:
            raise self._wrong("A segment does not end with the digest that its header says", self._blocks_begin)

    def _unpacked(self, body: dict[str, Any], block: StoredBlock | FoldBlock) -> bytes:
        try:
            return decompress(body["codec"], body["payload"], block.payload_bytes)
        except IntegrityError as error:
            error.facts |= {"path": self.path, "at_bytes": self._blocks_begin + block.offset_bytes}
            raise

    def _alone(self, block: StoredBlock | PageEntry | FoldBlock) -> dict[str, Any]:
        """Return one block's content, reading that block and nothing else."""
        at = self._blocks_begin + block.offset_bytes
        data = self._store.get_range(self.path, at, at + block.length_bytes)
        if len(data) < block.length_bytes:
            raise self._wrong("A segment ends before its last block", at)
        return decode_block(memoryview(data), self._head, block.checksum, self.path, at)

    def _bytes(self, index: int) -> memoryview:
        """Return a block, reading it and some that follow if it is not there."""
        blocks = self.header.blocks
        start, end = blocks[index].offset_bytes, blocks[index].end_bytes
        begin, data = self._read
        if not begin <= start <= end <= begin + len(data):
            last = index
            while last + 1 < len(blocks) and blocks[last + 1].end_bytes - start <= READ_BYTES_MAX:
                last += 1
            at = self._blocks_begin
            begin, data = start, self._store.get_range(self.path, at + start, at + blocks[last].end_bytes)
            self._read = (begin, data)
        if end > begin + len(data):
            raise self._wrong("A segment ends before its last block", self._blocks_begin + start)
        return memoryview(data)[start - begin : end - begin]

    def _wrong(self, sentence: str, at_bytes: int, **facts: object) -> IntegrityError:
        return IntegrityError(
            sentence,
            path=self.path,
            at_bytes=at_bytes,
            **facts,
            hint="Keep the file as it is; restore it from another copy of the store, or let the volume be copied again.",
        )
