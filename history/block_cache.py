"""Blocks of segments and pages of folds as they were read last, decoded: kept up to a bound, shared by all images of a process.

Each block is read once however many threads want it at the same time; a failure is told to all who waited for it and kept for nobody.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

BLOCKS_BYTES_MAX = 64 << 20
T = TypeVar("T")


class BlockCache:
    """Keep the blocks used last. Thread-safe; blocks are read without a lock held."""

    def __init__(self, bytes_max: int = BLOCKS_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._read: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], T], cost: Callable[[T], int] = len) -> T:
        """Return the block of this key, reading it if it is not there; `cost` tells its size in bytes. Raises what `read` raises."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found[0]
            mine = self._read.setdefault(key, threading.Lock())
        with mine:
            with self._lock:
                found = self._kept.get(key)
            if found is not None:
                return found[0]
            try:
                block = read()
                self._keep(key, block, cost(block))
            finally:
                with self._lock:
                    self._read.pop(key, None)
        return block

    def _keep(self, key: Hashable, block: object, cost_bytes: int) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (block, cost_bytes)
                self._bytes += cost_bytes
            while self._bytes > self._bytes_max and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1][1]


BLOCKS = BlockCache()
"""What every image of this process reads through unless it is told another."""
