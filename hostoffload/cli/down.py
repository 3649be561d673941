"""`down`: end all that `up` started, wait for it, keep all data."""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path

from hostoffload import exports, layout, supervisor_report
from hostoffload.cli.up import command_lock, release_holds
from hostoffload.context import Context
from hostoffload.process import PidFile, ProcessHandle
from hostoffload.state_lock import ROLE_ALL, StateLock
from stream.errors import RetryError

SUPERVISOR_STOP_S = 120.0
LEFTOVER_STOP_S = 20.0
KILL_WAIT_S = 10.0


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    down = commands.add_parser(
        "down",
        help="end all that `up` started, keep all data",
        description="End all that `up` started on this machine, wait until it has ended, and keep all data.",
    )
    down.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    if not layout.run_dir(context.state_dir).is_dir():
        context.say("nothing runs here")
        return 0
    with command_lock(context.state_dir):
        ended = _end_supervisor(context)
        ended += _end_leftovers(context)
        ended += _end_broker(context)
        _clear(context.state_dir)
        _give_back_memory(context)
    context.say("all has ended" if ended else "nothing runs here")
    return 0


def _end_supervisor(context: Context) -> int:
    """Have the supervisor stop its processes in order and end itself; return how many were ended here."""
    holder = StateLock(context.state_dir).holder()
    if holder is None:
        return 0
    if holder.role != ROLE_ALL:
        raise RetryError(
            f"`agent run` (process {holder.process.pid}) uses this state folder", hint="It was not started by `up`: stop it where it runs."
        )
    handle = ProcessHandle.open(holder.process)
    if handle is None:
        return 0
    context.say("stopping the services")
    handle.signal(signal.SIGCONT)
    handle.signal(signal.SIGTERM)
    if not handle.ended(SUPERVISOR_STOP_S):
        context.say("the supervisor does not end: ending it by force")
        handle.kill()
        handle.ended(KILL_WAIT_S)
    handle.close()
    return 1


def _end_leftovers(context: Context) -> int:
    """End what a killed supervisor left running, in the supervisor's order."""
    run_dir = layout.run_dir(context.state_dir)
    left = [found for path in run_dir.glob("*.json") if (found := PidFile.read(path)) is not None and found.kind != "broker"]
    count = 0
    for found in sorted(left, key=lambda one: one.rank):
        handle = ProcessHandle.open(found.process)
        if handle is not None:
            context.say(f"stopping {found.name}")
            _end(handle, found.name)
            count += 1
        (run_dir / f"{found.name}.json").unlink(missing_ok=True)
    return count


def _end(handle: ProcessHandle, name: str) -> None:
    handle.signal(signal.SIGCONT)
    handle.signal(signal.SIGTERM)
    if not handle.ended(LEFTOVER_STOP_S):
        handle.kill()
        if not handle.ended(KILL_WAIT_S):
            raise RetryError(f"The {name} process does not end, not even by SIGKILL", hint="Is its disk hanging?", pid=handle.id.pid)
    handle.close()


def _end_broker(context: Context) -> int:
    from hostoffload.broker import recorded

    broker = recorded(context.state_dir, say=context.say)
    if broker is None or broker.kind == "external" or broker.status().pid is None:
        return 0
    context.say("stopping the broker")
    broker.stop(LEFTOVER_STOP_S)
    return 1


def _give_back_memory(context: Context) -> None:
    """Remove what is left of the agent's shared memory that nobody needs any more.

    A volume that stopped clean needs its ring only to be served while Kafka is away: where the broker is ours, it is there first.
    """
    from agent.ring_folder import give_back
    from hostoffload.broker import recorded

    broker = recorded(context.state_dir, say=context.say)
    folder = layout.ring_dir(context.state_dir, context.config().agent.ring_dir)
    try:
        give_back(folder, context.state_dir, stopped=broker is not None and broker.kind != "external")
    except OSError as error:
        context.say(f"{folder} can't be tidied up: {error.strerror}")


def _clear(state_dir: Path) -> None:
    """Remove what only running processes mean something by."""
    release_holds(state_dir)
    exports.forget_declared(state_dir)
    for path in (layout.nbd_socket(state_dir), supervisor_report.path_of(state_dir), layout.run_dir(state_dir) / "broker.json"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
