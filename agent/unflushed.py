"""Unflushed: where was written since the last good flush of the source (design rule 15).

In regions of 1 MiB. A flush that fails says nothing about which pages were lost, so all that it stood for is in doubt; a later success
does not clear that.
"""

from __future__ import annotations

from collections.abc import Iterator

REGION_SHIFT = 20


class Unflushed:
    """The regions of one volume. The volume's mutex is held for every call; flushes may overlap each other."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._flushing: list[set[int]] = []

    def add(self, start_bytes: int, end_bytes: int) -> None:
        """Note a write that has reached the source."""
        first, last = start_bytes >> REGION_SHIFT, (end_bytes - 1) >> REGION_SHIFT
        if first == last:
            self._open.add(first)
        else:
            self._open.update(range(first, last + 1))

    def begin(self) -> set[int]:
        """Begin a flush; return what it stands for, to be given to `done`."""
        taken, self._open = self._open, set()
        self._flushing.append(taken)
        return taken

    def done(self, taken: set[int]) -> None:
        """End a flush that succeeded."""
        self._flushing = [one for one in self._flushing if one is not taken]

    def failed(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Return all extents in doubt after a flush that failed, cut at the volume's end, and forget them."""
        regions = sorted(self._open.union(*self._flushing))
        self._open, self._flushing = set(), []
        return ((one << REGION_SHIFT, min((one + 1) << REGION_SHIFT, size_bytes)) for one in regions)
