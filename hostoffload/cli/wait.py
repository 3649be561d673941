"""`wait NAME --in-sync`: until the replica has all that was captured when the command was given."""

from __future__ import annotations

import argparse
import time

from hostoffload import local_state
from hostoffload.cli.progress import Progress
from hostoffload.context import Context
from hostoffload.in_sync import Verdict, judge
from stream.errors import ConfigError

POLL_S = 0.05


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    wait = commands.add_parser(
        "wait",
        help="wait until a replica is in sync",
        description="Wait until mode is DATA, nothing is owed, no gap is open, and the replica has applied all that was captured when the "
        "command was given. Exit 1 when the time runs out.",
    )
    wait.add_argument("name", metavar="NAME", help="the volume")
    wait.add_argument("--in-sync", action="store_true", required=True, help="the condition to wait for")
    wait.add_argument("--timeout", metavar="S", type=float, help="give up after this many seconds (default: never)")
    wait.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    asked_at_ns = time.time_ns()
    began_s = time.monotonic()
    names = local_state.read(context.state_dir).volume_names()
    if options.name not in names:
        raise ConfigError(f"There is no volume {options.name!r} here", hint=f"Volumes: {', '.join(names) or 'none'}.")
    goal: str | None = None
    with Progress(context, options.name) as progress:
        while True:
            verdict = judge(local_state.read(context.state_dir), options.name, asked_at_ns, goal)
            goal = verdict.goal
            if verdict.lacking is None or (options.timeout is not None and time.monotonic() - began_s >= options.timeout):
                break
            _show(progress, verdict)
            time.sleep(POLL_S)
    waited_s = round(time.monotonic() - began_s, 3)
    facts = {"volume": options.name, "in_sync": verdict.lacking is None, "position": goal, "waited_s": waited_s, "lacking": verdict.lacking}
    if verdict.lacking is not None:
        context.say(f"{options.name} is not in sync after {waited_s:.1f} s: {verdict.lacking}")
        context.answer(facts, "")
        return 1
    context.answer(facts, f"{options.name} is in sync at {goal}")
    return 0


def _show(progress: Progress, verdict: Verdict) -> None:
    eta = f", {verdict.eta_s:.0f} s to go" if verdict.eta_s is not None else ""
    told = f"{verdict.percent:.1f} %{eta}; {verdict.lacking}" if verdict.percent is not None else str(verdict.lacking)
    progress.show(told, verdict.percent)
