"""Marks: records that say something about the stream itself, appended in order with all others.

Their attributes lie as JSON in a pool chunk that many marks share; it goes back when Kafka has all of them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from agent.allocator import KeepWaiting
from agent.pool import CHUNK_BYTES
from agent.record_log import RecordLog
from stream.errors import RetryError
from stream.record import Kind

MARK_BYTES_MAX = 8 << 10

Tell = Callable[[], Mapping[str, str] | None]
"""Called with the volume's mutex held: what the mark says, as things stand at its position; None: there is to be none."""


Append = Callable[[Kind, Tell], "int | None"]

Put = Callable[[Kind, Mapping[str, str]], int]
"""Appends a mark and returns its sequence; called with the volume's mutex held."""


class Marks:
    """Append marks to a volume's log. Thread-safe; blocks while the buffer is full, except for what `RecordLog.reserve_mark` keeps."""

    def __init__(self, log: RecordLog) -> None:
        self._log = log
        self._filling = threading.Lock()
        self._chunk: int | None = None
        self._fill = 0
        self._last = 0

    def append(self, kind: Kind, attributes: Mapping[str, str] | None = None) -> int:
        """Append a mark; return its sequence. Raises OSError when the volume goes out of service."""
        if not attributes:
            self._log.reserve(1)
            with self._log.mutex:
                sequence = self._log.append(kind)
            self._log.wake_publisher()
            return sequence
        appended = self.append_told(kind, lambda: attributes)
        assert appended is not None
        return appended

    def append_told(self, kind: Kind, tell: Tell) -> int | None:
        """Append a mark whose attributes are decided in the moment that it gets its position; None if there is to be none."""
        with self.prepared() as append:
            return append(kind, tell)

    @contextmanager
    def prepared(self) -> Iterator[Append]:
        """Return a context in which one mark can be appended without waiting for memory: under an extent's lock, for example."""
        log, appended = self._log, False
        with self._filling:
            self._have_room()
            log.reserve(1)

            def append(kind: Kind, tell: Tell) -> int | None:
                nonlocal appended
                sequence = self._append(kind, tell)
                appended = sequence is not None
                return sequence

            try:
                yield append
            finally:
                if not appended:
                    with log.mutex:
                        log.release(1)

    @contextmanager
    def kept(self, timeout_s: float) -> Iterator[Put]:
        """Return a context in which one mark can be put by who holds the mutex. It waits no longer than that for memory.

        Raises RetryError when there is none, or the volume is out of service.
        """
        log, until_s = self._log, time.monotonic() + timeout_s
        if not self._filling.acquire(timeout=max(0.0, timeout_s)):
            raise RetryError(f"Another mark of volume {log.owner} takes too long", hint="Does the source's disk hang?")
        try:
            if not self._keep(lambda: time.monotonic() < until_s):
                raise RetryError(f"There is no memory for a mark of volume {log.owner}", hint="Is the buffer full? Look at Kafka.")

            def put(kind: Kind, told: Mapping[str, str]) -> int:
                log.reserve_mark()
                return self._put(kind, told)

            yield put
        finally:
            self._filling.release()

    def _append(self, kind: Kind, tell: Tell) -> int | None:
        """Append with chunk and entry at hand."""
        log = self._log
        with log.mutex:
            told = tell()
            if told is None:
                return None
            self._put(kind, told)
        log.wake_publisher()
        return self._last

    def _put(self, kind: Kind, told: Mapping[str, str]) -> int:
        """Append with chunk and entry at hand, the mutex held."""
        assert self._chunk is not None
        raw = json.dumps(dict(told)).encode()
        assert len(raw) <= MARK_BYTES_MAX, "a mark is too long"
        self._log.pool.chunk(self._chunk)[self._fill : self._fill + len(raw)] = raw
        self._last = self._log.append(kind, 0, len(raw), self._chunk, self._fill)
        self._fill += len(raw)
        return self._last

    def close(self) -> None:
        """Give the chunk back once Kafka has what lies in it."""
        with self._filling:
            if self._chunk is not None:
                self._log.retire(self._chunk, self._last)
                self._chunk = None

    def _keep(self, keep_waiting: KeepWaiting) -> bool:
        """Have chunk and entry for `kept`."""
        try:
            return self._log.failure is None and self._have_room(keep_waiting) and self._log.keep_mark(keep_waiting)
        except OSError:  # out of service meanwhile
            return False

    def _have_room(self, keep_waiting: KeepWaiting | None = None) -> bool:
        """Have a chunk with room for one more mark; False if `keep_waiting` ended the wait for one."""
        if self._chunk is not None and self._log.acked(self._last):
            self._fill = 0
        if self._chunk is not None and self._fill + MARK_BYTES_MAX > CHUNK_BYTES:
            self._log.retire(self._chunk, self._last)
            self._chunk = None
        if self._chunk is None:
            taken = self._log.allocator.take(1, index=True, owner=self._log.owner, keep_waiting=keep_waiting)
            if taken is None:
                return False
            self._chunk, self._fill = taken[0], 0
        return True
