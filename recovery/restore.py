"""Restore: an image written to a file or a block device, proved, resumable.

Called by `hostoffload restore`, and by `replay` for its starting point. Steps, window by window of the volume: 1. the image's data is read
in the order in which it is stored (`Image.sweep`), joined into runs and written by other threads, each run with a digest of what the
image gave · 2. fdatasync · 3. the window's runs go into the journal. Then 4. a device is zeroed where there is no run, a file has holes
there · 5. all of it is read back and compared with the digests, zeroes included · 6. a file gets its name, the journal goes.

A restore that is killed goes on with the first window that the journal lacks, whatever the store looks like by then: the bytes at a
position never change. If the image can't be read the unfinished file is removed. Memory: `BUFFERS` of `RUN_BYTES_MAX`, 24 bytes a run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from history.image import Image
from nbd.blockfile import BlockFile
from recovery.readback import Readback
from recovery.restore_journal import RestoreJournal
from recovery.restore_target import RestoreTarget
from recovery.runs import REGION_BYTES, Run, Runs, digest_of, gaps_between
from stream.errors import IntegrityError
from stream.position import Position

WINDOW_BYTES = 1 << 30
RUN_BYTES_MAX = 1 << 20
BUFFERS = 16
WRITERS = 2
WATCH_INTERVAL_S = 0.1

Watch = Callable[[str, int, int], None]
"""Told now and then: what is done (`write`, `zero`, `verify`), how many bytes are, and of how many at most."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `written_bytes` are this run's, `kept_bytes` those of an earlier one that was killed; `direct`: read back past
    the page cache."""

    path: Path
    position: Position
    size_bytes: int
    data_bytes: int
    written_bytes: int
    kept_bytes: int
    verified_bytes: int
    direct: bool
    write_s: float
    verify_s: float


class Restore:
    """One restore of `image`. The target must have been checked for the image's size."""

    def __init__(
        self,
        image: Image,
        target: RestoreTarget,
        *,
        watch: Watch = lambda what, done_bytes, of_bytes: None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        assert image.size_bytes == target.size_bytes and window_bytes % REGION_BYTES == 0
        self._image = image
        self._target = target
        self._watch = watch
        self._window_bytes = window_bytes
        self._runs = Runs()

    def run(self) -> Restored:
        """Do all of it. Raises IntegrityError (the image can't be read, or the target does not hold what was written), RetryError, OSError;
        a file that is named like the target is then what it was before."""
        target, image = self._target, self._image
        if not target.is_device:
            target.unfinished.touch(0o600)
        target.journal_path.parent.mkdir(parents=True, exist_ok=True)
        subject = {"volume": image.volume, "position": str(image.position), "size": image.size_bytes, "window": self._window_bytes}
        journal = RestoreJournal(target.journal_path, subject | target.identity())
        began_s = time.monotonic()
        try:
            file = target.open(anew=not journal.resumed)
            try:
                kept_bytes = self._write(file, journal)
            finally:
                file.close()
            wrote_s = time.monotonic()
            verified_bytes, direct = self._verify()
            target.finish()
        except IntegrityError:
            target.give_up()
            journal.remove()
            raise
        finally:
            journal.close()
        journal.remove()
        data_bytes = self._runs.total_bytes
        times = wrote_s - began_s, time.monotonic() - wrote_s
        written_bytes = data_bytes - kept_bytes
        path, position = target.path, image.position
        return Restored(path, position, image.size_bytes, data_bytes, written_bytes, kept_bytes, verified_bytes, direct, *times)

    def _write(self, file: BlockFile, journal: RestoreJournal) -> int:
        """Write every window that the journal lacks; return how many bytes the others have."""
        kept_bytes = 0
        size = self._image.size_bytes
        for number in range(-(-size // self._window_bytes)):
            start, end = number * self._window_bytes, min((number + 1) * self._window_bytes, size)
            runs = journal.windows.get(number)
            if runs is None:
                writers = _Writers(file)
                try:
                    self._sweep(writers, start, end)
                finally:
                    writers.close()
                runs = writers.runs
                if file.is_device:
                    self._zero(file, runs, start, end)
                file.sync()
                journal.append(number, runs)
            else:
                kept_bytes += sum(run.end_bytes - run.start_bytes for run in runs)
            for run in runs:
                self._runs.add(run)
            self._watch("write", end, size)
        return kept_bytes

    def _sweep(self, writers: _Writers, start: int, end: int) -> None:
        size, told_s = self._image.size_bytes, time.monotonic()
        for offset, data in self._image.sweep(start, end):
            writers.take(offset, data)
            if time.monotonic() - told_s >= WATCH_INTERVAL_S:
                told_s = time.monotonic()
                self._watch("write", min(start + writers.taken_bytes, end), size)
        writers.finish()

    def _zero(self, file: BlockFile, runs: Runs, start: int, end: int) -> None:
        for gap_start, gap_end in gaps_between(runs, start, end):
            file.zero(gap_start, gap_end - gap_start, punch=True)
            self._watch("zero", gap_end, self._image.size_bytes)

    def _verify(self) -> tuple[int, bool]:
        size = self._image.size_bytes
        readback = Readback(self._target.unfinished, size, self._runs)
        try:
            return readback.run(lambda done_bytes: self._watch("verify", done_bytes, size)), readback.direct
        finally:
            readback.close()


class _Writers:
    """Threads that write runs. `take` joins what is neighbouring; a failed write is raised by whatever is called next.

    The pieces of an image never cross a region's end, so a run that begins at one begins anew.
    """

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(bytearray(RUN_BYTES_MAX))
        self._full: queue.SimpleQueue[tuple[bytearray, list[tuple[int, int, int]]] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._buffer: bytearray | None = None
        self._parts: list[tuple[int, int, int]] = []  # volume offset, start and end in the buffer
        self._used = 0
        self._lock = threading.Lock()
        self.runs = Runs()
        self.taken_bytes = 0
        self._threads = [threading.Thread(target=self._work, name=f"restore-{index}", daemon=True) for index in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def take(self, offset_bytes: int, data: memoryview) -> None:
        """Take a piece, at most `RUN_BYTES_MAX` long; it is copied."""
        length = len(data)
        if self._used + length > RUN_BYTES_MAX:
            self._hand_over()
        if self._buffer is None:
            self._buffer = self._free.get()
        begin, self._used = self._used, self._used + length
        self._buffer[begin : self._used] = data
        self.taken_bytes += length
        if self._parts and offset_bytes % REGION_BYTES:
            last_offset, last_begin, last_end = self._parts[-1]
            if last_offset + last_end - last_begin == offset_bytes:
                self._parts[-1] = (last_offset, last_begin, self._used)
                return
        self._parts.append((offset_bytes, begin, self._used))

    def finish(self) -> None:
        """Return when everything taken is written. Raises what a write raised."""
        if self._buffer is not None:
            self._hand_over()
        self.close()
        self._check()

    def close(self) -> None:
        """End the threads. May be called twice."""
        for _ in self._threads:
            self._full.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _hand_over(self) -> None:
        self._check()
        assert self._buffer is not None
        self._full.put((self._buffer, self._parts))
        self._buffer, self._parts, self._used = None, [], 0

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (given := self._full.get()) is not None:
            buffer, parts = given
            try:
                if self._failure is None:
                    self._write(memoryview(buffer), parts)
            except Exception as error:  # told to the thread that takes
                self._failure = error
            self._free.put(buffer)

    def _write(self, view: memoryview, parts: list[tuple[int, int, int]]) -> None:
        runs = []
        for offset, begin, end in parts:
            data = view[begin:end]
            self._file.write(offset, data, end - begin)
            runs.append(Run(offset, offset + end - begin, digest_of(data)))
        with self._lock:
            for run in runs:
                self.runs.add(run)
