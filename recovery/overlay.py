"""An overlay: what was written over a read-only image, block by block, kept beside it and never in it.

Used by writable exports. Two files: `data`, sparse and as long as the volume, and a map with a bit for each block that `data` stands in
for. A named overlay is a folder of its own that survives every restart; one without a name lies in files that end with the process.

    base.json    what it lies over: volume, position, size_bytes, block_bytes; written once, last
    data · map

Guarantees: what was written before a `flush` that returned is there after a kill and after a power cut; of what came later, each write may
be there or not, as with the cache of a disk. A flush: 1. fdatasync `data` · 2. write the map's changed pages · 3. fdatasync the map. Bits
are only ever set, so a page that was half written is still true. After a failed sync everything is refused (EIO): reopen the overlay.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from history.store import fsync_folder
from nbd.blockfile import EXTENT_DATA, EXTENT_HOLE, BlockFile
from nbd.device import Pieces
from recovery.base_image import BaseImage
from stream.errors import ConfigError, RetryError
from stream.position import Position

BLOCK_BYTES = 4096
LARGE_BLOCK_BYTES = 64 << 10
LARGE_VOLUME_BYTES = 4 << 40  # from here on the map would take too much memory
PAGE_BYTES = 4096
_FORM = 1


@dataclass(frozen=True, slots=True)
class Base:
    """What an overlay lies over."""

    volume: str
    position: Position
    size_bytes: int
    block_bytes: int

    @classmethod
    def of(cls, volume: str, position: Position, size_bytes: int) -> Base:
        return cls(volume, position, size_bytes, BLOCK_BYTES if size_bytes < LARGE_VOLUME_BYTES else LARGE_BLOCK_BYTES)


class Overlay:
    """Reads show what was written here, else the image. Any thread may call it; overlapping writes have one order."""

    def __init__(self, image: BaseImage, base: Base, data: BlockFile, map_fd: int, *, lock_fd: int = -1) -> None:
        """Take over open files; use `open_named` and `open_unnamed`. `map_fd` -1: the map is in memory alone."""
        self._image = image
        self._base = base
        self._data = data
        self._map_fd = map_fd
        self._lock_fd = lock_fd
        self._bits = _BlockMap(-(-base.size_bytes // base.block_bytes), map_fd)
        self._dirty: set[int] = set()
        self._writing = threading.Lock()
        self._flushing = threading.Lock()
        self._failed = False

    @property
    def written_bytes(self) -> int:
        """Return how much of the volume the overlay stands in for."""
        return self._bits.count() * self._base.block_bytes

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`. Raises OSError, and what the image raises."""
        end = offset_bytes + len(into)
        for start, stop, mine in self._runs(offset_bytes, end):
            part = into[start - offset_bytes : stop - offset_bytes]
            if mine:
                self._data.read(start, part)
            else:
                self._image.read(start, part)

    def write(self, offset_bytes: int, pieces: Pieces, length_bytes: int) -> None:
        """Write all of the payload. Raises OSError; what the extent then holds is unknown, its neighbours are what they were."""
        with self._writing:
            self._check()
            self._keep_edges(offset_bytes, offset_bytes + length_bytes)
            self._data.write(offset_bytes, pieces, length_bytes)
            self._mark(offset_bytes, offset_bytes + length_bytes)

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the extent read as zero; it takes no space."""
        with self._writing:
            self._check()
            self._keep_edges(offset_bytes, offset_bytes + length_bytes)
            self._data.zero(offset_bytes, length_bytes, punch=True)
            self._mark(offset_bytes, offset_bytes + length_bytes)

    def flush(self) -> None:
        """Make everything written so far durable, if the overlay has a name. Raises OSError."""
        if self._map_fd < 0:
            return
        with self._flushing:
            with self._writing:
                self._check()
                pages = {page: self._bits.page(page) for page in self._dirty}
                self._dirty.clear()
            try:
                self._data.sync()
                for page, data in sorted(pages.items()):
                    os.pwrite(self._map_fd, data, page * PAGE_BYTES)
                if pages:
                    os.fdatasync(self._map_fd)
            except OSError:
                self._failed = True
                raise

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Describe the extent from its start by at most `limit` pairs (length, EXTENT_DATA or EXTENT_HOLE)."""
        found: list[tuple[int, int]] = []
        for start, stop, mine in self._runs(offset_bytes, offset_bytes + length_bytes):
            left = limit - len(found)
            if mine:
                told = self._data.extents(start, stop - start, left)
            else:
                told = [(size, EXTENT_HOLE if zero else EXTENT_DATA) for size, zero in self._image.extents(start, stop - start, left)]
            found += told
            if len(found) >= limit or sum(size for size, _ in told) < stop - start:
                break
        return found

    def close(self) -> None:
        """Close the files; a name is free for the next one. What was not flushed may be lost."""
        self._data.close()
        for fd in (self._map_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)

    def _runs(self, start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int, bool]]:
        size = self._base.block_bytes
        for first, last, mine in self._bits.runs(start_bytes // size, -(-end_bytes // size)):
            yield max(start_bytes, first * size), min(end_bytes, last * size), mine

    def _keep_edges(self, start_bytes: int, end_bytes: int) -> None:
        """Copy from the image what stands beside the extent in its first and last block, where these are not the overlay's yet."""
        size = self._base.block_bytes
        first, last = start_bytes // size, (end_bytes - 1) // size
        if start_bytes % size and not self._bits.has(first):
            self._copy(first * size, start_bytes)
        tail_end = min((last + 1) * size, self._base.size_bytes)
        if end_bytes < tail_end and not self._bits.has(last):
            self._copy(end_bytes, tail_end)

    def _copy(self, start_bytes: int, end_bytes: int) -> None:
        part = memoryview(bytearray(end_bytes - start_bytes))
        self._image.read(start_bytes, part)
        self._data.write(start_bytes, part, len(part))

    def _mark(self, start_bytes: int, end_bytes: int) -> None:
        size = self._base.block_bytes
        self._dirty.update(self._bits.add(start_bytes // size, -(-end_bytes // size)))

    def _check(self) -> None:
        if self._failed:
            raise OSError(errno.EIO, "the overlay failed to become durable before")


class _BlockMap:
    """A bit for each block. Reading takes no lock; `add` and `page` are called by one thread at a time."""

    def __init__(self, blocks: int, fd: int) -> None:
        size = -(-(blocks or 1) // (8 * PAGE_BYTES)) * PAGE_BYTES
        self._bits = bytearray(size)
        if fd >= 0:
            for at in range(0, size, 1 << 20):
                data = os.pread(fd, min(1 << 20, size - at), at)
                self._bits[at : at + len(data)] = data

    def has(self, block: int) -> bool:
        return bool(self._bits[block >> 3] >> (block & 7) & 1)

    def add(self, start: int, stop: int) -> set[int]:
        """Set the bits of blocks `[start, stop)`; return the pages that changed."""
        changed: set[int] = set()
        while start < stop:
            at, bit = start >> 3, start & 7
            if not bit and stop - start >= 8:
                whole = (stop - start) >> 3
                for page in range(at // PAGE_BYTES, (at + whole - 1) // PAGE_BYTES + 1):
                    low, high = max(at, page * PAGE_BYTES), min(at + whole, (page + 1) * PAGE_BYTES)
                    if self._bits.count(0xFF, low, high) != high - low:
                        self._bits[low:high] = b"\xff" * (high - low)
                        changed.add(page)
                start += whole * 8
                continue
            if not self._bits[at] >> bit & 1:
                self._bits[at] |= 1 << bit
                changed.add(at // PAGE_BYTES)
            start += 1
        return changed

    def page(self, number: int) -> bytes:
        return bytes(self._bits[number * PAGE_BYTES : (number + 1) * PAGE_BYTES])

    def count(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield `(start, stop, set)` of neighbouring blocks that are alike, over `[start, stop)`."""
        while start < stop:
            mine = self.has(start)
            end = self._end_of_run(start, stop, mine)
            yield start, end, mine
            start = end

    def _end_of_run(self, at: int, stop: int, mine: bool) -> int:
        like = b"\xff" if mine else b"\0"
        while at < stop and self.has(at) == mine:
            if at & 7 or self._bits[at >> 3] != like[0]:
                at += 1
                continue
            ahead = bytes(self._bits[at >> 3 : min((at >> 3) + PAGE_BYTES, -(-stop // 8))])
            at += 8 * (len(ahead) - len(ahead.lstrip(like)))
        return min(at, stop)


def open_unnamed(image: BaseImage, base: Base, scratch: Path | None = None) -> Overlay:
    """Return a new overlay in files that nobody sees and that end with the process."""
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="overlay-") as file:
        file.truncate(base.size_bytes)
        return Overlay(image, base, BlockFile(file.name), -1)


def open_named(image: BaseImage, base: Base, folder: Path) -> Overlay:
    """Return the overlay in this folder, made if it is not there. It is this process's alone until it is closed.

    Raises ConfigError if it lies over something else, RetryError if another process has it, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock_fd, folder)
        known = read_base(folder)
        if known is None:
            _make(base, folder)
        elif known != base:
            raise ConfigError(
                f"The overlay {folder.name} lies over {known.volume} at {known.position}, not over {base.volume} at {base.position}",
                hint=f"Use --at {known.position}, or another --name.",
            )
        map_fd = os.open(folder / "map", os.O_RDWR | os.O_CLOEXEC)
        try:
            return Overlay(image, base, BlockFile(folder / "data"), map_fd, lock_fd=lock_fd)
        except BaseException:
            os.close(map_fd)
            raise
    except BaseException:
        os.close(lock_fd)
        raise


def read_base(folder: Path) -> Base | None:
    """Return what the overlay in this folder lies over, None if there is none. Raises ConfigError for one that can't be read."""
    try:
        told = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        if told.pop("form") != _FORM:
            raise ValueError("a form that this version does not know")
        return Base(**(told | {"position": Position.parse(told["position"])}))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"The overlay in {folder} can't be read: {error}", hint="Use another --name, or remove that folder.") from error


def _make(base: Base, folder: Path) -> None:
    """Make the files durably, what says that they are whole last."""
    for name, size in (("data", base.size_bytes), ("map", 0)):
        fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
    new = folder / "base.new"
    with new.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(base) | {"position": str(base.position), "form": _FORM}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / "base.json")
    fsync_folder(folder)
    fsync_folder(folder.parent)


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RetryError(
            f"The overlay {folder.name} is in use by another export", hint="See `hostoffload export list`, or use another --name."
        ) from error
