"""`Flusher`: one persistent thread a connection that flushes the device while other requests go on.

A thread for a connection, not for a device, so that a client that does not read its replies delays nobody else's flush. Requests
that wait together are answered by one flush. The thread is started by the first request that can't be served in line.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import perf_counter

from nbd import wire
from nbd.errors import attempt
from nbd.outbox import Outbox

INLINE_S_MAX = 0.001
"""A device whose flushes take longer than this on average is never flushed in line: other requests would wait."""

WAITING_MAX = 1024
"""Requests of one connection that may wait for a flush; a client that sends more waits until some are answered, and were read."""

_WEIGHT = 0.2


class Flusher:
    """Flushes of one connection, in line or apart."""

    def __init__(self, flush: Callable[[], None], outbox: Outbox) -> None:
        self._flush = flush
        self._outbox = outbox
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(WAITING_MAX)
        self._thread: threading.Thread | None = None
        self._mean_s = 0.0

    @property
    def quick(self) -> bool:
        """Whether a lone flush is better served in line."""
        return self._mean_s < INLINE_S_MAX

    def flush(self) -> int:
        """Flush on the calling thread; return 0 or the errno for the client."""
        began = perf_counter()
        error = attempt(self._flush)
        self._mean_s += _WEIGHT * (perf_counter() - began - self._mean_s)
        return error

    def submit(self, cookie: int) -> None:
        """Flush on the other thread, then answer `cookie`; covers everything that was done before this call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nbd-flush", daemon=True)
            self._thread.start()
        self._room.acquire()
        self._queue.put(cookie)

    def close(self) -> None:
        """Wait until everything submitted is answered, and end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            cookies = self._waiting()
            answered = [cookie for cookie in cookies if cookie is not None]
            if answered:
                error = self.flush()
                self._answer(b"".join([wire.pack_simple_reply(cookie, error) for cookie in answered]))
                self._room.release(len(answered))
            if len(answered) < len(cookies):
                return

    def _waiting(self) -> list[int | None]:
        """Block for one request and take all others that wait with it."""
        taken = [self._queue.get()]
        while True:
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                return taken

    def _answer(self, replies: bytes) -> None:
        try:
            self._outbox.send_apart(replies)
        except OSError:
            return  # The client is gone; the connection's own thread finds out and says so.
