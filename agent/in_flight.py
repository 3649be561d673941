"""Bytes on their way: what the publisher gave to Kafka for all volumes together, and the limit of that."""

from __future__ import annotations

import threading


class InFlight:
    """Bytes given to Kafka and not acknowledged, of all volumes together, and their limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._mutex = threading.Lock()
        self.bytes = 0

    @property
    def full(self) -> bool:
        return self.bytes >= self._limit_bytes

    def add(self, count: int) -> None:
        with self._mutex:
            self.bytes += count
