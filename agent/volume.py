"""A volume on the host: capture itself. Every operation gets its position here, and stands in the ring before the client hears of it.

Used by the sessions (application writes), the first copy and the heartbeat, each on a thread of its own. One write, in order:

1. its payload lies in a pool chunk already (received there);
2. room for its entries is reserved, so that nothing can fail or wait after the source was changed;
3. its extent is locked against overlapping operations, and its intent stands in the ring (design rules 2 and 17);
4. its regions stand in the activity log (design rule 1), then the source is written;
5. under the log's mutex: position, capture time, entries, head; the extent is unlocked;
6. the client is answered.

An operation that fails at 4 is not published: its extent is owed, and the copier records what the source holds there. The
client gets the errno. Where there is no room at 2, order is lost: the extent is owed at 3 instead of recorded at 5, while its lock is
held, so that whoever copies it afterwards finds it written.
"""

from __future__ import annotations

import errno
import threading
import time

from agent import ring as layout
from agent.debts import Activity, Debts
from agent.extents import ExtentLocks
from agent.intents import IntentSlots
from agent.marks import Marks
from agent.modes import Event, Mode, ModeKeeper
from agent.overflow import BITMAP_POLICY, Overflow
from agent.pool import CHUNK_BYTES
from agent.record_log import Piece, RecordLog
from agent.ring import INTENT
from agent.settled import Differing, Settled
from agent.source import Source
from agent.unflushed import Unflushed
from nbd.blockfile import EXTENT_HOLE
from nbd.device import Pieces
from stream.record import Kind

_ZEROES = bytes(CHUNK_BYTES)
_BITMAP = int(Mode.BITMAP)
_OWED = layout.SYNC_OWED
_pack_intent = INTENT.pack_into


class Volume:
    """Capture of one volume: source, record log, extent locks. Thread-safe."""

    def __init__(
        self, name: str, source: Source, log: RecordLog, activity: Activity, overflow: str = BITMAP_POLICY, throttle_s: float = 0.0
    ) -> None:
        self.name = name
        self.source = source
        self.log = log
        self.ring = log.ring
        self.size_bytes = log.ring.size_bytes
        self.locks = ExtentLocks(log.mutex)
        self.modes = ModeKeeper(log.ring)
        self.overflow = Overflow(log.ring, self.modes, overflow, throttle_s)
        self.intents = IntentSlots(log.ring, log.mutex)
        self.debts = Debts(log, self.modes, self.intents, activity)
        self.marks = Marks(log)
        self.activity = activity
        self.unflushed = Unflushed()
        self._syncing = threading.Lock()
        self._syncs_begun = self._synced = 0
        self._words = log.ring.words
        self._intents = log.ring.intents
        self._touch = activity.touch
        self._note_written = self.unflushed.add

    @property
    def mode(self) -> Mode:
        return self.modes.mode

    # -- operations of the application ---------------------------------------------------------------------------------

    def write(
        self, slot: int, offset_bytes: int, payload: Pieces, pieces: list[Piece] | None, length_bytes: int, durable: bool
    ) -> int:
        """Write `payload` to the source and record it where it lies (`pieces`); return its last sequence, 0 if it is not recorded.

        Without `pieces` the payload lies nowhere that lasts: the extent is owed. Raises OSError.
        """
        log = self.log
        entries = len(pieces) if pieces is not None else 0
        recorded = self.begin(slot, offset_bytes, length_bytes, entries)
        try:
            self.source.file.write(offset_bytes, payload, length_bytes, durable)
        except OSError:
            self._give_up(offset_bytes, length_bytes, recorded)
            raise
        with log.mutex:
            self._note_written(offset_bytes, offset_bytes + length_bytes)
            self.locks.leave(offset_bytes)
            sequence = log.append_write(offset_bytes, pieces) if recorded else 0
            if recorded and self._words[layout.W_SYNC_STATE] > _OWED:  # before its beginning a copy counts for nothing (`debts.take`)
                self.ring.settle(offset_bytes, offset_bytes + length_bytes)  # what it covers whole need not be copied any more
            self._words[layout.W_CAPTURED_BYTES] += length_bytes
        log.wake_publisher()
        return sequence

    def zero(self, slot: int, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, durable: bool) -> int:
        """Zero the extent on the source and record it; return the sequence, 0 if it is not recorded. Raises OSError."""
        recorded = self.begin(slot, offset_bytes, length_bytes, 1)
        try:
            self.source.file.zero(offset_bytes, length_bytes, punch=punch, fast=fast, durable=durable)
        except OSError as error:
            if fast and error.errno == errno.ENOTSUP:
                self._leave(offset_bytes, recorded)  # refused before anything was changed
            else:
                self._give_up(offset_bytes, length_bytes, recorded)
            raise
        return self._finish_zero(offset_bytes, length_bytes, recorded)

    def trim(self, slot: int, offset_bytes: int, length_bytes: int, *, durable: bool) -> int:
        """Give space back where the source then reads zero; elsewhere a no-op on both sides (design rule 16). Raises OSError."""
        recorded = self.begin(slot, offset_bytes, length_bytes, 1)
        try:
            trimmed = self.source.file.trim(offset_bytes, length_bytes, durable=durable)
        except OSError:
            self._give_up(offset_bytes, length_bytes, recorded)
            raise
        if trimmed:
            return self._finish_zero(offset_bytes, length_bytes, recorded)
        self._leave(offset_bytes, recorded)
        return self.log.head

    def flush(self) -> int:
        """Make durable on the source what was written, and record that; return the last sequence that it covers. Raises OSError.

        A flush that fails leaves what was written since the last good one in doubt: it is owed (design rule 15).
        """
        if self.log.failure is not None:
            raise self.log.failure
        covered = self.log.head
        self.sync_source()
        if self._words[layout.W_MODE] == _BITMAP or not self.log.reserve(1, self.overflow.patience()):
            return covered  # a flush changes nothing: that it is not recorded loses no order
        with self.log.mutex:
            sequence = self.log.append(Kind.FLUSH)
        self.log.wake_publisher()
        return sequence

    def sync_source(self) -> None:
        """Make the source durable. Raises OSError; what may have been lost is then read from the disk again, and copied as it is there."""
        seen = self._syncs_begun
        with self._syncing:  # the kernel tells an error once: two at a time, and one would count as good what the other lost
            if self._synced <= seen:  # else one that began after this call has made durable what this one is about
                self._sync_source()

    def _sync_source(self) -> None:
        with self.log.mutex:
            written = self.unflushed.begin()
        self._syncs_begun += 1
        try:
            self.source.file.sync()
        except OSError:
            with self.log.mutex:
                doubtful = [*self.unflushed.failed(self.size_bytes), *self.locks.in_flight()]
            for start_bytes, end_bytes in doubtful:
                self.debts.owe(start_bytes, end_bytes)
                with self.log.mutex:  # in one step: else the disk's older bytes could be verified against what was published
                    self.source.file.forget(start_bytes, end_bytes - start_bytes)
                    self.debts.owe_touched(start_bytes, end_bytes)
                self.debts.pending.set()
            raise
        with self.log.mutex:
            self.unflushed.done(written)
        self._synced = self._syncs_begun

    def begin(self, slot: int, offset_bytes: int, length_bytes: int, entries: int) -> int:
        """Reserve room, lock the extent, write the intent down, and have the extent in the activity log.

        Return how many entries are reserved: `entries`, or 0 if the operation is not to be recorded; then its extent is owed. Raises the
        failure that took the volume out of service, and OSError of the activity log.
        """
        end_bytes, log = offset_bytes + length_bytes, self.log
        with log.mutex:
            at_once = log.reserve_now(entries)
            if at_once:
                entries = self._enter(offset_bytes, end_bytes, entries, full=False)
        if not at_once:
            entries = self._begin_waiting(offset_bytes, end_bytes, entries)
        _pack_intent(self._intents, slot, offset_bytes, length_bytes, 1)
        try:
            self._touch(offset_bytes, end_bytes)
        except OSError:
            self._leave(offset_bytes, entries)
            raise
        return entries

    def lose_order(self) -> None:
        """Go to BITMAP: there is no room for what a client sends."""
        with self.log.mutex:
            if self.log.failure is None:
                self.debts.lose_order(self.overflow.reason())
        self.log.wake_publisher()

    # -- copying from the source ---------------------------------------------------------------------------------------

    def copy(self, start_bytes: int, end_bytes: int, differing: Differing | None = None) -> int:
        """Record what the source holds in an extent of at most one chunk, at the position that it gets; return bytes of payload.

        The extent is read without a lock; if an operation entered it meanwhile it is read again under the lock (design section 4, first
        copy), so an application's write waits for a read of cached pages at most. `differing(start, view)` yields the parts that the
        replicas lack, nothing else is recorded then. Raises OSError when the source can't be read. One thread copies.
        """
        length = end_bytes - start_bytes
        entries = 1 if differing is None else -(-length // layout.OWED_BYTES)
        self.log.reserve(entries)
        chunk = self._take_chunk(entries)
        try:
            with Settled(self.source.file, self.locks, start_bytes, self.log.pool.chunk(chunk)[:length]) as view:
                runs = [(0, length)] if differing is None else list(differing(start_bytes, view))
                self._words[layout.W_COMPARED_BYTES] += 0 if differing is None else length
                zero = not view[0] and not view[-1] and bytes(view) == _ZEROES[:length]
                with self.log.mutex:
                    sequence = self._append_copied(start_bytes, runs, chunk, zero=zero)
                    self.log.release(entries - len(runs))
        except OSError:
            with self.log.mutex:
                self.log.release(entries)
            self.log.allocator.give([chunk])
            raise
        sent = 0 if zero else sum(stop - start for start, stop in runs)
        if sent:
            self.log.retire(chunk, sequence)
        else:
            self.log.allocator.give([chunk])
        self.log.wake_publisher()
        return sent

    def copy_hole(self, start_bytes: int, end_bytes: int) -> bool:
        """Record the extent as zero if the source has a hole there now; False if it has not."""
        length = end_bytes - start_bytes
        self.log.reserve(1)
        with self.log.mutex:
            self.locks.enter(start_bytes, end_bytes)
        try:
            hole = self.source.file.extents(start_bytes, length, 1) == [(length, EXTENT_HOLE)]
        except OSError:
            hole = False
        if hole:
            self._finish_zero(start_bytes, length, 1)
        else:
            self._leave(start_bytes, 1)
        return hole

    def snapshot(self) -> tuple[int, Mode, int]:
        """Return bytes owed (what is being copied now included), mode and head as they stand at one moment."""
        with self.log.mutex:
            return self.debts.owed_bytes(), self.mode, self.log.head

    def out_of_order(self) -> str | None:
        """Say why no point of recovery stands at the head now, None if one does. Settled only while the mutex is held."""
        if self.log.failure is not None:
            return f"Volume {self.name} is out of service: {self.log.failure.strerror}"
        if self.mode is Mode.DATA and not self._words[layout.W_GAP_OPEN]:
            return None
        return f"Volume {self.name} is in mode {self.mode.name} ({self.modes.reason}): a gap is open, and no point stands behind it"

    def settle_intents(self) -> int:
        """Owe every extent whose operation a dead process may have left unfinished; return how many. Called before anything is served."""
        count = 0
        for place, offset_bytes, length_bytes in self.intents.standing():
            self.debts.owe(offset_bytes, min(offset_bytes + length_bytes, self.size_bytes))
            self.intents.clear(place)
            count += 1
        return count

    # -- service -------------------------------------------------------------------------------------------------------

    def fail(self, reason: str) -> None:
        """Take the volume out of service: every request gets EIO from now on."""
        with self.log.mutex:
            self.log.failure = OSError(errno.EIO, reason)
            self.modes.happen(Event.ENDED, reason)
        self.log.acknowledged()

    def stop(self, deadline_s: float) -> bool:
        """Begin no operation any more and wait for those in flight; tell whether they ended in time."""
        with self.log.mutex:
            self.log.failure = self.log.failure or OSError(errno.ESHUTDOWN, "the agent stops")
        self.log.acknowledged()
        while not self.locks.idle and time.monotonic() < deadline_s:
            time.sleep(0.001)
        self.marks.close()
        return self.locks.idle

    # -- inside --------------------------------------------------------------------------------------------------------

    def _begin_waiting(self, offset_bytes: int, end_bytes: int, entries: int) -> int:
        """Reserve room as it comes, then lock the extent; return what `begin` does."""
        log, full = self.log, False
        if self._words[layout.W_MODE] == _BITMAP:
            entries = 0
        elif not log.reserve(entries, self.overflow.patience()):
            entries, full = 0, True
        with log.mutex:
            return self._enter(offset_bytes, end_bytes, entries, full=full)

    def _enter(self, offset_bytes: int, end_bytes: int, entries: int, *, full: bool) -> int:
        """Lock the extent, and owe it if it is not to be recorded; the mutex is held. Return what of `entries` stays reserved."""
        log = self.log
        self.locks.enter(offset_bytes, end_bytes)
        if log.failure is not None:
            self.locks.leave(offset_bytes)
            log.release(entries)
            raise log.failure
        if entries and self._words[layout.W_MODE] != _BITMAP:
            return entries
        log.release(entries)
        self._go_unrecorded(offset_bytes, end_bytes, full=full)
        return 0

    def _go_unrecorded(self, offset_bytes: int, end_bytes: int, *, full: bool) -> None:
        """Owe the extent of an operation that is not recorded; the mutex is held. In DATA, and where no room is, that loses order."""
        if full or self._words[layout.W_MODE] == Mode.DATA:
            self.debts.lose_order(self.overflow.reason())
        self.debts.owe_touched(offset_bytes, end_bytes)

    def _append_copied(self, start_bytes: int, runs: list[tuple[int, int]], chunk: int, *, zero: bool) -> int:
        """Append what was copied, each run a write of its own or zeroes; the mutex is held. Return the last sequence."""
        sequence = self.log.head
        for start, stop in runs:
            if zero:
                sequence = self.log.append(Kind.ZERO, start_bytes + start, stop - start)
            else:
                sequence = self.log.append_write(start_bytes + start, [(chunk, start, stop - start)])
                self._words[layout.W_RESYNC_BYTES] += stop - start
        return sequence

    def _take_chunk(self, entries: int) -> int:
        """Take a chunk for records whose entries are reserved; the reservation ends if there is none to be had."""
        try:
            taken = self.log.allocator.take(1, owner=self.log.owner)
            assert taken is not None
            return taken[0]
        except OSError:
            with self.log.mutex:
                self.log.release(entries)
            raise

    def _finish_zero(self, offset_bytes: int, length_bytes: int, recorded: int) -> int:
        with self.log.mutex:
            self._note_written(offset_bytes, offset_bytes + length_bytes)
            self.locks.leave(offset_bytes)
            sequence = self.log.append(Kind.ZERO, offset_bytes, length_bytes) if recorded else 0
            if recorded and self._words[layout.W_SYNC_STATE] > _OWED:
                self.ring.settle(offset_bytes, offset_bytes + length_bytes)
        self.log.wake_publisher()
        return sequence

    def _leave(self, offset_bytes: int, recorded: int) -> None:
        with self.log.mutex:
            self.locks.leave(offset_bytes)
            self.log.release(recorded)

    def _give_up(self, offset_bytes: int, length_bytes: int, recorded: int) -> None:
        """Owe the locked extent of a failed operation, then unlock it: its outcome is whatever the source holds."""
        with self.log.mutex:
            self.debts.owe_touched(offset_bytes, offset_bytes + length_bytes)
            self._note_written(offset_bytes, offset_bytes + length_bytes)  # what is there may be in the page cache alone
            self.locks.leave(offset_bytes)
            self.log.release(recorded)
        self.debts.pending.set()
