"""A served volume: one declaration brought to life, from the locked source to the export, and back.

Made and driven by the capture process alone. Opening, in order:

1. a fence is respected (design rule 19), the source is opened and locked, its activity log opened or made;
2. the ring is attached, or made. A ring of another source, or one in which nothing was decided yet, is made anew: then the clean-stop
   marker is believed if it fits the source;
3. the publisher claims an epoch if the ring has none (`step` sees it);
4. what may differ is owed: nothing, if the stop was clean and proved so by the stream; the activity log's regions after the loss of the
   host's memory; everything if there is no activity log; in a ring that outlived its process, what that process left unfinished;
5. the ring is marked as begun, the clean-stop marker removed, the export offered. A kill before this point decides 2-4 again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import activity_log
from agent import ring as layout
from agent.activity_log import ActivityLog, Standing
from agent.clean_stop import CleanStop
from agent.clock import AgentClock
from agent.declared import Resync
from agent.first_copy import Copier
from agent.modes import Event, Mode
from agent.opened_ring import OpenedRing, open_ring
from agent.pool import CHUNK_BYTES
from agent.record_log import RecordLog
from agent.ring import VolumeRing
from agent.scratch import Scratch
from agent.session import CaptureDevice
from agent.source import Source, SourceIdentity
from agent.verifier import Verifier
from agent.volume import Volume
from stream.config import AgentConfig
from stream.control import VolumeDeclaration
from stream.errors import FencedError
from stream.log import Repeats, event
from stream.position import Position
from stream.record import Kind

STOP_COPY_S = 5.0
ROOM_SHARE = 0.25
"""Of the buffer's chunks, how many a volume must be able to have before it leaves BITMAP."""
_log = logging.getLogger(__name__)


class ServedVolume:
    """One volume of this host. `device` is offered to clients while `serving`."""

    def __init__(
        self,
        declaration: VolumeDeclaration,
        state_dir: Path,
        ring_dir: Path,
        make_log: Callable[[VolumeRing], RecordLog],
        settings: AgentConfig,
        scratch: Scratch | None = None,
    ) -> None:
        """Open source, activity log and ring. Raises ConfigError (source), FencedError, IntegrityError (ring of another version or size),
        OSError (activity log)."""
        self.declaration = declaration
        self.name = declaration.volume
        self._settings = settings
        path = activity_log.path_of(state_dir, self.name)
        lifted = _respect_fence(path, declaration)
        with contextlib.ExitStack() as undo:
            self.source = Source(declaration.source)
            undo.callback(self.source.close)
            identity = self.source.identity()
            found = None if lifted else ActivityLog.open(path, self.name, identity)  # which knows nothing of what another agent wrote
            self._activity_known = found is not None
            self.activity = found or ActivityLog.create(path, self.name, identity, owed=True)
            undo.callback(self.activity.close)
            ring_path = ring_dir / f"{self.name}.ring"
            self._opened: OpenedRing = open_ring(ring_path, self.name, identity, self.activity.clean(), fence_lifted=lifted)
            if lifted:
                self.activity.unmark_fenced()  # last: what fails before, as a source still held by the other, is tried again
            log = make_log(self._opened.ring)
            self.ring = log.ring
            self.clock = AgentClock(self.ring.words)
            self.volume = Volume(self.name, self.source, log, self.activity, settings.overflow, settings.throttle_s_max)
            undo.pop_all()
        self.device = CaptureDevice(self.volume, declaration.flush_policy, settings.flush_in_gap, scratch)
        self.copier: Copier | None = None
        self.verifier: Verifier | None = None
        self.serving = False
        self._stopped = False
        self._repeats = Repeats()
        self._last_head = 0
        self._idle_since_s = 0.0

    # -- starting ------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Go on with the start if the epoch is claimed by now; tell whether the export can be offered since just now."""
        words = self.ring.words
        if self.serving or self.volume.log.failure is not None or words[layout.W_CLAIMED] != layout.CLAIM_DONE:
            return False
        if words[layout.W_FENCED]:
            self._stop_fenced()
            return False
        if self._opened.fresh:
            self.volume.log.adopt_head()
            self.volume.log.keep_entries()
            self._decide_copy()
            words[layout.W_BEGUN] = 1
        else:
            self.volume.log.keep_entries()
            self._adopt()
        self.activity.unmark_clean()
        self.copier = Copier(self.volume, self._settings.sync_bytes_per_s_max)
        self.copier.start()
        self.verifier = Verifier(self.volume, self._settings.verify_bytes_per_s)
        self.verifier.start()
        self.serving = True
        event(
            _log, logging.INFO, "volume_serving", volume=self.name, position=self.ring.position(layout.W_HEAD), mode=self.volume.mode.name
        )
        return True

    def outdated(self, declaration: VolumeDeclaration) -> bool:
        """Tell whether the volume must be brought up anew: to be as declared, because its stream is lost, or to be refused as fenced."""
        mine, words = self.declaration, self.ring.words
        if words[layout.W_LOST] and self.volume.log.failure is None:
            self.volume.fail("its topic was made anew")  # what waits in the ring has nowhere to go
        fenced = words[layout.W_FENCED] and self.volume.log.failure is not None
        return bool(words[layout.W_LOST] or fenced) or (mine.source, mine.flush_policy) != (declaration.source, declaration.flush_policy)

    def request_sync(self, asked: Resync) -> None:
        """Owe what is asked for, once for each request: the whole volume, or some extents of it. Raises OSError: not written down yet."""
        if not self.serving or asked.id in self.ring.listed("handled"):
            return
        if asked.extents and not asked.gap:  # a repair: no order was lost
            for start_bytes, end_bytes in asked.extents:
                self.volume.debts.owe(start_bytes, end_bytes)
        else:
            self.volume.debts.owe_copy(asked.extents or [(0, self.volume.size_bytes)], asked.reason, asked.gap)
        self.ring.add_listed("handled", asked.id)

    def request_verify(self, asked: str) -> None:
        """Begin a round of verification, once for each request."""
        if self.serving and self.verifier is not None and asked not in self.ring.listed("handled") and self.verifier.begin_round(asked):
            self.ring.add_listed("handled", asked)

    def _decide_copy(self) -> None:
        """After a new claim: nothing is owed only if source and stream both say that the stop was clean."""
        words, claimed_as = self.ring.words, self.ring.text("claimed_as")
        if words[layout.W_CLEAN] == layout.CLEAN_PROVED:
            self.volume.modes.happen(Event.SERVED_IN_ORDER, "clean start")
            return
        words[layout.W_GAP_OPEN] = 1
        gap, first = str(self.ring.position(layout.W_HEAD)), claimed_as == "first copy"
        known = self._activity_known and not self._opened.source_changed and claimed_as not in ("first copy", layout.CLAIMED_ELSEWHERE)
        extents = self.activity.regions() if known else [(0, self.volume.size_bytes)]
        self.volume.debts.owe_copy(extents, claimed_as, gap, Event.SERVED_NEW if first else Event.SERVED_OWING)
        if not first:
            self.volume.debts.compare(gap)

    def _adopt(self) -> None:
        """Go on from a ring that outlived its process: same epoch, unfinished operations settled."""
        words, volume = self.ring.words, self.volume
        settled = volume.settle_intents()
        untracked = words[layout.W_MODE] == Mode.BITMAP
        volume.modes.lay_down()
        if words[layout.W_SYNC_STATE] == layout.SYNC_NONE and self.ring.text("closes"):
            words[layout.W_SYNC_STATE] = layout.SYNC_OWED  # killed while it lost order
        if untracked:
            volume.modes.happen(Event.SERVED_UNTRACKED, volume.modes.reason)
        elif words[layout.W_SYNC_STATE] == layout.SYNC_NONE:
            volume.modes.happen(Event.SERVED_IN_ORDER, "went on from the ring")
        else:
            first = bool(words[layout.W_FIRST_COPY])
            volume.modes.happen(Event.SERVED_NEW if first else Event.SERVED_OWING, "the copy goes on")
        if words[layout.W_STOPPED]:
            stopped = SourceIdentity(words[layout.W_STOP_INODE], words[layout.W_STOP_SIZE], words[layout.W_STOP_MTIME_NS])
            if stopped != self.source.identity():
                self._begin_gap("source_changed", "source changed while stopped")
            words[layout.W_STOPPED] = 0
        event(_log, logging.INFO, "ring_adopted", volume=self.name, settled=settled, position=self.ring.position(layout.W_HEAD))

    def _begin_gap(self, reason: str, told: str) -> None:
        """Begin a gap and owe everything; nobody else records before the volume is served. Killed in between, it is done again."""
        with self.volume.log.mutex:
            gap = str(self.volume.debts.begin_gap(layout.GAP_REASONS.index(reason)))
        self.volume.debts.owe_copy([(0, self.volume.size_bytes)], told, gap)
        self.volume.debts.compare(gap)

    # -- while it runs -------------------------------------------------------------------------------------------------

    def tend(self, now_s: float, heartbeat_s: float) -> None:
        """Look after the volume, a few times a second: flushes, clock, overflow, heartbeat, the source's size, fencing."""
        self.volume.log.acknowledged()
        jump_ms = self.clock.tend()
        if not self.serving or self.volume.log.failure is not None:
            return
        if self.ring.words[layout.W_FENCED]:
            self._stop_fenced()
            return
        self.volume.overflow.watch()
        if self.volume.mode is Mode.BITMAP:
            self._regain()
            return  # nothing is recorded
        size = self._measure()
        if size < self.volume.size_bytes:
            self._stop_shrunk(size)
            return
        if size > self.volume.size_bytes:
            self._grow(size)
        if jump_ms:
            event(_log, logging.WARNING, "clock_jumped", volume=self.name, jump_ms=jump_ms)
            self.volume.marks.append(Kind.HEARTBEAT, {"clock_jump_ms": str(jump_ms)})
        self._beat(now_s, heartbeat_s)

    def sweep(self, now_s: float) -> None:
        """Clear in the activity log what is durable everywhere; takes as long as a flush of the source."""
        if self.serving and self.volume.log.failure is None:
            self.activity.sweep(now_s, self._standing, self.volume.sync_source)

    def facts(self) -> tuple[Position, dict[str, Any]]:
        """Return position and facts for the report; owed, mode and position are of one moment."""
        words = self.ring.words
        owed, mode, head = self.volume.snapshot()
        percent, eta_s = self.copier.progress(owed) if self.copier is not None else (None, None)
        failure = None if self._stopped else self.volume.log.failure
        return Position(words[layout.W_EPOCH], head), {
            "serving": self.serving and failure is None,
            "mode": (mode if self.serving else Mode.OFFLINE).name,
            "mode_since": words[layout.W_MODE_SINCE_NS] / 1e9,
            "mode_reason": self._mode_reason(),
            "acknowledged": str(self.ring.position(layout.W_ACKED)),
            "captured_bytes": words[layout.W_CAPTURED_BYTES],
            "resync_bytes": words[layout.W_RESYNC_BYTES],
            "compared_bytes": words[layout.W_COMPARED_BYTES],
            "owed_bytes": owed if self.copier is not None else None,
            "gaps": words[layout.W_GAPS],
            "sync_percent": percent,
            "eta_s": eta_s,
            "buffer_used_bytes": self.volume.log.allocator.used(self.name) * CHUNK_BYTES,
            "buffer_bytes_max": self._settings.buffer_bytes_max,
            "ring": str(self.ring.path),
            "connections": self.device.connections,
            "error": str(failure.strerror) if failure is not None else None,
        }

    def _mode_reason(self) -> str:
        if self.volume.overflow.holding:
            return f"{self.volume.modes.reason}; writes are held to what Kafka takes, so that the copy comes to its end"
        return self.volume.modes.reason

    def _standing(self) -> Standing:
        volume, words = self.volume, self.ring.words
        with volume.log.mutex:
            in_flight = [*volume.locks.in_flight(), *volume.debts.paying()]
            return Standing(volume.log.head, words[layout.W_ACKED], in_flight, bytes(self.ring.owed))

    def _regain(self) -> None:
        """Leave BITMAP once Kafka has all that was captured in order, and the buffer has room again."""
        log = self.volume.log
        log.reclaim()
        if log.acked(log.head) and log.allocator.room(self.name) >= log.pool.count * ROOM_SHARE:
            self.volume.debts.regain_order("Kafka takes captured writes again")

    def _beat(self, now_s: float, heartbeat_s: float) -> None:
        head = self.volume.log.head
        if head != self._last_head:
            self._last_head, self._idle_since_s = head, now_s
        elif now_s - self._idle_since_s >= heartbeat_s and self.volume.log.acked(head):
            self.volume.marks.append(Kind.HEARTBEAT)

    def _measure(self) -> int:
        """Return the source's size now; 0 for one that does not answer."""
        try:
            return self.source.file.measure()
        except OSError:
            return 0

    def _grow(self, size_bytes: int) -> None:
        """Follow a source that grew: what is new is dirty, never assumed zero (design rule 16). New connections see the new size."""
        before = self.volume.size_bytes
        if size_bytes > self.ring.size_bytes_max:
            self.volume.fail(f"the source grew to {size_bytes} bytes, more than is prepared for: it is opened anew")
            self.ring.words[layout.W_LOST] = 1
            return
        try:
            self.activity.resize(size_bytes)
        except OSError as error:  # it is tried again at the next look; until then the volume has its old size
            self._repeats.event(_log, logging.ERROR, "growth_not_written_down", volume=self.name, error=error.strerror)
            return
        with self.volume.log.mutex:
            gap = str(self.volume.debts.begin_gap(layout.GAP_REASONS.index("resized")))

        def tell() -> dict[str, str]:
            self.ring.grow(size_bytes)
            self.volume.size_bytes = size_bytes
            return {"size_bytes": str(size_bytes)}

        self.volume.marks.append_told(Kind.RESIZE, tell)
        self.volume.debts.owe_copy([(before, size_bytes)], "the source grew", gap)
        event(_log, logging.INFO, "source_grew", volume=self.name, before=before, after=size_bytes)

    def _stop_shrunk(self, size_bytes: int) -> None:
        self.volume.fail(f"the source shrank to {size_bytes} bytes")
        self.ring.words[layout.W_STOP_INODE] = 0  # no source is that one: whatever is served next is copied whole
        self.ring.words[layout.W_STOPPED] = 1
        event(_log, logging.ERROR, "source_shrank", volume=self.name, expected=self.volume.size_bytes, got=size_bytes)

    def _stop_fenced(self) -> None:
        self.fence("a newer epoch exists")

    def fence(self, why: str) -> None:
        """Go out of service for good: what is captured will never be published, so its memory is free. It stays so over restarts."""
        self.ring.words[layout.W_FENCED] = 1
        self.volume.fail(f"fenced: {why}")
        self.volume.log.discard()
        with contextlib.suppress(OSError):  # then the ring alone says so
            self.activity.mark_fenced(f"{self.declaration.declared_at_ns} {why}")
        event(_log, logging.ERROR, "fenced", volume=self.name, hint="Another agent serves this volume; this one has stopped.")

    # -- stopping ------------------------------------------------------------------------------------------------------

    def stop(self, deadline_s: float) -> bool:
        """Stop in order: copier, operations in flight, source flushed, ring drained, marker; tell whether the stop was clean.

        Connections are gone already, or are cut: what a late one still asks for fails.
        """
        serving, failed, log, words = self.serving, self.volume.log.failure is not None, self.volume.log, self.ring.words
        self.serving = False
        verified = self.verifier is None or self.verifier.stop(STOP_COPY_S)
        copied = self.copier is None or self.copier.stop(STOP_COPY_S)
        ended = self.volume.stop(deadline_s)
        flushed = self._flush()
        while not failed and not log.acked(log.head) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        owed, mode, _ = self.volume.snapshot()
        quiet = copied and verified and ended and flushed
        clean = serving and not failed and quiet and log.acked(log.head) and mode is Mode.DATA and not owed
        if serving and not failed and ended and flushed:
            identity = self.source.identity()
            words[layout.W_STOP_INODE], words[layout.W_STOP_SIZE] = identity.inode, identity.size_bytes
            words[layout.W_STOP_MTIME_NS] = identity.mtime_ns
            words[layout.W_STOPPED] = 1
            if clean:
                clean = self._mark_clean(identity)
        if not failed:
            with log.mutex:
                self.volume.modes.happen(Event.ENDED, "stopped")
            self._stopped = True
        event(_log, logging.INFO, "volume_stopped", volume=self.name, clean=clean, position=self.ring.position(layout.W_HEAD))
        if ended:
            self.source.close()
            self.activity.close()
        return clean

    def _flush(self) -> bool:
        """Flush the source, if it was not let go of already; tell whether it is durable."""
        if self.source.file.fd < 0:
            return False
        try:
            self.volume.sync_source()
        except OSError:
            return False
        return True

    def _mark_clean(self, identity: SourceIdentity) -> bool:
        try:
            self.activity.mark_clean(CleanStop(self.ring.text("topic_id"), str(self.ring.position(layout.W_HEAD)), identity))
        except OSError as error:
            event(_log, logging.ERROR, "clean_stop_not_written", volume=self.name, error=error.strerror)
            return False
        return True


def _respect_fence(path: Path, declaration: VolumeDeclaration) -> bool:
    """Raise FencedError if the volume was fenced; tell whether that is to be lifted, it being declared for this host since (rule 19)."""
    by = ActivityLog.fence_at(path)
    if by is None:
        return False
    since, _, told = by.partition(" ")
    if since.isdigit() and declaration.declared_at_ns > int(since):
        return True
    raise FencedError(
        f"Volume {declaration.volume} was fenced: {told or by}",
        hint="Another agent took it over. `hostoffload volume add --take-over` claims it back.",
        volume=declaration.volume,
    )
