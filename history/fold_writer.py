"""The writer of a fold: takes extents in the order of the volume and makes blocks, pages and, at the end, the file.

Called by `history.fold`. Blocks go to a scratch file without a name as they are full, so memory is one block and one page whatever the size
of the fold; the file is put together from it, part by part, when the header is known.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from history.container import SYNC_BYTES, decode_object, encode_block, encode_head
from history.fold_page import (
    BLOCK_EXTENTS_MAX,
    FOLD_BLOCK_BYTES,
    PAGE_BLOCKS_MAX,
    PAGE_EXTENTS_MAX,
    FoldBlock,
    Page,
    extents_body,
    page_of,
    table_body,
)
from history.segment import PageEntry, SegmentHeader, header_body
from stream.compression import compress, decompress
from stream.errors import RetryError
from stream.position import Position
from stream.schema import schema

_NO_SYNC = bytes(SYNC_BYTES)


class Spool:
    """A scratch file without a name: what is written stays until it is closed, or the process ends. Any thread may read."""

    def __init__(self, folder: Path | None) -> None:
        with _translated(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0, prefix="hostoffload-fold-")  # noqa: SIM115
        self.size_bytes = 0
        self._folder = folder

    def append(self, data: bytes) -> None:
        """Write behind the end. Raises RetryError when there is no space."""
        view = memoryview(data)
        with _translated(self._folder):
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        self.size_bytes += len(data)

    def read(self, at_bytes: int, length_bytes: int) -> bytes:
        with _translated(self._folder):
            return os.pread(self._file.fileno(), length_bytes, at_bytes)

    def close(self) -> None:
        self._file.close()


class FoldWriter:
    """Collect the extents of one fold, in order; `finish`, and read it as a layer, or have its file's parts."""

    def __init__(self, volume: str, position: Position, spool: Spool, codec: str) -> None:
        self.path = f"scratch of {volume} at {position}"
        self.spool = spool
        self.pages: list[PageEntry] = []
        self.payload_bytes = 0
        self._volume = volume
        self._position = position
        self._codec = codec
        self._begun_bytes = spool.size_bytes
        self._ends: list[int] = []  # of the blocks, in the file and in the spool
        self._payload = bytearray()
        self._extents: list[tuple[int, int, bool]] = []
        self._listed: list[tuple[int, int, bool]] = []
        self._table: list[FoldBlock] = []

    def zero(self, start_bytes: int, end_bytes: int) -> None:
        """Add an extent that reads as zero."""
        self._add(start_bytes, end_bytes, is_zero=True)

    def write(self, start_bytes: int, data: memoryview) -> None:
        """Add an extent with its bytes, which are copied."""
        at = 0
        while at < len(data):
            part = data[at : at + FOLD_BLOCK_BYTES - len(self._payload)]
            self._payload += part
            self._add(start_bytes + at, start_bytes + at + len(part), is_zero=False)
            at += len(part)
            if len(self._payload) >= FOLD_BLOCK_BYTES:
                self._end_block()

    def finish(self) -> None:
        """Write what is collected; nothing may be added afterwards."""
        self._end_block()
        self._end_page()

    def parts(self, header: SegmentHeader) -> Iterator[bytes]:
        """Yield the file, part after part."""
        index, checksum = encode_block("SegmentHeader", header_body(header))
        head, sync = encode_head(checksum)
        yield head + index + sync
        at = 0
        for end in self._ends:
            yield self.spool.read(self._begun_bytes + at, end - at - SYNC_BYTES) + sync
            at = end

    def page(self, index: int) -> Page:
        """Return a page of what is finished, as `history.reader.SegmentReader.page` does."""
        entry = self.pages[index]
        return page_of(self._read(entry), entry)

    def fold_payload(self, block: FoldBlock) -> bytes:
        """Return the payload blob of a block of what is finished, as `history.reader.SegmentReader.fold_payload` does."""
        body = self._read(block)
        return decompress(body["codec"], body["payload"], block.payload_bytes)

    def _read(self, block: PageEntry | FoldBlock) -> dict[str, Any]:
        at = self._begun_bytes + block.offset_bytes
        data = self.spool.read(at, block.length_bytes - SYNC_BYTES)
        return decode_object(memoryview(data), schema("Segment").parsed, block.checksum, self.path, at)

    def _add(self, start_bytes: int, end_bytes: int, *, is_zero: bool) -> None:
        before = self._extents[-1] if self._extents else None
        assert before is None or before[1] <= start_bytes, "extents out of order"
        if before is not None and before[1] == start_bytes and before[2] == is_zero:
            self._extents[-1] = (before[0], end_bytes, is_zero)
            return
        self._extents.append((start_bytes, end_bytes, is_zero))
        if len(self._extents) >= BLOCK_EXTENTS_MAX:
            self._end_block()

    def _end_block(self) -> None:
        if not self._extents:
            return
        codec, packed = compress(self._codec, self._payload)
        body = extents_body(self._volume, self._position, self._extents, codec, packed, len(self._payload))
        at, length, checksum = self._append(body)
        self._table.append(FoldBlock(len(self._extents), at, length, len(self._payload), checksum))
        self._listed += self._extents
        self.payload_bytes += len(self._payload)
        self._extents, self._payload = [], bytearray()
        if len(self._table) >= PAGE_BLOCKS_MAX or len(self._listed) >= PAGE_EXTENTS_MAX:
            self._end_page()

    def _end_page(self) -> None:
        if not self._listed:
            return
        body = extents_body(self._volume, self._position, self._listed, "none", b"", 0) | {"table": table_body(self._table)}
        at, length, checksum = self._append(body)
        self.pages.append(PageEntry(self._listed[0][0], self._listed[-1][1], len(self._listed), at, length, checksum))
        self._listed, self._table = [], []

    def _append(self, body: dict[str, Any]) -> tuple[int, int, bytes]:
        data, checksum = encode_block("StoredBatch", body)
        at = self._ends[-1] if self._ends else 0
        self.spool.append(data + _NO_SYNC)  # the marker is known when the header is
        self._ends.append(at + len(data) + SYNC_BYTES)
        return at, len(data) + SYNC_BYTES, checksum


class _translated:
    """Turn what the operating system raises inside into a RetryError."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise RetryError(
                f"There is no room to fold: {error.strerror}",
                path=str(self._folder or tempfile.gettempdir()),
                hint="Make space there, or name another folder by history.scratch_dir; it goes on by itself.",
            ) from error
