"""`target run`: the target in the foreground: applies the journal to the replicas."""

from __future__ import annotations

import argparse
from dataclasses import replace

from hostoffload.cli.service import run_service
from hostoffload.context import Context
from hostoffload.services import check_target_name
from stream.config import Config


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    target = commands.add_parser("target", help="the service that keeps the replicas", description="The target service.")
    actions = target.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser(
        "run", help="apply the journal in the foreground", description="Apply the journal to the replicas of this target until SIGTERM."
    )
    run.add_argument("--name", metavar="NAME", help="run a further target of that name beside the state folder's own (target.name)")
    run.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from cx_consumers import target
    from hostoffload import layout

    own = context.config().target.name
    further = "" if options.name in (None, own) else check_target_name(options.name)

    def body(config: Config) -> int:
        named = replace(config, target=replace(config.target, name=further or own))
        return target.run(named, context.state_dir, layout.target_dir(context.state_dir, further))

    return run_service(context, f"target-{further}" if further else "target", body, metrics="target")
