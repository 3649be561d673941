"""A disk for the activity log that forgets what was not synced, and a reader of its bytes that shares no code with the agent.

`SimDisk` is a `StateFiles`: writes go to `seen`, what a process reads; they reach `kept`, what a power cut leaves, by a sync, or in any
part and order when the power is cut.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import xxhash

from agent.source import SourceIdentity

MIB = 1 << 20
MAP_AT = 3 * 4096
SECTOR_BITS = 504 * 8


class SimFile:
    """One file. `errors[what]` is the errno that every such call raises (pread, pwrite, ...); `before_sync` is called inside each sync."""

    def __init__(self, content: bytes) -> None:
        self.seen = bytearray(content)
        self.kept = bytearray(content)
        self.pending: list[tuple[int, bytes]] = []
        self.errors: dict[str, int] = {}
        self.before_sync: Callable[[], None] = lambda: None
        self.syncs = self.writes = 0
        self.closed = False
        self._mutex = threading.Lock()

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._enter("pread")
        return bytes(self.seen[offset_bytes : offset_bytes + length_bytes])

    def pwrite(self, offset_bytes: int, data: bytes) -> None:
        self._enter("pwrite")
        with self._mutex:
            self.writes += 1
            assert offset_bytes + len(data) <= len(self.seen), "a write that makes the file longer may find the disk full"
            self.seen[offset_bytes : offset_bytes + len(data)] = data
            self.pending.append((offset_bytes, bytes(data)))

    def fdatasync(self) -> None:
        """Keep everything; one that fails forgets what it should have kept, as Linux does: the next one says nothing of it."""
        with self._mutex:
            pending, self.pending = self.pending, []
            self.syncs += 1
        self.before_sync()
        self._enter("fdatasync")
        with self._mutex:
            self.kept.extend(bytes(len(self.seen) - len(self.kept)))
            for offset_bytes, data in pending:
                self.kept[offset_bytes : offset_bytes + len(data)] = data

    def extend(self, size_bytes: int) -> None:
        self._enter("extend")
        self.seen.extend(bytes(max(0, size_bytes - len(self.seen))))

    def close(self) -> None:
        self.closed = True

    def cut_power(self, grain_bytes: int, keep: Callable[[int], list[int]]) -> None:
        """Leave of the pending writes the pieces of `grain_bytes` whose numbers `keep(count)` returns, in that order."""
        pieces = [(start + at, data[at : at + grain_bytes]) for start, data in self.pending for at in range(0, len(data), grain_bytes)]
        for number in keep(len(pieces)):
            offset_bytes, data = pieces[number]
            self.kept.extend(bytes(max(0, offset_bytes + len(data) - len(self.kept))))
            self.kept[offset_bytes : offset_bytes + len(data)] = data
        self.pending = []
        self.seen = bytearray(self.kept)

    def _enter(self, what: str) -> None:
        assert not self.closed, "its descriptor may be that of another file by now"
        if what in self.errors:
            raise OSError(self.errors[what], os.strerror(self.errors[what]))


class SimDisk:
    """A folder of such files; `make` is atomic. `full` refuses all that needs room."""

    def __init__(self) -> None:
        self.files: dict[Path, SimFile] = {}
        self.full = False

    def make(self, path: Path, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.files[path] = SimFile(content)

    def open(self, path: Path) -> SimFile:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.files[path].closed = False
        return self.files[path]

    def remove(self, path: Path) -> None:
        self.files.pop(path, None)


def source(size_bytes: int, inode: int = 77) -> SourceIdentity:
    return SourceIdentity(inode, size_bytes, 0)


def regions_of(extents: list[tuple[int, int]]) -> set[int]:
    """Return the numbers of the regions in such extents."""
    return {region for start, end in extents for region in range(start // MIB, -(-end // MIB))}


def set_in(content: bytes, count: int) -> set[int]:
    """Return the regions that a file says may differ, read by the tables of docs/activity_log.md."""
    found: set[int] = set()
    for first in range(0, count, SECTOR_BITS):
        sector, here = first // SECTOR_BITS, min(SECTOR_BITS, count - first)
        at = MAP_AT + 512 * sector
        bits, checksum = bytes(content[at : at + 504]), int.from_bytes(content[at + 504 : at + 512], "little")
        if len(bits) < 504 or xxhash.xxh3_64_intdigest(bits, sector) != checksum:
            found.update(range(first, first + here))
            continue
        for place, byte in enumerate(bits):
            if byte:
                found.update(first + place * 8 + bit for bit in range(8) if byte >> bit & 1 and place * 8 + bit < here)
    return found
