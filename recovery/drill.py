"""A drill: a rehearsed recovery. A point is opened, exported writable from a scratch overlay, checked, and taken down again.

Called by `hostoffload drill`. History and replica are never touched: what checks write goes into an overlay that is thrown away with the
point. What a check does not name is not set up. All points of a drill share one opener and one bench, so that each costs what it needs
only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from history.image import Image
from recovery.bisection import Verdict, bisect_points
from recovery.check_run import CheckRun
from recovery.checks import CANT_TELL, Check, Need
from recovery.point import Wanted, format_time
from recovery.report import Answer, CheckResult, PointResult, SetUp
from recovery.stage import StageError
from stream.errors import HostoffloadError, IntegrityError, RecoveryError
from stream.position import ZERO, Position

POINT, FLUSH, TRIAL = "point", "flush", "trial"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class OpenedPoint(Protocol):
    """A recovery point, opened (`recovery.opening`)."""

    image: Image
    position: Position
    capture_time_ns: int


class Opener(Protocol):
    """Opens points of one volume."""

    def open(self, wanted: Wanted) -> AbstractContextManager[OpenedPoint]: ...


class Bench(Protocol):
    """Where a point is shown to checks (`recovery.drill_bench`)."""

    def show(self, image: Image) -> None:
        """Export an image, writable; what was shown before is gone. `places` then has its URI."""
        ...

    @property
    def places(self) -> Mapping[Need, str]: ...

    @property
    def failures(self) -> Sequence[HostoffloadError]:
        """Return what went wrong when the image was read."""
        ...

    def place(self, need: Need) -> str:
        """Set up what is needed; raises StageError."""
        ...

    def unmount(self) -> None: ...

    def check(self, line: str, timeout_s: float, environment: dict[str, str]) -> CheckRun: ...

    def clear(self) -> list[str]:
        """Take everything down; return what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point to look at, and where it is thought to be, for when it can't be opened."""

    wanted: Wanted
    position: Position = ZERO
    capture_time_ns: int = 0


class Drill:
    """Looks at points. `tell` hears of each as soon as it is done; `problems` are what could not be taken down."""

    def __init__(
        self,
        volume: str,
        opener: Opener,
        bench: Bench,
        checks: Sequence[Check],
        *,
        timeout_s: float,
        tell: Callable[[PointResult], None] = lambda point: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert checks, "a drill without a check proves nothing"
        self._volume = volume
        self._opener = opener
        self._bench = bench
        self._checks = checks
        self._timeout_s = timeout_s
        self._tell = tell
        self._clock = clock
        self.problems: list[str] = []

    def at(self, wanted: Wanted, requested_s: float) -> PointResult:
        """Look at one point, asked for at `requested_s` of the clock. Raises RecoveryError, IntegrityError, RetryError."""
        result = self._look(wanted, POINT, requested_s, stop_at_bad=False)
        self._tell(result)
        return result

    def each(self, candidates: Iterable[Candidate], why: str = FLUSH) -> list[PointResult]:
        """Look at all of them; one that can't be opened is a bad one, for it was offered. Raises RetryError."""
        return [self._judge(candidate, why, stop_at_bad=False) for candidate in candidates]

    def bisect(self, candidates: Sequence[Candidate]) -> tuple[Answer, list[PointResult]]:
        """Find the last good one of ordered points. A point that is none (inside a split write) can't be judged. Raises RetryError."""
        found: dict[int, PointResult] = {}

        def judge(index: int) -> Verdict:
            found[index] = self._judge(candidates[index], TRIAL, stop_at_bad=True)
            return found[index].verdict

        answer = bisect_points(len(candidates), judge)
        good, bad = (None if index is None else found[index] for index in (answer.good, answer.bad))
        return Answer(good, bad, answer.exact), list(found.values())

    def _judge(self, candidate: Candidate, why: str, *, stop_at_bad: bool) -> PointResult:
        try:
            result = self._look(candidate.wanted, why, self._clock(), stop_at_bad=stop_at_bad)
        except (RecoveryError, IntegrityError) as error:
            result = PointResult(candidate.position, candidate.capture_time_ns, why, None, (), error.sentence)
            if why == TRIAL and isinstance(error, RecoveryError):  # no point at all: nothing to be judged
                result = replace(result, error="", checks=(_untold(error.sentence),))
        self._tell(result)
        return result

    def _look(self, wanted: Wanted, why: str, requested_s: float, *, stop_at_bad: bool) -> PointResult:
        with self._opener.open(wanted) as opened:
            opened_s = self._clock() - requested_s
            began_s = self._clock()
            try:
                self._bench.show(opened.image)
                set_up = SetUp(opened_s, self._clock() - began_s)
                results: list[CheckResult] = []
                for check in self._checks:
                    set_up, result = self._check(check, set_up, opened)
                    results.append(result)
                    if stop_at_bad and result.verdict is Verdict.BAD:
                        break
            finally:
                self.problems += self._bench.clear()
            wrong = self._bench.failures[0].sentence if self._bench.failures else ""
            return PointResult(opened.position, opened.capture_time_ns, why, set_up, tuple(results), wrong)

    def _check(self, check: Check, set_up: SetUp, opened: OpenedPoint) -> tuple[SetUp, CheckResult]:
        """Set up what a check names, and run it."""
        step = Need.DEVICE
        try:
            if Need.MOUNT not in check.needs and Need.DEVICE in check.needs:
                self._bench.unmount()
            for step in _steps(check):
                known, began_s = step in self._bench.places, self._clock()
                self._bench.place(step)
                if not known:
                    set_up = _with_step(set_up, step, self._clock() - began_s)
        except StageError as error:
            # what can't be mounted is bad; a device that can't be made is the machine's fault, not the point's
            verdict = Verdict.BAD if step is Need.MOUNT else Verdict.UNKNOWN
            return set_up, CheckResult(check.text, verdict, None, False, 0.0, cleaned(str(error)))
        places = self._bench.places
        told = {"DRILL_VOLUME": self._volume, "DRILL_POSITION": str(opened.position), "DRILL_TIME": format_time(opened.capture_time_ns)}
        done = self._bench.check(check.command(places), self._timeout_s, told)
        verdict = {0: Verdict.GOOD, CANT_TELL: Verdict.UNKNOWN}.get(done.exit_code, Verdict.BAD)
        return set_up, CheckResult(check.text, verdict, done.exit_code, done.timed_out, done.seconds, cleaned(done.output), done.left)


def cleaned(text: str) -> str:
    """Return what a program said without what would move a terminal's cursor or is no text."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _steps(check: Check) -> list[Need]:
    if Need.MOUNT in check.needs:
        return [Need.DEVICE, Need.MOUNT]
    return [Need.DEVICE] if Need.DEVICE in check.needs else []


def _with_step(set_up: SetUp, step: Need, seconds: float) -> SetUp:
    """Note how long a step took, the first time that it is done."""
    if step is Need.DEVICE:
        return set_up if set_up.device_s is not None else replace(set_up, device_s=seconds)
    return set_up if set_up.mounted_s is not None else replace(set_up, mounted_s=seconds)


def _untold(sentence: str) -> CheckResult:
    return CheckResult("opens", Verdict.UNKNOWN, None, False, 0.0, sentence)
