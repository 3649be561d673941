"""`supervise`: what `up` starts in the background; not for people."""

from __future__ import annotations

import argparse
import os

from hostoffload import layout
from hostoffload.cli.service import run_service
from hostoffload.context import Context
from hostoffload.listeners import Listeners, parse_listen
from hostoffload.state_lock import ROLE_ALL, StateLock
from stream.config import Config


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser, without a line in the help."""
    commands.add_parser("supervise").set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    if os.fork():  # the second fork: `up` has made the session, this process leads none and has no parent that waits for it
        os._exit(0)
    os.chdir(context.state_dir)
    return run_service(context, "supervisor", lambda config: run_all(context, config), uses_kafka=False)


def run_all(context: Context, config: Config) -> int:
    """Supervise everything on this state folder in this process until SIGTERM; its broker was chosen before."""
    from dataclasses import replace
    from functools import partial

    from hostoffload.broker import recorded
    from hostoffload.services import all_services, export_services
    from hostoffload.supervisor import Supervisor

    broker = recorded(context.state_dir, say=context.say, client=config.kafka)
    assert broker is not None
    config = replace(config, kafka=replace(config.kafka, bootstrap=broker.bootstrap))
    listeners = Listeners(layout.nbd_socket(context.state_dir), parse_listen(config.agent.listen))
    with StateLock(context.state_dir).held(ROLE_ALL):
        services = all_services(context, config, broker)
        more = partial(export_services, context)
        log_dir = layout.log_dir(context.state_dir)
        return Supervisor(context.state_dir, ROLE_ALL, services, listeners, log_dir=log_dir, more=more).run()
