"""`cx run`: one worker of the CX in the foreground: order, compress, persist."""

from __future__ import annotations

import argparse
import os

from hostoffload.cli.service import run_service
from hostoffload.context import Context
from stream.config import host_name


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    cx = commands.add_parser("cx", help="the service that orders, compresses and keeps history", description="The CX service.")
    actions = cx.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="one worker in the foreground",
        description="Run one CX worker in the foreground until SIGTERM. Workers with one broker share the volumes.",
    )
    run.add_argument("--worker", metavar="NAME", help="name of this worker (default: cx.worker, else host's name and process id)")
    run.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from cx_consumers import app

    return run_service(
        context,
        "cx",
        lambda config: app.run(config, context.state_dir, options.worker or config.cx.worker or f"{host_name()}-{os.getpid()}"),
        metrics="cx",
    )
