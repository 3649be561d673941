"""Intake: messages that wait between the Faust agents and the volumes' workers, bounded in bytes for all volumes together.

The agents put from the event loop; each volume's worker takes from its own `Inbox` in its thread. A message keeps its room until the worker
gives it back. Half of the room is shared out evenly as a guarantee, so that a volume that stands still never stops another; the other half
goes to whoever needs it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

TAKE_MESSAGES_MAX = 64
TAKE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message of the writes topic; `done` is called in the event loop, in order, when nothing of it can be lost any more."""

    kafka_offset: int
    value: bytes | None
    done: Callable[[], object]

    @property
    def size_bytes(self) -> int:
        return len(self.value) if self.value is not None else 0


class Intake:
    """The room that all inboxes share."""

    def __init__(self, bytes_max: int, loop: asyncio.AbstractEventLoop) -> None:
        self._shared_bytes_max = bytes_max // 2
        self._guaranteed_bytes = bytes_max - self._shared_bytes_max
        self._loop = loop
        self._lock = threading.Lock()
        self._inboxes: dict[str, Inbox] = {}
        self._waiters: set[asyncio.Future[None]] = set()

    def new_inbox(self, volume: str) -> Inbox:
        """Return a new inbox for the volume in the place of its old one; it is closed until its worker opens it."""
        inbox = Inbox(self)
        with self._lock:
            old, self._inboxes[volume] = self._inboxes.get(volume), inbox
        if old is not None:
            old.close()
        return inbox

    def forget(self, volume: str) -> None:
        """Give the volume's guarantee to the others; its messages are dropped, not acknowledged."""
        with self._lock:
            inbox = self._inboxes.pop(volume, None)
        if inbox is not None:
            inbox.close()

    async def put(self, volume: str, arrival: Arrival) -> None:
        """Hand over a message; wait while there is no room or nobody works on the volume. Called in the event loop, in order."""
        while not self._offer(volume, arrival):
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                if self._offer(volume, arrival):  # room may have come between the offer and the waiter
                    return
                await waiter
            finally:
                self._waiters.discard(waiter)

    def has_room(self, inbox: Inbox, more_bytes: int) -> bool:
        """Tell whether `inbox` may hold that much more; an empty one always takes a message."""
        if inbox.held_bytes == 0:
            return True
        with self._lock:
            share = self._guaranteed_bytes // max(1, len(self._inboxes))
            if inbox.held_bytes + more_bytes <= share:
                return True
            others = sum(max(0, one.held_bytes - share) for one in self._inboxes.values() if one is not inbox)
            return others + inbox.held_bytes + more_bytes - share <= self._shared_bytes_max

    def room_came(self) -> None:
        """Wake those who wait for room. Called by the workers."""
        if self._waiters and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _offer(self, volume: str, arrival: Arrival) -> bool:
        inbox = self._inboxes.get(volume)
        return inbox is not None and inbox.offer(arrival)

    def _wake(self) -> None:
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_result(None)


class Inbox:
    """One volume's waiting messages, in order. The event loop offers, one worker takes."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._queue: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = False
        self.held_bytes = 0

    def open(self) -> None:
        """Begin to accept messages."""
        with self._lock:
            self._open = True
        self._intake.room_came()

    def close(self) -> None:
        """Accept no more, and drop what waits."""
        with self._lock:
            self._open = False
            dropped = 0
            with suppress(queue.Empty):  # the worker may take the last one meanwhile
                while True:
                    dropped += self._queue.get_nowait().size_bytes
            self.held_bytes -= dropped
        self._intake.room_came()

    def offer(self, arrival: Arrival) -> bool:
        """Take the message if there is room and somebody works on the volume; tell whether it was taken."""
        with self._lock:
            if not self._open or not self._intake.has_room(self, arrival.size_bytes):
                return False
            self.held_bytes += arrival.size_bytes
            self._queue.put(arrival)
            return True

    def take(self, timeout_s: float) -> list[Arrival]:
        """Return what waits, at most about `TAKE_BYTES_MAX`, or nothing after the time. Its room is kept until `give_back`."""
        taken: list[Arrival] = []
        size = 0
        with suppress(queue.Empty):
            while size < TAKE_BYTES_MAX and len(taken) < TAKE_MESSAGES_MAX:
                taken.append(self._queue.get_nowait() if taken else self._queue.get(timeout=timeout_s))
                size += taken[-1].size_bytes
        return taken

    def give_back(self, size_bytes: int) -> None:
        """Give back the room of messages that were taken and are no longer held."""
        with self._lock:
            self.held_bytes -= size_bytes
        self._intake.room_came()


class Acknowledgements:
    """Carry `done` calls from the workers into the event loop, in order, many at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def add(self, done: list[Callable[[], object]]) -> None:
        """Have these called in the event loop. Called by the workers."""
        if done and not self._loop.is_closed():
            for one in done:
                self._queue.put(one)
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()()
