"""`FileDevice`: a regular file or block device served as it is, keeping nothing in memory.

Used by `python -m nbd`, by recovery's plain exports, and as the model of a device that others are compared with.
"""

from __future__ import annotations

import os

from nbd.blockfile import BlockFile

CHUNK_BYTES = 256 << 10
SPARE_CHUNKS_MAX = 16
"""Chunks that a lane holds on to between large writes: 4 MiB for a connection."""


class FileDevice:
    """A `BlockDevice` over one file. Sessions share the file; `close` ends them all."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        """Open `path`. Raises OSError."""
        self.file = BlockFile(path, read_only=read_only)
        self.read_only = read_only
        self.size_bytes = self.file.measure()

    def refresh(self) -> int:
        """Measure the file again: new connections are told, and all are held to, its present size. Returns it."""
        self.size_bytes = self.file.measure()
        return self.size_bytes

    def open_session(self) -> FileSession:
        """Open a session for a new connection."""
        return FileSession(self.file)

    def close(self) -> None:
        """Close the file. No session may be used afterwards."""
        self.file.close()


class FileSession:
    """A `Session` that hands every request to the file. Several threads may use it: the kernel orders overlapping writes."""

    concurrent = concurrent_reads = True

    def __init__(self, file: BlockFile) -> None:
        self.lane = FileLane()
        self.write = file.write
        self.read_cached = file.read_cached
        self.announce = file.announce
        self.read = file.read
        self.flush = file.sync
        self.extents = file.extents
        self._file = file

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        """Make the extent read as zero; see `BlockFile.zero`."""
        self._file.zero(offset_bytes, length_bytes, punch=punch, fast=fast, durable=fua)

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        """Punch the extent if the file can; otherwise nothing happens."""
        self._file.trim(offset_bytes, length_bytes, durable=fua)

    def close(self) -> None:
        """End the session; the file stays open for the others."""


class FileLane:
    """A `Lane` over private memory, nothing of which is ever kept: the same chunk serves again and again."""

    tail = 0

    def __init__(self) -> None:
        self.chunk = memoryview(bytearray(CHUNK_BYTES))
        self._spare: list[memoryview] = []

    def turn(self, keep: memoryview) -> None:
        """Move `keep` to the start of the one chunk."""
        self.chunk[: len(keep)] = keep

    def reserve(self, nbytes: int) -> list[memoryview]:
        """Return chunks for `nbytes`, made at once if there are too few; never blocks."""
        needed = -(-nbytes // CHUNK_BYTES)
        while len(self._spare) < needed:
            self._spare.append(memoryview(bytearray(CHUNK_BYTES)))
        return [self._spare.pop() for _ in range(needed)]

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        """Take all chunks back: nothing was kept."""
        self.abandon(chunks)

    def abandon(self, chunks: list[memoryview]) -> None:
        """Take all chunks back."""
        self._spare += chunks
        del self._spare[SPARE_CHUNKS_MAX:]

    def close(self) -> None:
        """Drop the memory."""
        self.chunk = memoryview(b"")
        self._spare.clear()
