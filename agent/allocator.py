"""The allocator: which chunks of the pool are whose, with a share of the buffer for each volume.

Capture alone allocates and frees. A share is a guarantee, not a cap (design section 4): half of the pool is shared out evenly between the
volumes and kept for each until it has that much, the other half goes to whoever needs it. Freed chunks are given out again last
in, first out, so that at a low rate the same memory stays in the processor's cache. While most of the pool is free, who asks for it gets
neighbours, more than needed: one long piece of memory to receive into.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable

INDEX_CHUNKS_RESERVED = 2
GUARANTEED_SHARE = 0.5
RUN_CHUNKS_MAX = 8
RUN_SHARE_MAX = 1 / 16  # of the pool
RUN_ROOM_MIN = 0.75  # of the pool: with less room nobody gets more than is needed, so what idle connections hold stays below a quarter
WAIT_S = 0.05

KeepWaiting = Callable[[], bool]
"""Asked before every wait; False ends it."""


class ChunkAllocator:
    """Give out and take back chunks; waiters of a volume are served in their order, so a large one is not starved by small ones.

    `reclaim` gives back what Kafka has acknowledged; it is called before anybody waits. `wait_for_room` tells the publisher that
    capture waits (it rings the doorbell then).
    """

    def __init__(self, count: int, held: Iterable[int], reclaim: Callable[[], None], wait_for_room: Callable[[bool], None]) -> None:
        taken = set(held)
        self._free = {number: None for number in range(count - 1, -1, -1) if number not in taken}  # what was freed last stands last
        self._count = count
        self._owners: list[str] = [""] * count
        self._used: Counter[str] = Counter({"": len(taken)})
        self._shares: set[str] = set()
        self._guaranteed = 0
        self._reclaim = reclaim
        self._tell_waiting = wait_for_room
        self._room = threading.Condition()
        self._queue: deque[tuple[str, object]] = deque()
        self._closed = False

    @property
    def free_count(self) -> int:
        return len(self._free)

    def used(self, owner: str) -> int:
        """Return how many chunks a volume has."""
        return self._used[owner]

    def room(self, owner: str) -> int:
        """Return how many chunks a volume could take now."""
        with self._room:
            return self._room_for(owner, False)

    def join(self, owner: str, held: Iterable[int] = ()) -> None:
        """Guarantee a share to a volume; `held` are chunks that a former process took for it."""
        with self._room:
            self._shares.add(owner)
            self._share_out()
            for chunk in held:
                self._used[self._owners[chunk]] -= 1
                self._owners[chunk] = owner
                self._used[owner] += 1

    def leave(self, owner: str) -> None:
        """Guarantee it nothing any more; what it holds it gives back as always."""
        with self._room:
            self._shares.discard(owner)
            self._share_out()

    def take(self, count: int, *, index: bool = False, owner: str = "", keep_waiting: KeepWaiting | None = None) -> list[int] | None:
        """Return that many chunks at once, all or none; blocks until they are there, or until `keep_waiting` says no: then None.

        `index` may use the reserve, and the shares of others. Raises OSError(ESHUTDOWN) when the process stops meanwhile.
        """
        ticket = (owner, object())
        with self._room:
            if self._first(ticket) and self._room_for(owner, index) >= count:
                return self._give_out(count, owner)
            self._queue.append(ticket)
            try:
                if self._wait(ticket, count, index, keep_waiting):
                    return self._give_out(count, owner)
                return None
            finally:
                self._queue.remove(ticket)
                self._tell_waiting(bool(self._queue))
                self._room.notify_all()

    def take_run(self, *, owner: str = "", keep_waiting: KeepWaiting | None = None) -> list[int] | None:
        """Return one chunk as `take` does; with it, while the pool is nearly empty, neighbours that are free, in rising order."""
        with self._room:
            if not self._queue and self._room_for(owner, False) >= self._count * RUN_ROOM_MIN:
                run = self._find_run(min(RUN_CHUNKS_MAX, int(self._count * RUN_SHARE_MAX)))
                for chunk in run:
                    del self._free[chunk]
                self._own(run, owner)
                return list(run)
        return self.take(1, owner=owner, keep_waiting=keep_waiting)

    def give(self, chunks: Iterable[int]) -> None:
        """Take chunks back."""
        with self._room:
            for chunk in chunks:
                self._used[self._owners[chunk]] -= 1
                self._free[chunk] = None
            if self._queue:
                self._room.notify_all()

    def close(self) -> None:
        """Let all waiters go with an error: the process stops."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _give_out(self, count: int, owner: str) -> list[int]:
        taken = [self._free.popitem()[0] for _ in range(count)]
        self._own(taken, owner)
        return taken

    def _own(self, taken: Collection[int], owner: str) -> None:
        for chunk in taken:
            self._owners[chunk] = owner
        self._used[owner] += len(taken)

    def _find_run(self, longest: int) -> range:
        """Return the free neighbours of the chunk that was freed last, itself included; at most `longest`."""
        last = next(reversed(self._free))
        first, stop = last, last + 1
        while stop - first < longest and first - 1 in self._free:
            first -= 1
        while stop - first < longest and stop in self._free:
            stop += 1
        return range(first, stop)

    def _room_for(self, owner: str, index: bool) -> int:
        """Return how many chunks this volume may take now."""
        if index:
            return len(self._free)
        room = len(self._free) - INDEX_CHUNKS_RESERVED
        if self._guaranteed:
            room -= sum(max(0, self._guaranteed - self._used[one]) for one in self._shares if one != owner)
        return room

    def _share_out(self) -> None:
        volumes = len(self._shares)
        self._guaranteed = int((self._count - INDEX_CHUNKS_RESERVED) * GUARANTEED_SHARE) // volumes if volumes > 1 else 0

    def _first(self, ticket: tuple[str, object]) -> bool:
        """Tell whether nobody of the same volume came before."""
        return next((one for one in self._queue if one[0] == ticket[0]), ticket) is ticket

    def _wait(self, ticket: tuple[str, object], count: int, index: bool, keep_waiting: KeepWaiting | None) -> bool:
        while True:
            self._tell_waiting(True)
            self._room.release()
            try:
                self._reclaim()
            finally:
                self._room.acquire()
            if self._closed:
                raise OSError(108, "the agent stops")  # ESHUTDOWN
            if self._room_for(ticket[0], index) >= count and (index or self._first(ticket)):
                return True
            if keep_waiting is not None and not keep_waiting():
                return False
            self._room.wait(WAIT_S)
