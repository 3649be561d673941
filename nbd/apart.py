"""`Apart`: what a connection does on other threads when its device is slow, and `Gauge`, which tells that it is.

A fast device is served in line, by one thread, because a hand-over costs more than the operation. A slow one (a remote disk, a
millisecond an operation) would then see one request at a time; so a client's 32 requests are given to as many threads.
Nothing here runs, and no thread exists, before a device was seen to be slow.
"""

from __future__ import annotations

import queue
import resource
import threading
from collections.abc import Callable

THREADS_MAX = 32
"""Threads of one connection."""

THREADS_TOTAL_MAX = 256
"""Threads of all connections of a server together; a connection that gets none goes on in line."""

SLOW_S = 0.0002
"""An operation above this, on average, is slow. A hand-over costs a quarter of it."""

CROWD_MAX = 4
"""Connections beyond this no longer raise what counts as slow."""

BYTES_PER_S_EXPECTED = 1e9
"""Time that data takes at this rate is not held against the device."""

ANSWER_S = 0.0002
"""A reply waits for others of its batch about so long: sending is dear, but a client that waits sends nothing new."""

HOLD_S_MIN, HOLD_S_MAX = 0.05, 1.0
"""How long a device is taken for slow before a batch is served in line again to see; doubled each time it still is."""


class Gauge:
    """Judges a device by the time that batches take in line. Connections wait for each other too, so their number counts.

    Time alone would take a busy machine for a slow device. So a mean above the limit only makes it `suspect`; `slow` it is when, in
    a batch watched for it, its operations made the thread wait.
    """

    def __init__(self, crowd: Crowd) -> None:
        self.suspect = False
        self.slow = False
        self.answer_every = int(ANSWER_S / 1e-6)
        """Writes in line after which their replies are sent, although more of the batch is to be served."""
        self._pace_s = 0.0
        self._crowd = crowd
        self._mean_s = 0.0
        self._hold_s = HOLD_S_MIN
        self._until = 0.0

    def note(self, elapsed_s: float, requests: int, nbytes: int, now: float, waits: int = 0) -> None:
        """Take into account a batch of `requests` (at least 1) with `nbytes` of data, served in line until `now`.

        `waits` is how often the thread had to wait meanwhile; it is looked at while the device is suspect.
        """
        self._pace_s += 0.2 * (elapsed_s / requests - self._pace_s)
        self.answer_every = max(1, int(ANSWER_S / max(self._pace_s, 1e-6)))
        each_s = (elapsed_s - nbytes / BYTES_PER_S_EXPECTED) / requests
        self._mean_s += (0.5 if self.slow else min(0.5, requests / 64)) * (each_s - self._mean_s)
        watched = self.suspect
        self.suspect = self._mean_s > SLOW_S * min(max(1, self._crowd.connections), CROWD_MAX)
        self.slow = watched and self.suspect and waits * 2 >= requests
        self._hold_s = min(self._hold_s * 2, HOLD_S_MAX) if self.slow else HOLD_S_MIN
        self._until = now + self._hold_s

    def probe_due(self, now: float) -> bool:
        """Whether it is time to serve a batch in line although the device was slow."""
        return now >= self._until


class Crowd:
    """The connections of a server, and the threads that they may still start."""

    def __init__(self, threads: int = THREADS_TOTAL_MAX) -> None:
        self._lock = threading.Lock()
        self._left = threads
        self.connections = 0

    def enter(self) -> None:
        """Count a connection."""
        with self._lock:
            self.connections += 1

    def leave(self) -> None:
        """Count it no longer."""
        with self._lock:
            self.connections -= 1

    def take(self, wanted: int) -> int:
        """Take up to `wanted` threads; return how many."""
        with self._lock:
            taken = min(wanted, self._left)
            self._left -= taken
        return taken

    def give(self, count: int) -> None:
        """Give threads back."""
        with self._lock:
            self._left += count


class Apart:
    """The threads of one connection. Only the connection's thread submits and drains."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._taken = -1
        self._submitted = 0
        self._finished: list[None] = []
        self._draining = False
        self._drained = threading.Condition()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def in_flight(self) -> int:
        """The number of jobs that are not finished yet."""
        return self._submitted - len(self._finished)

    def available(self) -> bool:
        """Whether there is a thread to give work to; asks for the connection's share the first time."""
        if self._taken < 0:
            self._taken = self._crowd.take(THREADS_MAX)
        return self._taken > 1

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which raises OSError only if the client is gone, on another thread."""
        if self.in_flight >= len(self._threads) < self._taken:
            self._start_thread()
        self._submitted += 1
        self._queue.put(job)

    def drain(self) -> None:
        """Wait until nothing is in flight."""
        if self.in_flight:
            with self._drained:
                self._draining = True
                self._drained.wait_for(lambda: not self.in_flight)
                self._draining = False
        if self._submitted:
            self._submitted = 0
            self._finished.clear()

    def close(self) -> None:
        """Drain, and end the threads."""
        self.drain()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self._taken > 0:
            self._crowd.give(self._taken)
        self._taken = 0

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="nbd-apart", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # No more threads in this process; those that run do the work.
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
            except OSError:
                pass  # The client is gone; the connection's own thread finds out and says so.
            finally:
                self._finished.append(None)  # One step for all threads, and cheaper than a lock.
                if self._draining:
                    with self._drained:
                        self._drained.notify_all()


def count_waits() -> int:
    """Return how often this thread has had to wait so far: its voluntary context switches."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
