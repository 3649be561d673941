"""How much a workload overwrites: blocks that were written at least once, counted in windows of several lengths at the same time. Pure.

A fold keeps the last write of each extent of its span (`history.fold`): the bytes of a window's unique blocks are what it would hold. For
each block one number is kept, the second in which it was written last: a write is the block's first in every window that began later.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from hostoffload.capacity.workload import Overwrite

BLOCK_BYTES = 4096
PAGE_BLOCKS = 1024
PAGES_MAX = 65_536
"""Memory: 4 KiB for each 4 MiB of the volume that was written to, 256 MiB at most; beyond it nothing is told."""

_NEVER = bytes(4 * PAGE_BLOCKS)


class OverwriteCount:
    """Count as writes come, in the order of time. `windows_s` in whole seconds; windows follow each other from second 0 on."""

    def __init__(self, windows_s: Iterable[int]) -> None:
        self._windows = [_Window(one) for one in sorted(set(windows_s))]
        self._pages: dict[int, array[int]] = {}
        self._second = -1
        self.overrun = False
        """Whether the writes touched more of the volume than is kept count of."""

    def add(self, second: int, offset_bytes: int, length_bytes: int) -> None:
        """Count a write; a second before the latest one counts as that. Blocks that it touches in part count whole."""
        if self.overrun or length_bytes <= 0:
            return
        if second > self._second:
            self._second = second
            for window in self._windows:
                window.enter(second)
        for window in self._windows:
            window.written_bytes += length_bytes
        at, end = offset_bytes // BLOCK_BYTES, -(-(offset_bytes + length_bytes) // BLOCK_BYTES)
        while at < end:
            page, first = divmod(at, PAGE_BLOCKS)
            stop = min(PAGE_BLOCKS, first + end - at)
            self._touch(page, first, stop)
            at += stop - first

    def finish(self, seconds: int) -> tuple[Overwrite, ...] | None:
        """Return the windows that were complete after `seconds`, those of them that came at least once; None after an overrun."""
        if self.overrun:
            return None
        for window in self._windows:
            window.enter(seconds)
        return tuple(one for window in self._windows if (one := window.told()).windows)

    def _touch(self, page: int, first: int, stop: int) -> None:
        cells = self._pages.get(page)
        if cells is None:
            if len(self._pages) >= PAGES_MAX:
                self.overrun = True
                return
            cells = self._pages[page] = array("I", _NEVER)
        stamp = self._second + 1  # 0: never
        for last in cells[first:stop]:
            for window in self._windows:
                if last < window.begin_stamp:
                    window.blocks += 1
        cells[first:stop] = array("I", [stamp]) * (stop - first)


class _Window:
    """One length of window: the present one, and the sum of those that are over."""

    __slots__ = ("_over", "_sum_unique_bytes", "_sum_written_bytes", "begin_stamp", "blocks", "window_s", "written_bytes")

    def __init__(self, window_s: int) -> None:
        if window_s < 1:
            raise ValueError(f"a window of {window_s} s")
        self.window_s = window_s
        self.begin_stamp = 1
        self.blocks = self.written_bytes = 0
        self._over = self._sum_written_bytes = self._sum_unique_bytes = 0

    def enter(self, second: int) -> None:
        """Go on to the window that has this second; the one that was present is over then, and those between were empty."""
        index = second // self.window_s
        if index == self._over:
            return
        self._sum_written_bytes += self.written_bytes
        self._sum_unique_bytes += min(self.blocks * BLOCK_BYTES, self.written_bytes)
        self.blocks = self.written_bytes = 0
        self._over = index
        self.begin_stamp = index * self.window_s + 1

    def told(self) -> Overwrite:
        return Overwrite(self.window_s, self._over, self._sum_written_bytes, self._sum_unique_bytes)
