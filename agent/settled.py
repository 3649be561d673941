"""A settled read: the bytes of an extent as they are at one position, while applications go on writing.

The extent is read without a lock. Then its lock is taken, and only if an operation was in it meanwhile is it read again: an application's
write waits for a read of cached pages at most (design section 4, first copy). Within the context nothing else is in the extent, so a
position taken there is the position of these bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.extents import ExtentLocks, Watch
from nbd.blockfile import BlockFile

Differing = Callable[[int, memoryview], Iterable[tuple[int, int]]]
"""Given where an extent begins and its bytes, the parts of it, relative to its begin, that the replicas lack."""


class Settled:
    """Context manager; entering returns `into`, filled. Raises OSError at entering when the source can't be read."""

    def __init__(self, file: BlockFile, locks: ExtentLocks, start_bytes: int, into: memoryview) -> None:
        self._file = file
        self._locks = locks
        self._into = into
        self._watch = Watch(start_bytes, start_bytes + len(into))

    def __enter__(self) -> memoryview:
        watch, mutex = self._watch, self._locks.mutex
        with mutex:
            self._locks.begin_watch(watch)
        try:
            self._file.read(watch.start_bytes, self._into)
        except OSError:
            with mutex:
                self._locks.end_watch(watch)
            raise
        with mutex:
            touched = self._locks.enter_watched(watch)
        if touched:
            try:
                self._file.read(watch.start_bytes, self._into)
            except OSError:
                self.__exit__()
                raise
        return self._into

    def __exit__(self, *_: object) -> None:
        with self._locks.mutex:
            self._locks.leave(self._watch.start_bytes)
