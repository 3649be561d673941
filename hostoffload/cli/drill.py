"""`drill NAME --check 'CMD'`: a rehearsed recovery, at a point, at every flush of a range, or bisecting to the last good point."""

from __future__ import annotations

import argparse
import os
import time
from bisect import bisect_left
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from hostoffload.context import Context

if TYPE_CHECKING:
    from recovery.drill import Drill
    from recovery.opening import Opener
    from recovery.report import DrillReport, PointResult
    from stream.position import Position

TIMEOUT_S = 300.0
DRAWN_SEGMENTS = 32  # on either side of a point


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    drill = commands.add_parser(
        "drill",
        help="rehearse recovery: export points and check them",
        description="Export a volume as it was at a point, writable and thrown away afterwards, and run checks on it: {device}, {uri} and "
        "{mount} in a check stand for its block device, its NBD URI and where its filesystem is mounted. Exit 0: all good, or a bisection "
        "found a good point; 1: it did not. A check's exit code 125 means that it can't tell.",
    )
    drill.add_argument("name", metavar="NAME", help="the volume")
    how = drill.add_mutually_exclusive_group()
    how.add_argument("--at", metavar="POINT", default=None, help="one point (default: latest)")
    how.add_argument("--every-flush", action="store_true", help="every flush of the range")
    how.add_argument("--bisect", action="store_true", help="find the last good point of the range")
    drill.add_argument("--from", metavar="POINT", dest="start", help="where the range begins (default: the oldest point)")
    drill.add_argument("--to", metavar="POINT", dest="end", help="where the range ends (default: latest)")
    drill.add_argument(
        "--check", metavar="CMD", action="append", required=True, help="a shell line, or `fsck`, or `mount`; may be given several times"
    )
    drill.add_argument("--timeout", metavar="S", type=float, default=TIMEOUT_S, help="time limit of a check (default: %(default).0f s)")
    drill.add_argument("--junit", metavar="FILE", type=Path, help="write the report as JUnit XML too")
    drill.add_argument("--html", metavar="FILE", type=Path, help="write the report as one HTML page too")
    drill.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.history_access import history_of
    from recovery.checks import Check, find_tools, search_path
    from recovery.drill import Drill
    from recovery.drill_bench import DrillBench
    from recovery.report import facts
    from recovery.report_text import point_line, text
    from stream.errors import ConfigError

    requested_s = _process_began_s() if context.own_process else time.monotonic()
    ranged = options.every_flush or options.bisect
    if not ranged and (options.start or options.end):
        raise ConfigError("--from and --to name a range", hint="Say --every-flush or --bisect, or name one point by --at.")
    checks = [Check.parse(one) for one in options.check]
    find_tools(checks, is_root=os.geteuid() == 0, path=search_path())
    for path in (options.junit, options.html):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {path.absolute().parent}", hint="Make it, or name another file for the report.")

    def tell(point: PointResult) -> None:
        if ranged:
            context.say(point_line(point))

    with DrillBench() as bench, history_of(context, options.name) as opener:
        drill = Drill(options.name, opener, bench, checks, timeout_s=options.timeout, tell=tell)
        report = _look(context, drill, opener, options, requested_s)
        if opener.note:
            context.say(f"{options.name}: {opener.note}")
    _write(options, report)
    context.answer(facts(report), text(report))
    return 0 if report.passed else 1


def _look(context: Context, drill: Drill, opener: Opener, options: argparse.Namespace, requested_s: float) -> DrillReport:
    """Look at the points that were asked for."""
    from recovery.candidates import Candidates
    from recovery.drill import Candidate
    from recovery.drill_timeline import labels, spans
    from recovery.point import AtPosition, parse_point
    from recovery.report import DrillReport
    from recovery.timeline import flushes, timeline
    from stream.errors import RecoveryError

    began_ns, began_s, answer = time.time_ns(), time.monotonic(), None
    if not (options.every_flush or options.bisect):
        wanted = parse_point(options.at or "latest")
        mode, asked, points = "point", str(wanted), [drill.at(wanted, requested_s)]
        shown = timeline(opener.planner(), *_around(opener, points[0].position))
    else:
        first, last = _range(opener, options)
        after = _before(first)
        asked, shown = f"{first} to {last}", timeline(opener.planner(), after, last)
        if options.bisect:
            mode, candidates = "bisect", Candidates(opener.planner(), after, last)
            context.say(f"{options.name}: {len(candidates)} points from {first} to {last}")
            answer, points = drill.bisect(candidates)
        else:
            mode, flushed = "every-flush", list(flushes(opener.planner(), after, last))
            context.say(f"{options.name}: {len(flushed)} flushes from {first} to {last}")
            points = drill.each(Candidate(AtPosition(one), one) for one in flushed)
        if not points:
            raise RecoveryError(f"There is no point to look at from {first} to {last}", hint="See `hostoffload points`.")
    seconds = time.monotonic() - began_s
    drawn = spans(shown), labels(shown)
    return DrillReport(options.name, mode, asked, began_ns, seconds, tuple(points), answer, *drawn, tuple(drill.problems))


def _range(opener: Opener, options: argparse.Namespace) -> tuple[Position, Position]:
    """Return the first and the last point of the range. Raises RecoveryError, ConfigError."""
    from recovery.point import parse_point
    from recovery.timeline import timeline
    from stream.errors import ConfigError, RecoveryError

    last = opener.plan(parse_point(options.end or "latest")).position
    if options.start:
        first = opener.plan(parse_point(options.start)).position
    else:
        oldest = timeline(opener.planner()).first
        if oldest is None:
            raise RecoveryError(f"{options.name} has no recovery point", hint="See `hostoffload points`.")
        first = oldest.position
    if last < first:
        raise ConfigError(f"The range ends at {last}, before it begins at {first}", hint="Name the earlier point by --from.")
    return first, last


def _around(opener: Opener, position: Position) -> tuple[Position, Position]:
    """Return the range of the history that is drawn around a point."""
    names = opener.planner().reach.written
    index = bisect_left(names, position, key=attrgetter("last"))
    low, high = names[max(0, index - DRAWN_SEGMENTS) : index + 1], names[index : index + DRAWN_SEGMENTS]
    after = _before(low[0].first) if low else _before(position)
    return after, max(high[-1].last if high else position, position)


def _before(position: Position) -> Position:
    from stream.position import Position as Place

    return Place(position.epoch, position.sequence - 1)


def _write(options: argparse.Namespace, report: DrillReport) -> None:
    """Write the reports that were asked for as files."""
    from recovery.report_html import html
    from recovery.report_junit import junit

    if options.junit is not None:
        options.junit.write_bytes(junit(report))
    if options.html is not None:
        options.html.write_bytes(html(report).encode("utf-8", "replace"))


def _process_began_s() -> float:
    """Return when this command was started, on the monotonic clock: what it took to load counts."""
    from hostoffload.process import ProcessId

    found = ProcessId.of(os.getpid())
    age_s = 0.0 if found is None else max(0.0, time.time() - found.started_at)
    return time.monotonic() - age_s
