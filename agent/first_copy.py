"""The copier: pays a volume's debts. First copy, resync and single settled extents are all the same work.

One thread a volume. What is owed stands in the ring's owed map; the copier takes a run, records what the source holds there as
an ordinary sequenced record, and goes on. While a copy is running the volume's mode is SYNC or RESYNC, from `sync_begin` until
`sync_end` is durable in Kafka. Single extents, settled after a failed or interrupted operation, are copied in whatever mode the volume is,
except in BITMAP: there it waits. A copy after the loss of the host waits for the replicas' digests first (`agent.digests`), and
sends only what differs.

It yields: to application writes (half of the time goes to them while they come), to the buffer (never more than `SYNC_SHARE_MAX`
of it, and `SYNC_SHARE_MIN` while the application fills the rest), and to `bytes_per_s_max`. But not for ever: its share of the buffer is
always there, and after some relapses the application is held back (`agent.overflow`). It resumes where the map stands after a restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from agent import ring as layout
from agent.digests import Digests
from agent.modes import Mode
from agent.pool import CHUNK_BYTES, SYNC_SHARE_MAX, SYNC_SHARE_MIN
from agent.volume import Volume
from nbd.blockfile import EXTENT_HOLE
from stream.log import Repeats, event
from stream.record import Kind

RUN_BYTES_MAX = 8 << 20  # taken at once: a kill in the middle sends so much again at most
UNREADABLE_PAUSE_S = 1.0
DIGESTS_PAUSE_S = 0.05
BUFFER_PAUSE_S = 0.002
YIELD_S_MAX = 0.05
IDLE_S = 0.5
_log = logging.getLogger(__name__)


class Copier:
    """Copy what is owed until stopped. `progress` answers percent and ETA."""

    def __init__(self, volume: Volume, bytes_per_s_max: int) -> None:
        self._volume = volume
        self._debts = volume.debts
        self._words = volume.ring.words
        self._bytes_per_s_max = bytes_per_s_max
        self._digests = Digests(volume.ring)
        self._stop = threading.Event()
        self._allowed_at_s = 0.0
        self._unacked: deque[int] = deque()
        self._slot = volume.intents.open()
        self._pace = _Pace()
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name=f"copy-{volume.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop after the piece at hand; tell whether it did in time. What is still owed stays written down."""
        self._stop.set()
        self._debts.pending.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._volume.intents.close(self._slot)
        return True

    def progress(self, owed: int) -> tuple[float | None, float | None]:
        """Return percent done and seconds left of a SYNC with that many bytes owed; no seconds as long as there is nothing to tell."""
        total = self._words[layout.W_SYNC_TOTAL_BYTES]
        if self._words[layout.W_SYNC_STATE] == layout.SYNC_NONE:
            return 100.0, 0.0
        if not total or self._words[layout.W_SYNC_STATE] == layout.SYNC_OWED:
            return 0.0, None
        return round(100.0 * max(0, total - owed) / total, 2), self._pace.seconds_for(owed)

    def _run(self) -> None:
        while not self._over:
            try:
                if self._volume.mode is not Mode.BITMAP:
                    self._work()
                if self._debts.pending.wait(IDLE_S):
                    self._debts.pending.clear()
            except OSError as error:
                if self._over:
                    return
                self._repeats.event(_log, logging.WARNING, "source_unreadable", volume=self._volume.name, error=error.strerror)
                self._stop.wait(UNREADABLE_PAUSE_S)

    def _work(self) -> None:
        """Begin the copy that is owed, pay what is owed, end the copy that is paid."""
        if self._debts.copy_owed:
            if not self._digests.ready():
                self._debts.pending.set()  # look again soon
                self._stop.wait(DIGESTS_PAUSE_S)
                return
            self._begin()
        if self._pay_all() and self._debts.copying:
            self._end()

    def _begin(self) -> None:
        """Announce a copy of everything owed now."""
        if self._volume.marks.append_told(Kind.SYNC_BEGIN, self._debts.begin_copy) is not None:
            owed = self._words[layout.W_SYNC_TOTAL_BYTES]
            event(_log, logging.INFO, "sync_begin", volume=self._volume.name, owed_bytes=owed, reason=self._volume.modes.reason)

    def _end(self) -> None:
        """Announce that nothing is owed, naming the gaps that this closes; the mode is DATA once Kafka has that."""
        sequence = self._volume.marks.append_told(Kind.SYNC_END, self._debts.end_copy)
        if sequence is None:
            return
        self._digests.forget()
        while not self._halted and self._debts.copying:
            if self._volume.log.acked(sequence):
                if self._debts.finish_copy():
                    event(_log, logging.INFO, "sync_end", volume=self._volume.name, sequence=sequence)
                return
            self._stop.wait(0.005)

    def _pay_all(self) -> bool:
        """Copy until nothing is owed; False if stopped, or interrupted by a new copy. Raises OSError if something can't be read now."""
        at, unreadable = 0, None
        while not self._halted:
            run = self._debts.take(self._slot, at, RUN_BYTES_MAX)
            if run is None:
                if unreadable is not None:
                    raise unreadable
                if at == 0:
                    return True
                at = 0
                continue
            unpaid: list[tuple[int, int]] = []
            try:
                unreadable = self._pay(*run, unpaid) or unreadable
            finally:
                self._debts.pay(self._slot, unpaid)
            at = run[1]
            if self._debts.copy_owed:
                return False
        return False

    def _pay(self, start: int, end: int, unpaid: list[tuple[int, int]]) -> OSError | None:
        """Copy `[start, end)` piece by piece; what could not be copied goes to `unpaid`, with the last reason returned."""
        volume, failure = self._volume, None
        while start < end and not self._halted:
            stop = min(start + CHUNK_BYTES, end)
            try:
                length, kind = volume.source.file.extents(start, end - start, 1)[0]
                if kind == EXTENT_HOLE and not self._digests.there and volume.copy_hole(start, start + length):
                    self._count(length)
                    start += length
                    continue
                self._wait_for_buffer()
                began_s, head = time.monotonic(), volume.log.head
                sent = volume.copy(start, stop, self._digests.differing if self._digests.there else None)
                if sent:
                    self._unacked.append(volume.log.head)
                self._count(stop - start)
                self._yield(sent, began_s, busy=volume.log.head - head > 1)
            except OSError as error:
                unpaid.append((start, stop))
                failure = error
            start = stop
        if start < end:
            unpaid.append((start, end))
        return failure

    @property
    def _over(self) -> bool:
        return self._stop.is_set() or self._volume.log.failure is not None

    @property
    def _halted(self) -> bool:
        """Tell whether to lay the work down: what is taken and not copied is owed again."""
        return self._over or self._volume.mode is Mode.BITMAP

    def _count(self, length_bytes: int) -> None:
        self._debts.paid(length_bytes)
        self._pace.add(length_bytes)

    def _wait_for_buffer(self) -> None:
        """Leave `1 - SYNC_SHARE_MAX` of the buffer to the application, but always keep a share: else a busy one would stop the copy."""
        log = self._volume.log
        least, most = int(log.pool.count * SYNC_SHARE_MIN), int(log.pool.count * SYNC_SHARE_MAX)
        while not self._halted:
            while self._unacked and log.acked(self._unacked[0]):
                self._unacked.popleft()
            if len(self._unacked) < least:
                return
            log.reclaim()
            if len(self._unacked) < most and log.allocator.free_count >= log.pool.count - most:
                return
            self._stop.wait(BUFFER_PAUSE_S)

    def _yield(self, sent_bytes: int, began_s: float, *, busy: bool) -> None:
        """Give way to application writes, and keep the speed limit."""
        now_s = time.monotonic()
        if self._bytes_per_s_max:
            self._allowed_at_s = max(self._allowed_at_s, began_s) + sent_bytes / self._bytes_per_s_max
            if self._allowed_at_s > now_s:
                self._stop.wait(self._allowed_at_s - now_s)
        elif busy:
            self._stop.wait(min(now_s - began_s, YIELD_S_MAX))


class _Pace:
    """The recent speed, for the ETA."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._bytes = 0
        self._bytes_per_s = 0.0

    def add(self, count: int) -> None:
        self._bytes += count
        now_s = time.monotonic()
        if now_s - self._since_s >= 1.0:
            speed = self._bytes / (now_s - self._since_s)
            self._bytes_per_s = speed if not self._bytes_per_s else 0.7 * self._bytes_per_s + 0.3 * speed
            self._since_s, self._bytes = now_s, 0

    def seconds_for(self, count: int) -> float | None:
        return round(count / self._bytes_per_s, 1) if self._bytes_per_s else None
