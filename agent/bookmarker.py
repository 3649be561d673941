"""The bookmarker: carries out, in capture, what is asked for by bookmarks, one barrier after the other on a thread of its own.

What is begun is written down before the marks, the outcome after them (`agent.bookmarks`), and both outlive the host's power. A request is
carried out once at most: of one that a killed process had begun, the rings tell which volumes have the mark, and that is its outcome; of
one whose ring is lost with the host's memory, nobody here knows, and that is said.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable

from agent.barrier import BARRIER_S_MAX, NOTHING_MARKED, ROOM_S_MAX, Barrier
from agent.bookmarks import Asked, BookmarkFile, Outcome, TakenMark
from agent.ring import W_HEAD, VolumeRing
from agent.volume import Volume
from stream.errors import HostoffloadError, RetryError
from stream.log import Repeats, event
from stream.record import Kind

RETRY_S = 0.5
_MARKED = re.compile(r"(\S+) (\d{8}-\d{16}) (\d{1,19})", re.ASCII)
_log = logging.getLogger(__name__)


class Bookmarker:
    """Take bookmarks. `find` returns the volume of that name if it is served now; `ask` and `forget` are called by the keeper."""

    def __init__(
        self, file: BookmarkFile, rings: Iterable[VolumeRing], find: Callable[[str], Volume | None], limit_s: float = BARRIER_S_MAX
    ) -> None:
        """Settle what a former process had begun; `rings` are those that it left, untouched since."""
        self._file = file
        self._find = find
        self._limit_s = limit_s
        self._mutex = threading.Lock()
        self._queue: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._untold = False
        self._repeats = Repeats()
        self._begun, self._outcomes = file.read()
        if self._begun is not None:
            self._conclude(_left_by_a_dead_process(self._begun, rings))
        self._known = {outcome.asked.id for outcome in self._outcomes}
        self._wanted: set[str] = set()
        self._thread: threading.Thread | None = None

    def ask(self, asked: Iterable[Asked]) -> None:
        """Have these carried out, each once; does not wait. One that is asked for no more is not begun."""
        wanted = list(asked)
        self._wanted = {one.id for one in wanted}
        for one in wanted:
            if one.id not in self._known:
                self._known.add(one.id)
                self._queue.put(one)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="bookmarks", daemon=True)
                    self._thread.start()

    def forget(self, volume: str) -> None:
        """Drop what is told of a volume that is protected no more: another one may get its name."""
        with self._mutex:
            kept = [outcome for outcome in self._outcomes if volume not in outcome.asked.volumes]
            if len(kept) != len(self._outcomes):
                self._outcomes = kept
                self._write()

    def stop(self) -> None:
        """End after the barrier at hand."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(ROOM_S_MAX + 2 * self._limit_s)

    def _run(self) -> None:
        while (asked := self._next()) is not None:
            try:
                with self._mutex:
                    self._begun = asked
                    self._file.write(asked, self._outcomes)  # nothing is begun that is not written down
                outcome = self._take(asked)
            except (HostoffloadError, OSError) as error:
                outcome = Outcome(asked, error=_told(error))
            except Exception as error:  # our bug: this request fails, others go on
                _log.exception("bookmark_crashed")
                outcome = Outcome(asked, error=f"The bookmark failed: {error!r}")
            self._conclude(outcome)

    def _next(self) -> Asked | None:
        """Wait for the next request; None: stop. An outcome that could not be written down is tried again meanwhile."""
        while True:
            try:
                return self._queue.get(timeout=RETRY_S if self._untold else None)
            except queue.Empty:
                with self._mutex:
                    self._write()

    def _take(self, asked: Asked) -> Outcome:
        """Take the marks. Raises RetryError: nothing is marked."""
        if asked.id not in self._wanted:
            raise RetryError("The bookmark was taken back before it was begun", hint=NOTHING_MARKED)
        left_s = (asked.until_ns - time.time_ns()) / 1e9
        if left_s <= 0:
            raise RetryError("The time was over before the mark could be taken", hint=NOTHING_MARKED)
        volumes = []
        for name in asked.volumes:
            volume = self._find(name)
            if volume is None:
                raise RetryError(f"Volume {name} is not served now", hint="See `hostoffload status`.")
            volumes.append(volume)
        told = {"label": asked.label, "group": asked.group, "members": ",".join(sorted(asked.volumes)), "barrier": asked.id}
        passed = Barrier(volumes, self._limit_s).mark(Kind.BOOKMARK, told, asked.id, min(ROOM_S_MAX, left_s))
        return Outcome(asked, dict(passed.marks), passed.stopped_ms)

    def _conclude(self, outcome: Outcome) -> None:
        """Tell what became of a request."""
        with self._mutex:
            self._begun = None
            self._outcomes.append(outcome)
            self._write()
        asked = outcome.asked
        event(
            _log,
            logging.WARNING if outcome.error else logging.INFO,
            "bookmark_refused" if outcome.error else "bookmark",
            label=asked.label,
            group=asked.group or None,
            volumes=",".join(asked.volumes),
            positions=",".join(mark.position for mark in outcome.marks.values()) or None,
            stopped_ms=outcome.stopped_ms or None,
            error=outcome.error or None,
        )

    def _write(self) -> None:
        """Write down what is begun and what became of the others; what the disk refuses is tried again."""
        try:
            self._file.write(self._begun, self._outcomes)
            self._untold = False
        except OSError as error:
            self._repeats.event(_log, logging.ERROR, "bookmarks_not_written", error=error.strerror)
            self._untold = True


def _left_by_a_dead_process(begun: Asked, rings: Iterable[VolumeRing]) -> Outcome:
    """Return what the rings tell of a barrier whose process died before it told the outcome."""
    marks, forgotten = {}, set(begun.volumes)
    for ring in rings:
        forgotten.discard(ring.text("volume"))
        told = _MARKED.fullmatch(ring.text("marked"))  # torn: killed before the mark
        if told is None or told[1] != begun.id or ring.text("volume") not in begun.volumes:
            continue
        if told[2] <= str(ring.position(W_HEAD)):
            marks[ring.text("volume")] = TakenMark(told[2], int(told[3]))
    if forgotten:
        names = sorted(forgotten)
        sentence = f"The host's memory was lost while the mark of {', '.join(names)} was being taken: Kafka may have it"
        return Outcome(begun, marks, error=f"{sentence}. `hostoffload points {names[0]}` shows it then.")
    if not marks:
        return Outcome(begun, error=f"The agent was started again before it took the mark. {NOTHING_MARKED}")
    lacking = sorted(set(begun.volumes) - marks.keys())
    if lacking:
        told = f"the mark is in {', '.join(sorted(marks))} alone, not in {', '.join(lacking)}"
        return Outcome(begun, marks, error=f"The agent died in the middle of the barrier: {told}. It is no point of the group.")
    return Outcome(begun, marks)


def _told(error: HostoffloadError | OSError) -> str:
    if isinstance(error, OSError):
        return f"The bookmark can't be written down: {error.strerror}. {NOTHING_MARKED}"
    return f"{error.sentence}. {error.hint}" if error.hint else error.sentence
