"""`demo`: the whole story on a real filesystem, in about a minute."""

from __future__ import annotations

import argparse

from hostoffload.cli.up import broker_options
from hostoffload.context import Context


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    demo = commands.add_parser(
        "demo",
        help="the whole story on a real filesystem, in about a minute",
        description="Make a filesystem, protect it, write to it, prove the replica equal. Uses a state folder of its own and removes it.",
    )
    broker_options(demo)
    demo.add_argument("--keep", action="store_true", help="keep the files and the state folder")
    demo.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.demo.story import tell

    facts = tell(options.bootstrap, options.broker, keep=options.keep)
    context.answer(
        facts, f"the replica is byte-equal and fsck-clean: {facts['captured_bytes'] >> 20} MiB captured, {facts['seconds']} s in all"
    )
    return 0
