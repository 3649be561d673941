"""The record log of a volume: appends to the ring, and the memory behind it.

Capture side only. `reserve` before anything is changed, `append` under the mutex, `retire` for payload chunks; memory comes
back by `reclaim` as Kafka acknowledges. Nothing else gives sequences or capture times.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from agent import ring as layout
from agent.allocator import ChunkAllocator, KeepWaiting
from agent.pool import CHUNK_BYTES, WORD_CAPTURE_WAITS, WORD_PUBLISHER_SLEEPS, Pool
from agent.ring import BLOCK_RECORDS, BLOCK_SHIFT, BLOCKS_MAX, ENTRY, ENTRY_BYTES, NO_CHUNK, VolumeRing
from stream.position import Position
from stream.record import FLAG_MORE, Kind

DURABLE_POLL_S = 0.05
FULL_DIRECTORY_PAUSE_S = 0.001
MARKS_KEPT = 16
"""Entries that always have memory beyond the ordinary ones: a mark that says that the buffer is full must not wait for the buffer."""
_pack_entry = ENTRY.pack_into
_monotonic_ns = time.monotonic_ns

Piece = tuple[int, int, int]
"""A payload's part: chunk number, start in the chunk, length."""


class RecordLog:
    """Append records to a volume's ring. `mutex` orders them; `head` is the last sequence given; `notify` wakes the publisher."""

    def __init__(
        self, ring: VolumeRing, pool: Pool, allocator: ChunkAllocator, notify: Callable[[], None], held: Collection[int] = ()
    ) -> None:
        """Take over the ring as it is; `held` are the chunks that the allocator keeps for it, what is no longer needed goes back."""
        self.ring = ring
        self.pool = pool
        self.allocator = allocator
        self.mutex = threading.Lock()
        self.failure: OSError | None = None
        self._notify = notify
        self._words = ring.words
        self._pool_words = pool.words
        self._directory = ring.directory
        self._view = pool.view
        self.owner = ring.path.stem
        self.head = self._words[layout.W_HEAD]
        self._limit = self.head  # last sequence whose entry has memory
        self._reserved = 0
        self._growing = threading.Lock()
        self._retired: deque[tuple[int, int]] = deque()
        self._blocks: deque[tuple[int, int]] = deque()
        self._acked = threading.Condition()
        self._discarded = False
        self._adopt(held)

    def adopt_head(self) -> None:
        """Start after the position that the publisher claimed; nothing is recorded before."""
        self.head = self._limit = self._words[layout.W_HEAD]

    def reserve_now(self, entries: int) -> bool:
        """Reserve room for that many entries if it is there; the mutex is held."""
        if self.head + self._reserved + entries + MARKS_KEPT > self._limit:
            return False
        self._reserved += entries
        return True

    def reserve(self, entries: int, keep_waiting: KeepWaiting | None = None) -> bool:
        """Reserve room for that many entries, before anything is changed; blocks while the buffer is full.

        False if `keep_waiting` ended the wait. Raises OSError when the volume goes out of service meanwhile.
        """
        while True:
            with self.mutex:
                if self.reserve_now(entries):
                    return True
            if self.failure is not None:
                raise self.failure
            if not self._grow(entries, keep_waiting):
                return False

    def reserve_mark(self) -> None:
        """Reserve the entry of a mark out of those that are kept for it; the mutex is held, and `reserve` grew the log before."""
        assert self.head + self._reserved < self._limit, "no entry is kept for marks"
        self._reserved += 1

    def keep_mark(self, keep_waiting: KeepWaiting) -> bool:
        """Have an entry for `reserve_mark`, and others for the marks that say that the buffer is full; False if there is none to be had.

        Who waits for memory is not waited for. Raises OSError when the volume goes out of service.
        """
        if not self._growing.locked() and self.reserve(1, keep_waiting):
            with self.mutex:
                self._reserved -= 1
        return self.head + self._reserved + MARKS_KEPT // 2 < self._limit

    @property
    def next_position(self) -> Position:
        """Return the position that the next record gets; the mutex is held."""
        return Position(self._words[layout.W_EPOCH], self.head + 1)

    def keep_entries(self) -> None:
        """Have memory for marks that may not wait; blocks while the buffer is full."""
        self.reserve(1)
        with self.mutex:
            self._reserved -= 1

    def release(self, entries: int) -> None:
        """Give back reserved room that was not needed; the mutex is held."""
        self._reserved -= entries

    def append_write(self, offset_bytes: int, pieces: list[Piece]) -> int:
        """Append a write whose payload lies in `pieces`, one entry each, as one split write; the mutex is held, the room reserved."""
        left = len(pieces)
        self._reserved -= left
        now = self._stamp()
        sequence = self.head
        for chunk, start, size in pieces:
            sequence += 1
            left -= 1
            place = (self._directory[(sequence >> BLOCK_SHIFT) % BLOCKS_MAX] - 1) * CHUNK_BYTES
            place += (sequence & (BLOCK_RECORDS - 1)) * ENTRY_BYTES
            _pack_entry(self._view, place, sequence, now, offset_bytes, size, chunk, start, Kind.WRITE, FLAG_MORE if left else 0)
            offset_bytes += size
        self.head = self._words[layout.W_HEAD] = sequence
        return sequence

    def append(self, kind: Kind, offset_bytes: int = 0, length_bytes: int = 0, chunk: int = NO_CHUNK, start: int = 0) -> int:
        """Append a record without payload, or a mark whose attributes lie at `start` of `chunk`; the mutex is held, the room reserved."""
        self._reserved -= 1
        sequence = self.head + 1
        now = self._stamp()
        place = (self._directory[(sequence >> BLOCK_SHIFT) % BLOCKS_MAX] - 1) * CHUNK_BYTES
        place += (sequence & (BLOCK_RECORDS - 1)) * ENTRY_BYTES
        _pack_entry(self._view, place, sequence, now, offset_bytes, length_bytes, chunk, start, kind, 0)
        self.head = self._words[layout.W_HEAD] = sequence
        return sequence

    def wake_publisher(self) -> None:
        """Ring if the publisher sleeps; called after the mutex is released."""
        if self._pool_words[WORD_PUBLISHER_SLEEPS]:
            self._pool_words[WORD_PUBLISHER_SLEEPS] = 0
            self._notify()

    def retire(self, chunk: int, sequence: int) -> None:
        """Free the chunk once Kafka has everything up to `sequence`."""
        if self._discarded or sequence <= self._words[layout.W_ACKED]:
            self.allocator.give([chunk])
        else:
            self._retired.append((sequence, chunk))

    def acked(self, sequence: int) -> bool:
        """Tell whether Kafka has everything up to `sequence`."""
        return sequence <= self._words[layout.W_ACKED]

    def reclaim(self) -> None:
        """Free what Kafka has acknowledged."""
        acked = self._words[layout.W_ACKED]
        freed = []
        with self.mutex:
            while self._retired and self._retired[0][0] <= acked:
                freed.append(self._retired.popleft()[1])
            while self._blocks and self._blocks[0][0] <= acked:
                last, chunk = self._blocks.popleft()
                self._directory[(last >> BLOCK_SHIFT) % BLOCKS_MAX] = 0
                freed.append(chunk)
        if freed:
            self.allocator.give(freed)

    def discard(self) -> None:
        """Free everything: nobody will publish from this ring any more. What is in flight still writes its entry, so that memory stays."""
        with self.mutex:
            kept = [block for block in self._blocks if self._reserved and block[0] > self.head]
            freed = [chunk for _, chunk in (*self._retired, *(block for block in self._blocks if block not in kept))]
            self._retired.clear()
            self._blocks = deque(kept)
            self._limit = self.head
            self._discarded = True
        self.allocator.give(freed)

    def acknowledged(self) -> None:
        """Hear that Kafka has more: wake who waits in `wait_durable`."""
        with self._acked:
            self._acked.notify_all()

    def wait_durable(self, sequence: int, promised: Callable[[], bool]) -> bool:
        """Wait until Kafka has everything up to `sequence`; False as soon as that is `promised` no longer.

        Raises OSError when the volume goes out of service first.
        """
        with self._acked:
            while True:
                self._pool_words[WORD_CAPTURE_WAITS] = 1  # before the look: else the publisher may not ring for what came in between
                if self._words[layout.W_ACKED] >= sequence:
                    return True
                if self.failure is not None:
                    raise self.failure
                if not promised():
                    return False
                self._acked.wait(DURABLE_POLL_S)

    def used_bytes(self) -> int:
        """Return the memory that unacknowledged records hold, their entries included."""
        return (len(self._retired) + len(self._blocks)) * CHUNK_BYTES

    def _stamp(self) -> int:
        """Return the capture time on the agent's clock (`agent.clock`); it never goes backward (design rule 9)."""
        now, last = _monotonic_ns() + self._words[layout.W_CLOCK_OFFSET_NS], self._words[layout.W_CAPTURE_NS]
        if now < last:
            return last
        self._words[layout.W_CAPTURE_NS] = now
        return now

    def _grow(self, entries: int, keep_waiting: KeepWaiting | None) -> bool:
        """Give the log another block of entries, if nobody else did meanwhile; False if there is none to be had."""
        with self._growing:
            with self.mutex:
                if self.head + self._reserved + entries + MARKS_KEPT <= self._limit:
                    return True
                block = (self._limit + 1) >> BLOCK_SHIFT
                full = self._directory[block % BLOCKS_MAX] != 0
            if full:  # four million records wait for Kafka
                self.reclaim()
                time.sleep(FULL_DIRECTORY_PAUSE_S)
                return keep_waiting is None or keep_waiting()
            taken = self.allocator.take(1, index=True, owner=self.owner, keep_waiting=keep_waiting)
            if taken is None:
                return False
            with self.mutex:
                self._directory[block % BLOCKS_MAX] = taken[0] + 1
                self._limit = ((block + 1) << BLOCK_SHIFT) - 1
                self._blocks.append((self._limit, taken[0]))
            return True

    def _adopt(self, held: Collection[int]) -> None:
        """Take over what a former process left: the entry blocks and the payload chunks of unacknowledged records."""
        first = self._words[layout.W_ACKED] + 1
        if first <= self.head:
            chunks = {entry[4]: entry[0] for entry in self.ring.entries(self._view, first, self.head) if entry[4] != NO_CHUNK}
            self._retired.extend(sorted((sequence, chunk) for chunk, sequence in chunks.items()))
            for block in range(first >> BLOCK_SHIFT, (self.head >> BLOCK_SHIFT) + 1):
                self._limit = ((block + 1) << BLOCK_SHIFT) - 1
                self._blocks.append((self._limit, self._directory[block % BLOCKS_MAX] - 1))
        standing = {(last >> BLOCK_SHIFT) % BLOCKS_MAX for last, _ in self._blocks}
        for slot in range(BLOCKS_MAX):
            if slot not in standing:
                self._directory[slot] = 0
        needed = {chunk for _, chunk in (*self._retired, *self._blocks)}
        self.allocator.give(set(held) - needed)
