"""Scratch memory: where a long write is received that will not be recorded, because the buffer is full.

Capture has one for all volumes, as long as the longest request; its memory is made when it is needed and given back at once, so that it
costs nothing in order. Writes that need it wait for each other.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress

from nbd.wire import REQUEST_BYTES_MAX


class Scratch:
    """Room for one long write at a time. Thread-safe."""

    def __init__(self) -> None:
        self._free = threading.Semaphore()
        self._map: mmap.mmap | None = None

    def take(self, piece_bytes: int, count: int) -> list[memoryview]:
        """Return that many pieces; waits for whoever has them now."""
        assert piece_bytes * count <= REQUEST_BYTES_MAX + piece_bytes, "longer than any request"
        self._free.acquire()
        self._map = mmap.mmap(-1, piece_bytes * count)
        view = memoryview(self._map)
        return [view[at : at + piece_bytes] for at in range(0, len(view), piece_bytes)]

    def give(self, pieces: list[memoryview]) -> None:
        """Take the pieces back; nobody uses them any more."""
        pieces.clear()
        held, self._map = self._map, None
        with suppress(BufferError):  # a slice still lives; the memory goes with it
            if held is not None:
                held.close()
        self._free.release()
