"""Reading a written volume back: every run must have its digest, everything else must read as zero.

Used by `restore` before a target gets its name. Reads past the page cache (O_DIRECT) where file system and device allow it, so that what is
proved is what the disk holds; otherwise what was cached and clean is dropped first. Holes of a file are taken for the zeroes that they are.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from nbd.blockfile import EXTENT_HOLE, BlockFile
from recovery.runs import REGION_BYTES, Run, Runs, digest_of, gaps_between
from stream.errors import IntegrityError

ALIGN_BYTES = 4096
WORKERS = 2
EXTENTS_MAX = 256
_ZEROES = bytes(REGION_BYTES)


class Readback:
    """Read back a volume of `size_bytes`; `direct` tells whether the page cache is passed by."""

    def __init__(self, path: Path, size_bytes: int, runs: Runs) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._runs = runs
        self._file = BlockFile(path, read_only=True)
        self._direct_fd = _open_direct(path)
        if self._direct_fd < 0:
            self._file.forget(0, 0)

    @property
    def direct(self) -> bool:
        return self._direct_fd >= 0

    def run(self, watch: Callable[[int], None] = lambda done_bytes: None) -> int:
        """Prove all of it; return how many bytes were read. Raises IntegrityError that names the place, OSError."""
        regions = range(-(-self._size_bytes // REGION_BYTES))
        read_bytes = 0
        with ThreadPoolExecutor(WORKERS, "readback") as pool:
            try:
                for number, nbytes in zip(regions, pool.map(self._region, regions), strict=True):
                    read_bytes += nbytes
                    watch(min(self._size_bytes, (number + 1) * REGION_BYTES))
            finally:
                pool.shutdown(cancel_futures=True)
        return read_bytes

    def close(self) -> None:
        self._file.close()
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
        self._direct_fd = -1

    def _region(self, number: int) -> int:
        """Prove one region; return how many bytes of it were read."""
        start = number * REGION_BYTES
        end = min(start + REGION_BYTES, self._size_bytes)
        runs = self._runs.region(number)
        if not runs and self._is_hole(start, end):
            return 0
        buffer = mmap.mmap(-1, REGION_BYTES)  # O_DIRECT wants memory that begins with a page
        view = memoryview(buffer)
        try:
            self._read(start, view[: end - start], view)
            for run in runs:
                if digest_of(view[run.start_bytes - start : run.end_bytes - start]) != run.digest:
                    raise self._differs(run)
            for gap_start, gap_end in gaps_between(runs, start, end):
                if view[gap_start - start : gap_end - start].tobytes() != _ZEROES[: gap_end - gap_start]:
                    raise self._differs(Run(gap_start, gap_end, 0))
        finally:
            view.release()
            buffer.close()
        return end - start

    def _read(self, start: int, into: memoryview, whole: memoryview) -> None:
        if self._direct_fd >= 0:
            with suppress(OSError):  # a device that refuses this very length; the plain way tells of real errors
                aligned = min(len(whole), -(-len(into) // ALIGN_BYTES) * ALIGN_BYTES)
                if os.preadv(self._direct_fd, [whole[:aligned]], start) >= len(into):
                    return
        self._file.read(start, into)

    def _is_hole(self, start: int, end: int) -> bool:
        if self._file.is_device:
            return False
        found = self._file.extents(start, end - start, EXTENTS_MAX)
        return sum(length for length, kind in found if kind == EXTENT_HOLE) == end - start

    def _differs(self, run: Run) -> IntegrityError:
        return IntegrityError(
            "What was written reads back as something else",
            path=self._path,
            offset_bytes=run.start_bytes,
            length_bytes=run.end_bytes - run.start_bytes,
            hint="Look at the disk of the target; restore to another one.",
        )


def _open_direct(path: Path) -> int:
    """Open past the page cache; -1 where that is not possible (tmpfs)."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return -1
