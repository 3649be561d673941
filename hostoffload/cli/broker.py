"""`broker start|stop|status`: a real Apache Kafka for this machine, alone or under the supervisor."""

from __future__ import annotations

import argparse
import signal
from dataclasses import asdict

from hostoffload import layout
from hostoffload.cli.up import broker_options, chosen_broker
from hostoffload.context import Context
from hostoffload.process import ProcessHandle
from hostoffload.state_lock import ROLE_ALL, StateLock

START_S_MAX = 120.0
STOP_S = 20.0


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    broker = commands.add_parser("broker", help="a Kafka for this machine", description="A real Apache Kafka for this machine.")
    actions = broker.add_subparsers(metavar="ACTION", required=True)
    start = actions.add_parser(
        "start",
        help="start it and return when it is ready",
        description="Start the broker and return when it is ready: a named one, else in Docker, else with Java and Maven's jars.",
    )
    broker_options(start)
    start.set_defaults(run=_start)
    stop = actions.add_parser(
        "stop", help="end it, keep its data", description="End the local broker and keep its data. `broker start` or `up` starts it again."
    )
    stop.set_defaults(run=_stop)
    status = actions.add_parser(
        "status", help="tell whether it answers", description="Tell which broker is used and whether it answers; exit 1 if it does not."
    )
    status.set_defaults(run=_status)


def _start(context: Context, options: argparse.Namespace) -> int:
    config = context.config()
    layout.make(context.state_dir)
    broker = chosen_broker(context, config, options)
    context.say(f"starting broker: {broker.kind}, {broker.bootstrap}")
    _hold_file(context).unlink(missing_ok=True)
    supervisor = _supervisor(context)
    if supervisor is None or broker.kind == "external":
        broker.start(START_S_MAX)
    else:
        supervisor.signal(signal.SIGUSR1)
        supervisor.close()
        broker.wait_ready(START_S_MAX)
    context.answer(asdict(broker.status()), broker.bootstrap)
    return 0


def _stop(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.broker import recorded

    broker = recorded(context.state_dir, say=context.say)
    if broker is None or broker.kind == "external":
        context.say("no broker was started here")
        return 0
    supervisor = _supervisor(context)
    if supervisor is not None:
        supervisor.close()
        _hold_file(context).touch()
    broker.stop(STOP_S)
    context.say("the broker has ended")
    return 0


def _status(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.broker import current

    found = current(context.state_dir, context.config().kafka)
    if found is None:
        context.answer({"kind": None, "bootstrap": None, "pid": None, "ready": False}, "no broker was chosen here")
        return 1
    place = f"pid {found.pid}" if found.pid is not None else "elsewhere" if found.kind == "external" else "not running"
    context.answer(asdict(found), f"{found.kind} {found.bootstrap} {place}, {'ready' if found.ready else 'does not answer'}")
    return 0 if found.ready else 1


def _hold_file(context: Context):
    """Return the file that keeps the supervisor from starting the broker again."""
    return layout.run_dir(context.state_dir) / "broker.held"


def _supervisor(context: Context) -> ProcessHandle | None:
    """Return the supervisor that looks after the broker, None if none runs."""
    holder = StateLock(context.state_dir).holder()
    return ProcessHandle.open(holder.process) if holder is not None and holder.role == ROLE_ALL else None
