"""The activity log: which regions of a volume may differ between source and replica after the loss of the host (design rule 1).

The only thing that the agent writes to disk: `<state>/agent/<volume>.activity`, one bit for each MiB of the volume and the two markers
(stopped clean, fenced), made at its full size beforehand. docs/activity_log.md has the bytes.

- Every operation of the application calls `touch` before it reaches the source: its regions are set on the disk when that returns.
- Every debt is set by `owe` before the request for it counts as accepted (rule 13).
- The keeper calls `sweep`, which clears what has been quiet for a while and is durable both in Kafka and on the source.

No operation reaches the source with its bit clear on the disk, and none is forgotten before it is durable, given that

(a) an operation is in flight, as `Standing.in_flight` tells, before it calls `touch` and until it has a position or stands in the owed
    map, whichever comes in one step with its leaving, under the volume's mutex;
(b) so is a run that the copier pays, from the step that takes it out of the owed map to the one that has all of it recorded or owed again;
(c) a debt stands in the owed map when `owe` is called, or `CLEAR_AFTER_S` later at most.

`_active[r]` is 1 only while the bit of region r is durable. Take an operation O on r, and a sweep S that clears r. O stores
`_touched[r]`, then looks at `_active[r]`; S resets `_active[r]`, then looks at `_touched[r]`, and clears the bit only if that is 0. (The
interpreter's lock puts these four into one order.)

1. O stored after S looked. Then O finds `_active[r]` reset and waits for a commit that sets the bit after S cleared it, or finds it set
   by such a commit.
2. O stored before S looked, so a sweep took its touch down, S or a former one: only sweeps reset `_touched[r]`, only after they saw it set,
   and r is then in the generation that is open. Sweeps that find O in flight, or r owed or being paid, put r into the generation then
   open as well, however long a slow disk takes. A generation is closed at the standing of a later sweep. At that moment O is not in
   flight, else r would be in a younger generation; it had entered; so it has left, and its record is no later than the head of that
   moment. If it left a debt instead, that has been paid, by a record no later than that head, else r would again be in a younger one.
3. S clears r only if that head is durable in Kafka, and the source was flushed since that moment.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from agent import clean_stop
from agent.activity_file import (
    CLEAN_AT,
    FENCE_AT,
    HEADER_AT,
    MAP_AT,
    NO_TEXT,
    REGION_SHIFT,
    Header,
    fence_page,
    read_fence,
    text_page,
)
from agent.activity_map import PAGE_BYTES, ActivityMap, map_bytes
from agent.clean_stop import CleanStop
from agent.generations import Generation, Generations, Standing, run_end, runs_of
from agent.group_commit import GroupCommit
from agent.source import SourceIdentity
from agent.state_file import HOST_FILES, StateFile, StateFiles
from stream.log import event

AHEAD_REGIONS_MAX = 32
SWEEP_INTERVAL_S = 2.0
CLOSE_S_MAX = 2.0
SWEEP_RUNS_MAX = 256  # at once: writers wait for the interpreter meanwhile, and those that miss for `_mapping`
YIELD_S = 5e-5
_log = logging.getLogger(__name__)

_Change = range | tuple[int, bytes]
"""Regions to set, or bytes to write at a place of the file."""


class ActivityLog:
    """The open log of one volume. Thread-safe, but one thread alone calls `sweep`, and one `resize`."""

    def __init__(self, file: StateFile, header: Header, bits: ActivityMap) -> None:
        """Go on with a file whose map is durable as it is in `bits`; `create` and `open` make logs."""
        self.volume = header.volume
        self.size_bytes = header.size_bytes
        self._file = file
        self._header = header
        self._bits = bits
        self._active = bits.spread()
        self._touched = bytearray(bits.count)
        self._quiet = Generations(self._active)
        self._sweeping = threading.Lock()  # taken before `_mapping`
        self._mapping = threading.Lock()
        self._committing: list[range] = []
        self._commits: GroupCommit[_Change] = GroupCommit(self._carry_out)
        self._swept_s = float("-inf")

    @classmethod
    def create(cls, path: Path, volume: str, source: SourceIdentity, *, owed: bool, files: StateFiles = HOST_FILES) -> ActivityLog:
        """Make a log with every region set (`owed`) or clear, in the place of the one there, whose fence stays. Raises OSError.

        Durable on return. There is no moment at which the file says less than the old or the new log, so what a new volume owes need not be
        set afterwards.
        """
        header = Header(volume, source.inode, source.size_bytes)
        bits = ActivityMap.clear_of(header.regions)
        if owed:
            bits.set(0, bits.count)
        fence = NO_TEXT
        with contextlib.suppress(FileNotFoundError), contextlib.closing(files.open(path)) as old:
            by = read_fence(old.pread(FENCE_AT, PAGE_BYTES))
            fence = NO_TEXT if by is None else fence_page(by)
        ((_, whole),) = bits.seal()
        files.make(path, header.page() + NO_TEXT + fence + whole)
        return cls(files.open(path), header, bits)

    @classmethod
    def open(cls, path: Path, volume: str, source: SourceIdentity, *, files: StateFiles = HOST_FILES) -> ActivityLog | None:
        """Open the log of this volume and source; None if there is none that can be believed: then everything may differ.

        Of a damaged map the damaged sectors count as set. What was read is written again and synced: bits may stand in the page cache alone
        that a killed process never saw on the disk. Raises OSError if that fails.
        """
        header = Header(volume, source.inode, source.size_bytes)
        try:
            file = files.open(path)
        except FileNotFoundError:
            return None
        try:
            reason = cls._disbelieved(file, header)
            raw = b"" if reason else file.pread(0, MAP_AT + map_bytes(header.regions))
        except OSError as error:
            reason = f"it can't be read: {error.strerror}"
        if reason:
            file.close()
            event(_log, logging.WARNING, "activity_log_discarded", volume=volume, reason=reason)
            return None
        bits, damaged = ActivityMap.read(header.regions, raw[MAP_AT:])
        if damaged:
            event(_log, logging.ERROR, "activity_log_damaged", volume=volume, sectors=damaged)
        try:
            file.extend(MAP_AT + map_bytes(header.regions))  # it may have been cut short
            for at, piece in [(0, raw[:MAP_AT]), *((MAP_AT + at, piece) for at, piece in bits.seal())]:
                file.pwrite(at, piece)
            file.fdatasync()
        except OSError:
            file.close()
            raise
        return cls(file, header, bits)

    @staticmethod
    def remove(path: Path, files: StateFiles = HOST_FILES) -> None:
        """Remove a log durably, its markers with it. Raises OSError."""
        files.remove(path)

    @staticmethod
    def fence_at(path: Path, files: StateFiles = HOST_FILES) -> str | None:
        """Return who fenced the volume whose log is at `path`, before anything of it is opened; None if nobody did. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), contextlib.closing(files.open(path)) as file:
            return read_fence(file.pread(FENCE_AT, PAGE_BYTES))
        return None

    @staticmethod
    def clean_at(path: Path, files: StateFiles = HOST_FILES) -> CleanStop | None:
        """Return the clean-stop marker of the log at `path`, None if there is none that can be believed. Raises OSError."""
        with contextlib.suppress(FileNotFoundError), contextlib.closing(files.open(path)) as file:
            return clean_stop.decode(file.pread(CLEAN_AT, PAGE_BYTES))
        return None

    @property
    def failure(self) -> OSError | None:
        """Why nothing can be set any more: the first error of the disk. What is set stays so, and `touch` goes on to find it."""
        return self._commits.failure

    # -- setting -------------------------------------------------------------------------------------------------------

    def touch(self, start_bytes: int, end_bytes: int) -> None:
        """Return when the regions of the extent are set on the disk. Called in flight, before the source is changed.

        No I/O and no lock if they are set already. Raises OSError if they can't be set: then the source must not be changed.
        """
        region = start_bytes >> REGION_SHIFT
        if (end_bytes - 1) >> REGION_SHIFT == region:
            self._touched[region] = 1  # before the look
            if self._active[region]:
                return
            self._set_missing(region, region + 1)
        elif self._note_touched(region, -(-end_bytes >> REGION_SHIFT)):
            self._set_missing(region, -(-end_bytes >> REGION_SHIFT))

    def owe(self, start_bytes: int, end_bytes: int) -> None:
        """Return when the regions of a debt, up to the whole volume, are set on the disk. Raises OSError if they can't be set."""
        self.owe_all([(start_bytes, end_bytes)])

    def owe_all(self, extents: Iterable[tuple[int, int]]) -> None:
        """The same for the debts of many extents, made durable together."""
        runs = [range(start_bytes >> REGION_SHIFT, -(-end_bytes >> REGION_SHIFT)) for start_bytes, end_bytes in extents]
        missing = [run for run in runs if self._note_touched(run.start, run.stop)]
        if missing:
            self._commits.commit(*missing)

    def regions(self) -> list[tuple[int, int]]:
        """Return what is set as joined extents (start, end) in bytes, the last one cut at the volume's end."""
        runs = ((run.start() << REGION_SHIFT, run.end() << REGION_SHIFT) for run in runs_of(1).finditer(bytes(self._active)))
        return [(start, min(end, self.size_bytes)) for start, end in runs]

    def resize(self, size_bytes: int) -> None:
        """Follow a source that grew: what is new is set. Raises OSError: then the log is still one of the old size.

        Durable on return. The bits come before the header: killed in between, the file is one of the old size.
        """
        assert size_bytes > self.size_bytes, "a source that shrank is another one"
        header = Header(self.volume, self._header.inode, size_bytes)
        new = header.regions - self._bits.count
        self._file.extend(MAP_AT + map_bytes(header.regions))
        with self._sweeping, self._mapping:
            self._bits.grow(header.regions)
            self._quiet.grow(header.regions)
            self._touched.extend(bytes(new))
            self._active.extend(bytes(new))
        self.owe(self.size_bytes, size_bytes)
        self._commits.commit((HEADER_AT, header.page()))
        self._header, self.size_bytes = header, size_bytes

    def close(self) -> None:
        """Refuse everything from now on and let go of the file, once nothing is at work in it; a disk that hangs keeps it."""
        if self._commits.close(CLOSE_S_MAX) and self._sweeping.acquire(timeout=CLOSE_S_MAX):
            self._file.close()
            self._sweeping.release()

    # -- markers -------------------------------------------------------------------------------------------------------

    def clean(self) -> CleanStop | None:
        """Return the clean-stop marker; None if there is none that can be believed. Raises OSError."""
        return clean_stop.decode(self._file.pread(CLEAN_AT, PAGE_BYTES))

    def mark_clean(self, marker: CleanStop) -> None:
        """Write the clean-stop marker durably. Raises OSError: then there may or may not be one."""
        self._commits.commit((CLEAN_AT, text_page(clean_stop.encode(marker))))

    def unmark_clean(self) -> None:
        """Remove the clean-stop marker durably, whether there is one or not. Raises OSError: then nothing may be served."""
        self._commits.commit((CLEAN_AT, NO_TEXT))

    def fenced(self) -> str | None:
        """Return who fenced the volume; None if nobody did. A flag that is damaged stands. Raises OSError."""
        return read_fence(self._file.pread(FENCE_AT, PAGE_BYTES))

    def mark_fenced(self, by: str) -> None:
        """Write durably that the volume is fenced, and by whom. Raises OSError."""
        self._commits.commit((FENCE_AT, fence_page(by)))

    def unmark_fenced(self) -> None:
        """Take the fence away durably, on the operator's word. Raises OSError."""
        self._commits.commit((FENCE_AT, NO_TEXT))

    # -- clearing ------------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float, look: Callable[[], Standing], flush: Callable[[], None]) -> int:
        """Clear the regions that were quiet for `CLEAR_AFTER_S` and are durable everywhere; return how many.

        Called as often as one likes: it does something every `SWEEP_INTERVAL_S`, and nothing once the log has failed. Not called before
        what the log said when it was opened is owed, or known to be equal. `look` returns the standing of the moment of the call. `flush`
        makes the source durable and is called only if something can be cleared; if it raises OSError, nothing is (what it lost must be owed
        by then). A cleared bit becomes durable by and by: one that is still set after a power cut costs a comparison, no more.
        """
        if self.failure is not None or now_s - self._swept_s < SWEEP_INTERVAL_S:
            return 0
        self._swept_s = now_s
        standing = look()
        with self._sweeping:
            self._quiet.turn(now_s, standing.head)
            self._see_touched()
            self._quiet.see_standing(standing)
            expired = self._quiet.take_expired(now_s, standing.acked)
        if not expired:
            return 0
        try:
            flush()  # with no lock: it may take as long as a disk hangs
            with self._sweeping:
                self._commits.refuse()
                return sum(self._clear(generation) for generation in expired)
        except OSError:
            self._quiet.put_back(expired)
            return 0

    def _see_touched(self) -> None:
        """Put what was touched since the last sweep into the open generation, and what is on its way to the disk."""
        touched, runs = self._touched, 0
        at = touched.find(1)
        while at >= 0:
            stop = run_end(touched, at)
            self._quiet.see(at, stop)
            touched[at:stop] = bytes(stop - at)  # all of them were set: a touch that comes in between is seen all the same
            at = touched.find(1, stop)
            runs += 1
            if not runs % SWEEP_RUNS_MAX:
                time.sleep(YIELD_S)
        with self._mapping:
            committing = self._committing
        for run in committing:
            self._quiet.see(run.start, run.stop)

    def _clear(self, generation: Generation) -> int:
        """Clear the regions of a generation; return how many. Raises OSError."""
        cleared, run = 0, self._quiet.run(generation, 0)
        while run is not None:
            with self._mapping:
                for _ in range(SWEEP_RUNS_MAX):
                    cleared += self._clear_run(*run)
                    run = self._quiet.run(generation, run[1])
                    if run is None:
                        break
                self._write_map()
            time.sleep(YIELD_S)
        return cleared

    def _clear_run(self, first: int, stop: int) -> int:
        """Clear a run but for what was touched since, with `_mapping` held; return how many were cleared."""
        before = bytes(self._active[first:stop])
        self._active[first:stop] = bytes(stop - first)  # before the look
        self._bits.clear(first, stop)
        self._quiet.forget(first, stop)
        cleared = before.count(1)
        at = self._touched.find(1, first, stop)
        while at >= 0:
            self._bits.set(at, at + 1)
            self._active[at] = before[at - first]
            self._quiet.see(at, at + 1)
            cleared -= before[at - first]
            at = self._touched.find(1, at + 1, stop)
        return cleared

    # -- inside --------------------------------------------------------------------------------------------------------

    def _note_touched(self, first: int, stop: int) -> bool:
        """Touch a run of regions; tell whether one of them is not set."""
        assert stop <= self._bits.count, "an extent outside of the volume"
        self._touched[first:stop] = b"\1" * (stop - first)  # before the look
        return self._active.find(0, first, stop) >= 0

    def _set_missing(self, first: int, stop: int) -> None:
        """Set regions, and ahead of them as many as are set without a break before them: who writes in sequence goes on there."""
        before = self._active[max(0, first - AHEAD_REGIONS_MAX) : first]
        ahead = len(before) - 1 - before.rfind(0)
        self._commits.commit(range(first, min(stop + ahead, self._bits.count)))

    def _carry_out(self, changes: list[_Change]) -> None:
        """Make changes durable together; one thread at a time."""
        with self._mapping:
            runs = [change for change in changes if isinstance(change, range) and self._active.find(0, change.start, change.stop) >= 0]
            pages = [change for change in changes if not isinstance(change, range)]
            if not runs and not pages:
                return  # the round before has set them
            self._committing = runs  # sweeps see these until they are active
            for run in runs:
                self._touched[run.start : run.stop] = b"\1" * len(run)
                self._bits.set(run.start, run.stop)
            self._write_map()
            for at, page in pages:
                self._file.pwrite(at, page)
        self._file.fdatasync()
        with self._mapping:
            for run in runs:
                self._active[run.start : run.stop] = b"\1" * len(run)
            self._committing = []

    def _write_map(self) -> None:
        """Write what changed in the map, with `_mapping` held, so that no older bytes come after younger ones. Raises OSError."""
        try:
            for at, piece in self._bits.seal():
                self._file.pwrite(MAP_AT + at, piece)
        except OSError as error:
            self._commits.fail(error)
            raise

    @staticmethod
    def _disbelieved(file: StateFile, wanted: Header) -> str | None:
        found = Header.read(file.pread(HEADER_AT, PAGE_BYTES))
        if found is None:
            return "its header is damaged, or of another version"
        if found != wanted:
            return f"it is for {found.volume}, inode {found.inode}, {found.size_bytes} bytes"
        return None


def path_of(state_dir: Path, volume: str) -> Path:
    return state_dir / "agent" / f"{volume}.activity"
