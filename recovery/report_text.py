"""A drill's report as text, for a terminal and for a log. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from recovery.bisection import Verdict
from recovery.report import CheckResult, DrillReport, PointResult, SetUp

SAID_LINES_MAX = 6
_MARKS = {Verdict.GOOD: "good", Verdict.BAD: "BAD ", Verdict.UNKNOWN: "?   "}


def text(report: DrillReport) -> str:
    """Return the report; the last line is the verdict."""
    return "\n".join([*(line for point in report.points for line in _point(point)), *report.problems, verdict_line(report)])


def point_line(point: PointResult) -> str:
    """Return one line on a point: verdict, place, time to be usable."""
    usable = "" if point.set_up is None else f"  usable after {point.set_up.rto_s:.2f} s ({_steps(point.set_up)})"
    return f"{_MARKS[point.verdict]}  {point.position}  {point.when}{usable}"


def verdict_line(report: DrillReport) -> str:
    """Return the answer in one line."""
    answer = report.answer
    trials = f"{len(report.points)} points tried in {report.seconds:.1f} s"
    if answer is None:
        told = ", ".join(f"{report.count(verdict)} {verdict}" for verdict in Verdict if report.count(verdict)) or "no point"
        rto = "" if report.rto_s is None else f"; usable within {report.rto_s:.2f} s"
        return f"{report.volume}: {'all good' if report.passed else 'NOT GOOD'}: {told} in {report.seconds:.1f} s{rto}"
    if answer.last_good is None:
        return f"{report.volume}: no good point in the range; {trials}"
    good = f"{answer.last_good.position} ({answer.last_good.when})"
    if answer.first_bad is None:
        return f"{report.volume}: nothing is bad: the last point of the range is good, {good}; {trials}"
    bad = f"{answer.first_bad.position} ({answer.first_bad.when})"
    between = "" if answer.exact else "; between them lie points that could not be judged"
    return f"{report.volume}: the last good point is {good}, the first bad one {bad}{between}; {trials}"


def _point(point: PointResult) -> Iterator[str]:
    yield point_line(point)
    if point.error:
        yield f"      {point.error}"
    for check in point.checks:
        yield f"      {_MARKS[check.verdict]}  {check.check}  {outcome(check)}"
        if check.verdict is not Verdict.GOOD:
            yield from (f"            {line}" for line in check.said.strip().splitlines()[-SAID_LINES_MAX:])


def outcome(check: CheckResult) -> str:
    """Return how a check ended, in words."""
    if check.timed_out:
        how = f"ended after {check.seconds:.1f} s: the time limit"
    elif check.exit_code is None:
        how = "did not run"
    elif check.exit_code < 0:
        how = f"killed by signal {-check.exit_code} after {check.seconds:.1f} s"
    else:
        how = f"exit code {check.exit_code} after {check.seconds:.1f} s"
    return how + (f", {check.left} processes ended behind it" if check.left else "")


def _steps(set_up: SetUp) -> str:
    steps = {"opened": set_up.opened_s, "exported": set_up.exported_s, "device": set_up.device_s, "mounted": set_up.mounted_s}
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in steps.items() if seconds is not None)
