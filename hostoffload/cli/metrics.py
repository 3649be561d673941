"""`metrics`: what `up` starts to serve the metrics and health of all that it runs; not for people."""

from __future__ import annotations

import argparse
import signal
import threading

from hostoffload.cli.service import run_service
from hostoffload.context import Context
from stream.config import Config


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser, without a line in the help."""
    commands.add_parser("metrics").set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    return run_service(context, "metrics", _wait, uses_kafka=False, metrics="up")


def _wait(config: Config) -> int:
    """Wait until told to stop; the endpoint has threads of its own."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    return 0
