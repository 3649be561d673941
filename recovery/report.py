"""What a drill found, as values: points, their checks, how long each took to be usable; and the same as facts for `--json`.

Made by `drill`, shown by `report_text`, `report_junit` and `report_html`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recovery.bisection import Verdict
from recovery.point import format_time
from stream.position import Position

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went. `exit_code` is None if it was ended, or never ran because what it needs could not be set up; `said` is the end of
    its output, or the reason. `left` processes were ended behind it."""

    check: str
    verdict: Verdict
    exit_code: int | None
    timed_out: bool
    seconds: float
    said: str
    left: int = 0


@dataclass(frozen=True, slots=True)
class SetUp:
    """How long it took to have the volume at a point, step by step in seconds; what no check asked for is None."""

    opened_s: float
    exported_s: float
    device_s: float | None = None
    mounted_s: float | None = None

    @property
    def rto_s(self) -> float:
        """Return the time from the request to a usable volume."""
        return self.opened_s + self.exported_s + (self.device_s or 0.0) + (self.mounted_s or 0.0)


@dataclass(frozen=True, slots=True)
class PointResult:
    """A point and what was found there; `why` it was looked at: `point`, `flush` or `trial`. `error`: it could not be opened."""

    position: Position
    capture_time_ns: int
    why: str
    set_up: SetUp | None
    checks: tuple[CheckResult, ...]
    error: str = ""

    @property
    def when(self) -> str:
        """Return its capture time, empty if it is not known because it could not be opened."""
        return format_time(self.capture_time_ns) if self.capture_time_ns else ""

    @property
    def verdict(self) -> Verdict:
        """Return BAD if anything was, else UNKNOWN if anything could not be told."""
        verdicts = {check.verdict for check in self.checks}
        if self.error or Verdict.BAD in verdicts:
            return Verdict.BAD
        return Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts or not verdicts else Verdict.GOOD


@dataclass(frozen=True, slots=True)
class Answer:
    """What a bisection found; `exact`: no point that could not be judged lies between the two."""

    last_good: PointResult | None
    first_bad: PointResult | None
    exact: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the history to draw: consistent, or a gap with its reason. ns since 1970."""

    begin_ns: int
    end_ns: int
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A bookmark to draw."""

    time_ns: int
    text: str


@dataclass(frozen=True, slots=True)
class DrillReport:
    """A drill. `mode` is `point`, `every-flush` or `bisect`; `points` in the order in which they were looked at."""

    volume: str
    mode: str
    asked: str
    began_at_ns: int
    seconds: float
    points: tuple[PointResult, ...]
    answer: Answer | None = None
    spans: Sequence[Span] = ()
    labels: Sequence[Label] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the answer is yes: everything was good, or a bisection found a good point."""
        if self.answer is not None:
            return self.answer.last_good is not None
        return bool(self.points) and all(point.verdict is Verdict.GOOD for point in self.points)

    @property
    def rto_s(self) -> float | None:
        """Return the longest time that a volume took to be usable."""
        return max((point.set_up.rto_s for point in self.points if point.set_up is not None), default=None)

    def count(self, verdict: Verdict) -> int:
        return sum(point.verdict is verdict for point in self.points)


def facts(report: DrillReport) -> dict[str, Any]:
    """Return the report as JSON-able facts."""
    told: dict[str, Any] = {
        "volume": report.volume,
        "mode": report.mode,
        "asked": report.asked,
        "passed": report.passed,
        "began_at": format_time(report.began_at_ns),
        "seconds": round(report.seconds, 3),
        "rto_s": None if report.rto_s is None else round(report.rto_s, 3),
        "good": report.count(Verdict.GOOD),
        "bad": report.count(Verdict.BAD),
        "unknown": report.count(Verdict.UNKNOWN),
        "points": [_point(point) for point in report.points],
        "problems": list(report.problems),
    }
    if report.answer is not None:
        told |= {
            "last_good": _place(report.answer.last_good),
            "first_bad": _place(report.answer.first_bad),
            "exact": report.answer.exact,
        }
    return told


def _place(point: PointResult | None) -> dict[str, str | None] | None:
    return None if point is None else {"position": str(point.position), "time": point.when or None}


def _point(point: PointResult) -> dict[str, Any]:
    set_up: Mapping[str, float | None] = {}
    if point.set_up is not None:
        steps = {name: getattr(point.set_up, name) for name in ("opened_s", "exported_s", "device_s", "mounted_s", "rto_s")}
        set_up = {name: None if value is None else round(value, 3) for name, value in steps.items()}
    return {
        "position": str(point.position),
        "time": point.when or None,
        "why": point.why,
        "verdict": point.verdict.value,
        "error": point.error or None,
        **set_up,
        "checks": [
            {
                "check": one.check,
                "verdict": one.verdict.value,
                "exit_code": one.exit_code,
                "timed_out": one.timed_out,
                "seconds": round(one.seconds, 3),
                "left": one.left,
                "said": one.said,
            }
            for one in point.checks
        ],
    }
