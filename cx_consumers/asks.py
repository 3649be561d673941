"""Asks: what order needs from the agent, put into `ho.control` by a thread of its own, so that no volume waits for it.

A resync has the same id for the same gap, so asking again at every take-over is one request; another gap at the same position (a journal
lost for the second time) has another one, for the first may have been answered long ago. So has every gap still open when another begins:
what closed it may be what is lost. A republish has a new id each time: the agent answers each once, whether it still holds the position.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from stream.control import Request
from stream.errors import HostoffloadError
from stream.journal import OpenGap
from stream.log import Repeats, event
from stream.position import Position

BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
WAITING_MAX = 10_000
_REPUBLISH = "republish-"
_log = logging.getLogger(__name__)


class Asks:
    """Put requests, each until it is durable. Thread-safe."""

    def __init__(self, put: Callable[[Request], None], worker: str) -> None:
        self._put = put
        self._worker = f"cx/{worker}"
        self._queue: queue.Queue[Request | None] = queue.Queue(WAITING_MAX)
        self._stop = threading.Event()
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name="asks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Put what waits if the broker answers, and stop. What is lost is asked for again by the next owner of the volume."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stop.set()

    def resync(self, volume: str, gap: OpenGap, newest: OpenGap | None = None, *, name: str = "") -> None:
        """Ask for everything to be copied again, which closes `gap`; `newest` is the last gap that began while it was open, `name` what the
        copy's `sync_end` is to call it, if not by its position."""
        told = {"reason": gap.reason, "gap": name or str(gap.position)}
        self._ask("resync", f"resync-{volume}-{gap.position}-{(newest or gap).begun_at_ns:x}", volume, told)

    def repair(self, volume: str, position: str, offset_bytes: int, length_bytes: int) -> None:
        """Ask for a chunk to be copied again that the store shows otherwise than the source had it at a position (design rule 26)."""
        told = {"reason": "verify_mismatch", "gap": "", "extents": f"{offset_bytes}-{offset_bytes + length_bytes}"}
        self._ask("resync", f"verify-{volume}-{position}-store", volume, told)

    def republish(self, volume: str, position: Position) -> None:
        """Ask the agent to publish again from `position` on."""
        self._ask("republish", f"{_REPUBLISH}{volume}-{position}-{time.time_ns()}", volume, {"position": str(position)})

    def _ask(self, kind: str, name: str, volume: str, told: dict[str, str]) -> None:
        event(_log, logging.WARNING, f"{kind}_asked", volume=volume, **told)
        self._queue.put(Request(name, kind, volume, told, self._worker, time.time_ns()))

    def _run(self) -> None:
        while (request := self._queue.get()) is not None:
            backoff_s = BACKOFF_S
            while not self._stop.is_set():
                try:
                    self._put(request)
                    break
                except HostoffloadError as error:
                    self._repeats.event(_log, logging.WARNING, "request_waits", volume=request.volume, error=str(error))
                    self._stop.wait(backoff_s)
                    backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)


def refused_republish(answer_id: str, volume: str) -> Position | None:
    """Return the position that this refused answer is about, None if it answers no republish of this volume."""
    start = f"{_REPUBLISH}{volume}-"
    if not answer_id.startswith(start):
        return None
    return Position.parse(answer_id.removeprefix(start).rpartition("-")[0])
