"""The barrier: one mark in each of some volumes at one instant (design rule 10).

Called by the bookmarker, one barrier at a time on a host. In the order of the volumes' names:

1. what the marks need of memory is had, while writes go on; a volume that is out of order is refused here already;
2. every volume is closed: what comes from now on waits at its gate, which is a place in the queue of its extent locks, so that the way
   of a write is the same as ever, and costs the same;
3. each is drained, with what is left of the time limit: what was admitted before the gate has its position then;
4. all mutexes are held; each volume is looked at once more; then all marks get their positions;
5. all are opened.

A disk that hangs, or a time limit that is over, ends it at any step before the first mark: nothing is marked, and all are open again.
So of two writes on two volumes, one acknowledged before the other was sent, the later one is never before the mark if the earlier
one is behind it. Volumes that take no part are not touched, nor are reads.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agent import ring as layout
from agent.bookmarks import TakenMark
from agent.extents import Gate
from agent.marks import Put
from agent.volume import Volume
from stream.errors import RetryError
from stream.record import Kind

BARRIER_S_MAX = 0.3
ROOM_S_MAX = 1.0
NOTHING_MARKED = "Nothing is marked: try again."


@dataclass(frozen=True, slots=True)
class Passed:
    """The marks by volume, and for how long writes were held."""

    marks: Mapping[str, TakenMark]
    stopped_ms: float


class Barrier:
    """One barrier over these volumes, used once."""

    def __init__(self, volumes: Sequence[Volume], limit_s: float = BARRIER_S_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._volumes = sorted(volumes, key=lambda one: one.name)
        self._limit_s = limit_s
        self._clock = clock
        self._gates: dict[str, Gate] = {}
        self._deadline_s = 0.0

    def mark(self, kind: Kind, attributes: Mapping[str, str], mark_id: str, room_s: float = ROOM_S_MAX) -> Passed:
        """Take the marks; `mark_id` stands in each ring as the last one's.

        Holds writes for at most the time limit, and waits at most `room_s` before that. Raises RetryError: nothing is marked.
        """
        for volume in self._volumes:
            self._check(volume)
        with contextlib.ExitStack() as room:
            room_until_s = self._clock() + room_s
            puts = {volume.name: room.enter_context(volume.marks.kept(room_until_s - self._clock())) for volume in self._volumes}
            began_s = self._clock()
            self._deadline_s = began_s + self._limit_s
            try:
                self._close()
                self._drain()
                marks = self._put(kind, attributes, mark_id, puts)
            finally:
                self._open()
                stopped_ms = round((self._clock() - began_s) * 1000, 3)
        for volume in self._volumes:
            volume.log.wake_publisher()
        return Passed(marks, stopped_ms)

    def _close(self) -> None:
        for volume in self._volumes:
            with self._held(volume):
                self._gates[volume.name] = volume.locks.close()

    def _drain(self) -> None:
        for volume in self._volumes:
            with self._held(volume):
                if not volume.locks.drained(self._gates[volume.name], self._rest_s):
                    raise self._late(volume)

    def _put(self, kind: Kind, attributes: Mapping[str, str], mark_id: str, puts: Mapping[str, Put]) -> dict[str, TakenMark]:
        """Give the marks their positions: nothing gets one in between in any of the volumes."""
        with contextlib.ExitStack() as held:
            for volume in self._volumes:
                held.enter_context(self._held(volume))
            for volume in self._volumes:
                self._check(volume)
            if self._rest_s <= 0:
                raise self._late(self._volumes[-1])
            marks = {}
            for volume in self._volumes:
                words, position = volume.ring.words, volume.log.next_position
                volume.ring.set_text("marked", f"{mark_id} {position} 0")  # first: killed behind the mark, it is known that it is there
                puts[volume.name](kind, attributes)
                marks[volume.name] = TakenMark(str(position), words[layout.W_CAPTURE_NS])
                volume.ring.set_text("marked", f"{mark_id} {position} {words[layout.W_CAPTURE_NS]}")
            return marks

    def _open(self) -> None:
        for volume in self._volumes:
            gate = self._gates.pop(volume.name, None)
            if gate is not None:
                with volume.log.mutex:
                    volume.locks.open(gate)

    @contextlib.contextmanager
    def _held(self, volume: Volume):
        """Hold the volume's mutex. Raises RetryError if it can't be had in what is left of the time."""
        if not volume.log.mutex.acquire(timeout=max(0.0, self._rest_s)):
            raise self._late(volume)
        try:
            yield
        finally:
            volume.log.mutex.release()

    @property
    def _rest_s(self) -> float:
        return self._deadline_s - self._clock()

    def _check(self, volume: Volume) -> None:
        """Raise RetryError if a mark in the volume would have no point behind it."""
        told = volume.out_of_order()
        if told is not None:
            raise RetryError(told, hint=f"Wait until order is kept again: hostoffload wait {volume.name} --in-sync", volume=volume.name)

    def _late(self, volume: Volume) -> RetryError:
        return RetryError(
            f"Writes under way on volume {volume.name} did not end within {self._limit_s * 1000:.0f} ms; the barrier was given up",
            hint=f"Is its disk slow, or does it hang? {NOTHING_MARKED}",
            volume=volume.name,
        )
