"""`points NAME`: where a volume can go back to, where not and why."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from hostoffload.context import Context
from stream.errors import ConfigError

if TYPE_CHECKING:
    from recovery.plan import Moment
    from recovery.timeline import Timeline

TABLE_CHARACTERS = 160


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    points = commands.add_parser(
        "points",
        help="where a volume can go back to, where not and why",
        description="Show the stretches in which every write is a recovery point, single points that are kept of older history, gaps with "
        "their reasons, bookmarks and verifications, from the store and from what only Kafka has yet. Exit 1 when there is no point.",
    )
    points.add_argument("name", metavar="NAME", help="the volume")
    points.add_argument("--from", dest="begin", metavar="POINT", help="nothing before this point")
    points.add_argument("--to", dest="end", metavar="POINT", help="nothing after this point")
    points.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.history_access import history_of
    from recovery.point import parse_point

    begin, end = (None if text is None else parse_point(text) for text in (options.begin, options.end))
    with history_of(context, options.name) as opener:
        if not opener.planner().reach.written and not opener.planner().reach.folds:
            raise ConfigError(f"Nothing is known of a volume {options.name!r}", hint=_known(context))
        after, through = opener.window(begin, end)
        found = opener.timeline(after, through)
        if opener.note is not None:
            context.say(f"note: {opener.note}")
        if context.json:
            context.answer(facts(found, opener.note), "")
        else:
            _draw(found)
    return 0 if found.latest is not None else 1


def facts(found: Timeline, note: str | None) -> dict[str, Any]:
    """Return a timeline as JSON shows it; positions and times are points that every command takes."""
    return {
        "volume": found.volume,
        "first": _moment(found.first),
        "latest": _moment(found.latest),
        "stretches": [
            {"first": _moment(one.first), "last": _moment(one.last), "records": one.records, "flushes": one.flushes}
            for one in found.stretches
        ],
        "fold_ends": [_moment(one.moment) | {"level": one.level} for one in found.fold_ends],
        "gaps": [
            {
                "reason": one.reason,
                "missing": one.missing,
                "after": str(one.after),
                "begun_at": _time(one.begun_at_ns),
                "until": None if one.until is None else str(one.until),
                "ended_at": _time(one.ended_at_ns),
            }
            for one in found.gaps
        ],
        "bookmarks": [_moment(one.moment) | {"label": one.label, "group": one.group, "offered": one.offered} for one in found.bookmarks],
        "rounds": [
            {"round": one.name, "first": _moment(one.first), "last": _moment(one.last), "chunks": one.chunks, "complete": one.complete}
            for one in found.rounds
        ],
        "damaged": found.damaged,
        "note": note,
    }


def _draw(found: Timeline) -> None:
    from rich.console import Console

    from hostoffload.cli.points_view import view

    terminal = Console(file=sys.stdout)
    width = terminal.width if terminal.is_terminal else TABLE_CHARACTERS
    Console(file=sys.stdout, highlight=False, soft_wrap=True, width=max(width, TABLE_CHARACTERS)).print(view(found, width))


def _moment(moment: Moment | None) -> Any:
    return None if moment is None else {"position": str(moment.position), "time": _time(moment.capture_time_ns)}


def _time(time_ns: int | None) -> str | None:
    from recovery.point import format_time

    return None if time_ns is None else format_time(time_ns)


def _known(context: Context) -> str:
    from hostoffload import local_state

    names = ", ".join(local_state.read(context.state_dir).volume_names())
    return f"Volumes: {names}." if names else "See `hostoffload volume list` and cx.store_url."
