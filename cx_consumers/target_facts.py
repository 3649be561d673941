"""What the target says about its volumes, and the thread that says it.

Each volume's thread publishes an immutable `VolumeFacts`; the thread here hands them to `stream.report.Reporter`: at once when
something changed, at most every `REPORT_INTERVAL_S`, and at least every `REPORT_IDLE_S`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cx_consumers.target_verify import Ended
from stream.errors import HostoffloadError
from stream.log import Repeats
from stream.position import ZERO, Position
from stream.report import Reporter

REPORT_INTERVAL_S = 0.05
REPORT_IDLE_S = 1.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One volume at this target. `state` is one of starting, applying, held, paused, parked, retrying.

    `position` is applied and durable; `gaps` counts since the replica was made, first copies left out; `waiting_bytes` were read ahead
    of a hold; `applied_capture_ns` is the capture time of the last applied record on the agent's clock, `apply_age_ms` its age when it
    was applied, true only if agent and target share a clock.

    `verify_round` is the round that runs, else the last that ended; `verify_done` and `round_mismatches` are of the last complete one,
    `verify_mismatches` counts since the replica was made; `repairs_open` are extents known to differ that were not yet written anew.
    """

    position: Position = ZERO
    state: str = "starting"
    consistent_at: Position | None = None
    not_until: Position | None = None
    open_gaps: int = 0
    gaps: int = 0
    held: bool = False
    waiting_bytes: int = 0
    applied_capture_ns: int | None = None
    apply_age_ms: float | None = None
    applied_bytes: int = 0
    delay_s: float = 0.0
    path: str = ""
    proved_position: Position | None = None
    verify_round: str | None = None
    verify_percent: float | None = None
    verify_done: str | None = None
    round_mismatches: int | None = None
    verify_mismatches: int = 0
    verify_ended: tuple[Ended, ...] = ()
    repairs_open: int = 0
    error: str | None = None
    hint: str | None = None
    note: str | None = None

    def told(self) -> tuple[Position, Mapping[str, Any]]:
        """Return position and facts as a report carries them."""
        facts: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "position"}
        for name in ("consistent_at", "not_until", "proved_position"):
            facts[name] = None if facts[name] is None else str(facts[name])
        facts["verify_ended"] = [one.told() for one in self.verify_ended]
        return self.position, facts


class Board:
    """Where the volumes' threads put their facts. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._facts: dict[str, VolumeFacts] = {}
        self._version = 0

    def publish(self, volume: str, facts: VolumeFacts) -> None:
        with self._changed:
            self._facts[volume] = facts
            self._version += 1
            self._changed.notify_all()

    def remove(self, volume: str) -> None:
        with self._changed:
            self._facts.pop(volume, None)
            self._version += 1
            self._changed.notify_all()

    def wait(self, version: int, timeout_s: float) -> tuple[int, dict[str, VolumeFacts]]:
        """Return the present version and facts, at once if they are newer than `version`, else after the time at the latest."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout_s)
            return self._version, dict(self._facts)


class ReportThread:
    """Report the board until it is stopped; the last report is the state at the stop."""

    def __init__(self, board: Board, reporter: Reporter) -> None:
        self._board = board
        self._reporter = reporter
        self._stopped = threading.Event()
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._report(self._board.wait(-1, 0)[1])

    def _run(self) -> None:
        version, quiet = -1, False
        while not self._stopped.is_set():
            seen, facts = self._board.wait(version, REPORT_IDLE_S if quiet else 2 * REPORT_INTERVAL_S)
            quiet = seen == version  # what the stream was not told at once is told again as soon as nothing changes any more
            version = seen
            self._report(facts)
            self._stopped.wait(REPORT_INTERVAL_S)

    def _report(self, facts: Mapping[str, VolumeFacts]) -> None:
        try:
            self._reporter.report({volume: one.told() for volume, one in facts.items()})
        except (OSError, HostoffloadError) as error:
            self._repeats.event(_logger, logging.WARNING, "report_failed", error=str(error))
