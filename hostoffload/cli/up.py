"""`up`: all in one on this machine, supervised; returns when it is ready."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from hostoffload import layout, local_state, readiness
from hostoffload.cli.supervise import run_all
from hostoffload.context import Context
from hostoffload.listeners import parse_listen
from hostoffload.metrics import address_of
from hostoffload.process import ProcessHandle
from hostoffload.state_lock import ROLE_ALL, Holder, StateLock
from stream.config import Config
from stream.errors import ConfigError, RetryError
from stream.log import configure

READY_S_MAX = 120.0
EXTERNAL_ANSWER_S = 10.0
OTHER_COMMAND_S = 180.0
SUPERVISOR_START_S = 5.0
BROKER_ANSWER_S = 1.0
POLL_S = 0.05


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    up = commands.add_parser(
        "up",
        help="start everything on this machine and return when it is ready",
        description="Start broker (if none is named), CX, target and agent on this machine, supervised, and return when all is ready. "
        "On a running system it starts what is missing.",
    )
    broker_options(up)
    up.add_argument("--foreground", action="store_true", help="stay in the foreground until SIGTERM, for systemd")
    up.add_argument("--timeout", metavar="S", type=float, default=READY_S_MAX, help="give up waiting after this (default %(default).0f s)")
    up.set_defaults(run=_run)


def broker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which broker is used."""
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="use this Kafka (KAFKA_BOOTSTRAP)")
    parser.add_argument("--broker", choices=("docker", "jars"), help="start a local Kafka this way")


def chosen_broker(context: Context, config: Config, options: argparse.Namespace):
    """Decide which broker this state folder uses. Raises ConfigError for contradicting wishes."""
    from hostoffload.broker import choose

    named = config.kafka.bootstrap
    if options.bootstrap and named and options.bootstrap != named:
        raise ConfigError(
            f"--bootstrap is {options.bootstrap}, and the config's kafka.bootstrap is {named}", hint="Leave out one, or make them agree."
        )
    bootstrap = options.bootstrap or named or None
    return choose(context.state_dir, bootstrap=bootstrap, force=options.broker, say=context.say, client=config.kafka)


def _run(context: Context, options: argparse.Namespace) -> int:
    config = context.config()
    parse_listen(config.agent.listen)
    address_of(config, "up")
    layout.make(context.state_dir)
    began_s = time.monotonic()
    with command_lock(context.state_dir):  # let go of before staying in the foreground, so that `down` can work
        release_holds(context.state_dir)
        holder = StateLock(context.state_dir).holder()
        if holder is None:
            _choose_and_prepare(context, config, options)
        else:
            _check_same_broker(context, config, options)
            _wake(holder, options)
        if not options.foreground:
            if holder is None:
                _start_supervisor(context)
            _wait_until_ready(context, began_s + options.timeout)
    if options.foreground:
        return _stay(context, config)
    context.say(f"ready after {time.monotonic() - began_s:.1f} s")
    _tell(context)
    return 0


@contextlib.contextmanager
def command_lock(state_dir: Path) -> Iterator[None]:
    """Let one `up` or `down` at a time work on a state folder."""
    from hostoffload.broker.folder import file_lock

    with file_lock(layout.run_dir(state_dir) / "up.lock", OTHER_COMMAND_S, "Another `up` or `down` is at work on this state folder"):
        yield


def release_holds(state_dir: Path) -> None:
    """Let the supervisor start again what was held back by `broker stop`."""
    for held in layout.run_dir(state_dir).glob("*.held"):
        held.unlink(missing_ok=True)


def _choose_and_prepare(context: Context, config: Config, options: argparse.Namespace) -> None:
    """Have a broker that can be started; a named one must answer before anything is begun, but not before a known host boots."""
    broker = chosen_broker(context, config, options)
    context.say(f"broker: {broker.kind}, {broker.bootstrap}")
    if broker.kind == "external" and not layout.declared_file(context.state_dir).exists():
        broker.wait_ready(EXTERNAL_ANSWER_S)
    broker.prepare()


def _check_same_broker(context: Context, config: Config, options: argparse.Namespace) -> None:
    """Refuse a wish for another broker than the one that the running services use."""
    from hostoffload.broker import recorded

    used = recorded(context.state_dir, say=context.say)
    if used is not None and (options.bootstrap or options.broker):
        wanted = chosen_broker(context, config, options)
        if (wanted.kind, wanted.bootstrap) != (used.kind, used.bootstrap):
            raise ConfigError(f"The services run with the broker {used.kind} {used.bootstrap}", hint="End them first: hostoffload down")


def _stay(context: Context, config: Config) -> int:
    configure(config.log, "supervisor")
    return run_all(context, config)


def _start_supervisor(context: Context) -> None:
    """Start the supervisor in the background, with none of our files open."""
    from hostoffload.services import command, error_file

    error_file(context.state_dir, "supervisor").unlink(missing_ok=True)
    with (layout.log_dir(context.state_dir) / "supervisor.log").open("ab") as log:
        launched = subprocess.Popen(
            command(context, ["supervise"]), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    launched.wait()


def _wake(holder: Holder, options: argparse.Namespace) -> None:
    """Have a running supervisor start at once what is missing."""
    if holder.role != ROLE_ALL:
        raise RetryError(
            f"`agent run` (process {holder.process.pid}) uses this state folder", hint="Stop it first, or use another --state."
        )
    if options.foreground:
        raise RetryError(f"The services run already, under process {holder.process.pid}", hint="Stop them first: hostoffload down")
    handle = ProcessHandle.open(holder.process)
    if handle is not None:
        handle.signal(signal.SIGUSR1)
        handle.close()


def _wait_until_ready(context: Context, deadline_s: float) -> None:
    began_s = time.monotonic()
    said: list[str] = []
    restarts: dict[str, int] = {}
    while True:
        local = local_state.read(context.state_dir)
        lacking = readiness.lacking(context.state_dir, local)
        if not lacking:
            if _broker_ready(context, deadline_s):
                return
            continue
        failure = readiness.failure(context.state_dir, local, restarts)
        if failure is not None:
            raise failure
        if local.supervisor is None and time.monotonic() - began_s > SUPERVISOR_START_S and StateLock(context.state_dir).holder() is None:
            raise RetryError("The supervisor ended", hint=f"Read {layout.log_dir(context.state_dir)}/supervisor.log.")
        if time.monotonic() >= deadline_s:
            raise RetryError(
                f"Not ready in time: {', '.join(lacking)}",
                hint=f"It goes on starting; ask `hostoffload status`, and read {layout.log_dir(context.state_dir)}.",
            )
        if lacking != said:
            said = lacking
            context.say(f"waiting for {', '.join(lacking)}")
        time.sleep(POLL_S)


def _broker_ready(context: Context, deadline_s: float) -> bool:
    """Wait until the broker serves requests; tell whether there was nothing to wait for: else what depends on it is looked at again."""
    from hostoffload.broker import recorded

    broker = recorded(context.state_dir, say=context.say, client=context.config().kafka)
    assert broker is not None
    began_s = time.monotonic()
    broker.wait_ready(max(1.0, deadline_s - began_s))
    return time.monotonic() - began_s < BROKER_ANSWER_S


def _tell(context: Context) -> None:
    from hostoffload.cli.status import gather

    facts = gather(context)
    context.answer({"state": str(context.state_dir), "broker": facts["broker"], "processes": facts["processes"]}, "")
