"""A file as a page cache over a disk: what was written and not flushed may be lost, torn at a sector, or kept out of order.

`data` is what every reader sees. `stable` is what a power cut leaves at least: everything up to the last good flush. What came after it is
in `dirty`, in order.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

SECTOR_BYTES = 512
BLOCK_BYTES = 4096


class Mapping(bytearray):
    """A file's bytes as `mmap` gives them: shared by all that map it, and there as long as anybody looks."""

    def close(self) -> None:
        """Nothing is unmapped: the file is the memory."""


class Faults:
    """What goes wrong with one file from now on: errnos by operation, each so many times; how slow; whether a flush may fail."""

    def __init__(self) -> None:
        self.planned: dict[str, list[int]] = {}
        self.slow_s = 0.0

    def plan(self, what: str, code: int, times: int = 1) -> None:
        self.planned.setdefault(what, []).extend([code] * times)

    def clear(self) -> None:
        self.planned.clear()
        self.slow_s = 0.0

    def take(self, what: str) -> int:
        """Return the errno that this operation gets, 0 for none."""
        if not self.planned:
            return 0
        codes = self.planned.get(what)
        return codes.pop(0) if codes else 0


class Inode:
    """One file. `ram` files are gone with the machine and have no disk behind them."""

    def __init__(self, number: int, ram: bool, mode: int) -> None:
        self.number = number
        self.ram = ram
        self.mode = mode
        self.data = Mapping()
        self.mapped = bytearray()  # one byte a block: written, not a hole
        self.stable = bytearray()
        self.stable_mapped = bytearray()
        self.dirty: list[tuple[int, bytes]] = []
        self.mtime_ns = 0
        self.links = 1
        self.faults = Faults()
        self.holder: object | None = None
        self.bell = 0
        self.ringers: list[object] = []
        self.watch: Callable[[int, int], None] | None = None
        self.flush_failed: Callable[[], None] = lambda: None
        self.errors = 0  # flushes that failed: each open file is told once
        self.reverted: set[int] = set()  # blocks that a failed flush lost, and that were read from the disk again since
        self.punches = True

    # -- changes in the page cache -------------------------------------------------------------------------------------

    def resize(self, size_bytes: int) -> None:
        if size_bytes == len(self.data):
            return
        if size_bytes > len(self.data):
            self.data.extend(bytes(size_bytes - len(self.data)))
        else:
            del self.data[size_bytes:]
        blocks = -(-size_bytes // BLOCK_BYTES)
        self.mapped = self.mapped[:blocks] + bytes(max(0, blocks - len(self.mapped)))

    def put(self, offset_bytes: int, piece: bytes | memoryview) -> None:
        """Change bytes as a write does."""
        end = offset_bytes + len(piece)
        if end > len(self.data):
            self.resize(end)
        self.data[offset_bytes:end] = piece
        if piece:
            first, last = offset_bytes // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
            self.mapped[first : last + 1] = b"\1" * (last + 1 - first)
        self._changed(offset_bytes, end)

    def wipe(self, offset_bytes: int, length_bytes: int, *, punch: bool) -> None:
        """Make an extent read as zero; whole blocks become holes if they are punched out."""
        end = min(offset_bytes + length_bytes, len(self.data))
        self.data[offset_bytes:end] = bytes(end - offset_bytes)
        first, last = -(-offset_bytes // BLOCK_BYTES), end // BLOCK_BYTES
        if last > first:
            self.mapped[first:last] = (b"\0" if punch else b"\1") * (last - first)
        self._changed(offset_bytes, end)

    def _changed(self, start_bytes: int, end_bytes: int) -> None:
        if not self.ram and self.errors:  # a page is written back whole, with what an earlier flush of it lost
            start_bytes = start_bytes // BLOCK_BYTES * BLOCK_BYTES
            end_bytes = min(-(-end_bytes // BLOCK_BYTES) * BLOCK_BYTES, len(self.data))
            self.reverted.difference_update(range(start_bytes // BLOCK_BYTES, -(-end_bytes // BLOCK_BYTES)))
        if not self.ram:
            self.dirty.append((start_bytes, bytes(self.data[start_bytes:end_bytes])))
        if self.watch is not None:
            self.watch(start_bytes, end_bytes)

    # -- the disk ------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._settle_size()
        for offset, piece in self.dirty:
            self.stable[offset : offset + len(piece)] = piece
        self.dirty.clear()
        self.stable_mapped[:] = self.mapped

    def flush_extent(self, start_bytes: int, end_bytes: int) -> None:
        """Bring the pages of an extent to the disk, and every older change that lies under one of those: it must not come after them."""
        self._settle_size()
        reached, kept, flushed = [(start_bytes, end_bytes)], [], []
        for offset, piece in reversed(self.dirty):
            end = offset + len(piece)
            if any(offset < stop and start < end for start, stop in reached):
                reached.append((offset, end))
                flushed.append((offset, piece))
            else:
                kept.append((offset, piece))
        for offset, piece in reversed(flushed):
            self.stable[offset : offset + len(piece)] = piece
        self.dirty = kept[::-1]

    def fail_flush(self) -> None:
        """Fail as Linux does: the pages count as clean from now on, and the disk never gets them by themselves."""
        self.dirty.clear()
        self.errors += 1
        self.flush_failed()

    def forget(self, start_bytes: int, end_bytes: int) -> None:
        """Drop whole clean pages: what is read next comes from the disk."""
        if not self.errors:
            return  # it is what is there
        self._settle_size()
        for block in range(-(-start_bytes // BLOCK_BYTES), min(end_bytes, len(self.data)) // BLOCK_BYTES):
            at, stop = block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES
            if self.data[at:stop] != self.stable[at:stop] and not any(at < one + len(piece) and one < stop for one, piece in self.dirty):
                self.data[at:stop] = self.stable[at:stop]
                self.mapped[block] = self.stable_mapped[block] or any(self.data[at:stop])
                self.reverted.add(block)

    def lose_power(self, rng: random.Random) -> None:
        """Keep some of what was not flushed: all, nothing, whole writes, or single sectors of them, whatever the order."""
        if self.ram:
            self.data = Mapping()
            return
        self._settle_size()
        how = rng.choice(("nothing", "all", "writes", "sectors", "sectors"))
        for offset, piece in self.dirty:
            if how == "all" or (how == "writes" and rng.random() < 0.5):
                self.stable[offset : offset + len(piece)] = piece
            elif how == "sectors":
                at = 0
                while at < len(piece):
                    stop = min(len(piece), at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
                    if rng.random() < 0.5:
                        self.stable[offset + at : offset + stop] = piece[at:stop]
                    at = stop
        self.dirty.clear()
        self.data[:] = self.stable
        for block in range(len(self.mapped)):  # a block that was lost is a hole again, unless something is in it
            at = block * BLOCK_BYTES
            self.mapped[block] = self.stable_mapped[block : block + 1] == b"\1" or any(self.data[at : at + BLOCK_BYTES])

    def _settle_size(self) -> None:
        """Sizes are the file system's own: they are never torn here."""
        size = len(self.data)
        if len(self.stable) < size:
            self.stable.extend(bytes(size - len(self.stable)))
        elif len(self.stable) > size:
            del self.stable[size:]
        blocks = len(self.mapped)
        self.stable_mapped = self.stable_mapped[:blocks] + bytes(max(0, blocks - len(self.stable_mapped)))


def refuse(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


FULL = errno.ENOSPC
BROKEN = errno.EIO
