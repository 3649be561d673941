"""`export NAME --at POINT`, `export list`, `export stop`: any point of a volume as a block device over NBD."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hostoffload import exports, layout
from hostoffload.context import Context
from hostoffload.exports import Declared
from stream.errors import ConfigError, HostoffloadError, RetryError

if TYPE_CHECKING:
    from recovery.opening import OpenedPoint

READY_S_MAX = 60.0
STOP_S_MAX = 15.0
POLL_S = 0.01
_log = logging.getLogger(__name__)


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser. Right behind `export`, `list` and `stop` are actions; a volume of such a name goes behind the options."""
    parser = commands.add_parser(
        "export",
        help="any point of a volume as a block device over NBD",
        description="Serve a volume as it was at a point, over NBD at a unix socket, until interrupted; the last line of stdout is the "
        "URI. Nothing that is done with it touches the volume. Other forms: `export list`, and `export stop ID...|--all`.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the volume")
    parser.add_argument("--at", metavar="POINT", help="latest, a bookmark, a position, a time, or -30s")
    parser.add_argument("--writable", action="store_true", help="let clients write; what they write goes into an overlay")
    parser.add_argument("--name", dest="overlay", metavar="OVERLAY", help="keep what is written under this name, over restarts")
    parser.add_argument("--detach", action="store_true", help="leave it to the supervisor of `up`, and return when it is ready")
    parser.add_argument("--declared", metavar="ID", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)
    _with_actions(parser, {"list": _list_parser(type(parser)), "stop": _stop_parser(type(parser))})


def _with_actions(parser: argparse.ArgumentParser, actions: dict[str, argparse.ArgumentParser]) -> None:
    """Let the parser hand over to another where its first argument says so: argparse can't have NAME and subcommands in one place."""
    plain = parser.parse_known_args

    def parse_known_args(args: list[str] | None = None, namespace: argparse.Namespace | None = None) -> Any:
        if args and args[0] in actions:
            return actions[args[0]].parse_known_args(args[1:], namespace)
        return plain(args, namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def _list_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(prog="hostoffload export list", description="List the exports of this state folder.")
    parser.set_defaults(run=_list)
    return parser


def _stop_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind(prog="hostoffload export stop", description="End exports; named overlays are kept. Exit 1 if there is no such export.")
    parser.add_argument("ids", metavar="ID", nargs="*", help="as `export list` shows it")
    parser.add_argument("--all", action="store_true", help="all exports of this state folder")
    parser.set_defaults(run=_stop)
    return parser


def _run(context: Context, options: argparse.Namespace) -> int:
    if options.declared is not None:
        return _serve_declared(context, options.declared)
    wanted = _wanted(context, options)
    layout.make(context.state_dir)
    if options.detach:
        return _detach(context, wanted)
    one = exports.declare(context.state_dir, wanted)
    try:
        _serve(context, one, say=partial(_say_error, context), ready=partial(_tell, context, one))
    finally:
        exports.forget(context.state_dir, one.id)
    return 0


def _wanted(context: Context, options: argparse.Namespace) -> Declared:
    """Return what the options ask for, relative times made absolute. Raises ConfigError."""
    from recovery.overlay import read_base
    from recovery.point import Ago, AtTime, parse_point
    from stream.topic_names import check_volume_name

    if options.name is None:
        raise ConfigError("Which volume?", hint="hostoffload export NAME --at POINT, or hostoffload export list")
    volume = check_volume_name(options.name)
    if options.overlay is not None:
        exports.check_overlay_name(options.overlay)
        if not options.writable:
            raise ConfigError("--name names an overlay, and there is none without --writable", hint="Say --writable too.")
    base = read_base(layout.overlay_dir(context.state_dir, volume, options.overlay)) if options.overlay is not None else None
    if options.at is None and base is None:
        raise ConfigError("Which point?", hint=f"Say --at latest, or choose one from: hostoffload points {volume}")
    at = str(base.position) if options.at is None and base is not None else options.at
    point = parse_point(at)
    if isinstance(point, Ago):
        at = str(AtTime(time.time_ns() - point.age_ns))
    return Declared("", volume, at, None, options.writable, options.overlay, options.detach)


def _serve(context: Context, one: Declared, *, say: Callable[[HostoffloadError], None], ready: Callable[[str], None]) -> None:
    """Open the point, serve it, and return when the process is told to end."""
    from recovery.export import Export, overlay_for
    from recovery.opening import open_point

    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: done.set())
    scratch = layout.exports_dir(context.state_dir)
    point = open_point(context.config_for_recovery(), one.volume, one.point, why=f"export {one.id}", scratch=scratch)
    try:
        folder = layout.overlay_dir(context.state_dir, one.volume, one.overlay) if one.overlay is not None else None
        overlay = overlay_for(point, folder, scratch) if one.writable else None
    except BaseException:
        point.close()
        raise
    with Export(point, layout.export_socket(context.state_dir, one.id), overlay, say) as export:
        export.start()
        if exports.find(context.state_dir, one.id) is None:
            return  # it was stopped before it was ready
        one = exports.settle(context.state_dir, one, str(point.position))
        exports.tell_running(context.state_dir, one, export.uri, str(point.position), point.capture_time_ns, time.time())
        _say_what(context, point)
        ready(export.uri)
        done.wait()


def _serve_declared(context: Context, export: str) -> int:
    """Serve what was left to the supervisor, with a log of its own."""
    from hostoffload.cli.service import run_service
    from stream.log import event

    def tell(error: HostoffloadError) -> None:
        event(_log, logging.ERROR, "export_error", sentence=error.sentence, hint=error.hint or None)

    def body(_: object) -> int:
        one = exports.find(context.state_dir, export)
        if one is None:
            return 0
        _serve(context, one, say=tell, ready=lambda uri: event(_log, logging.INFO, "export_ready", export=export, uri=uri))
        return 0

    return run_service(context, f"export-{export}", body, uses_kafka=False)


def _detach(context: Context, wanted: Declared) -> int:
    """Have the supervisor serve it; return when clients can connect. Raises what it ended by."""
    from hostoffload import local_state
    from hostoffload.services import error_file

    if local_state.supervisor(context.state_dir) is None:
        raise RetryError("No supervisor runs here to leave an export to", hint="Run `hostoffload up`, or leave out --detach.")
    one = exports.declare(context.state_dir, wanted)
    try:
        error_file(context.state_dir, f"export-{one.id}").unlink(missing_ok=True)
        _wake(context)
        found = _wait_ready(context, one)
    except BaseException:
        _end(context, one.id)
        raise
    _tell(context, one, found.uri)
    return 0


def _wait_ready(context: Context, one: Declared) -> exports.Running:
    from hostoffload.readiness import left_behind
    from hostoffload.services import error_file

    deadline_s = time.monotonic() + READY_S_MAX
    while (found := exports.running(context.state_dir, one.id)) is None:
        error = left_behind(error_file(context.state_dir, f"export-{one.id}"))
        if error is not None:
            raise error
        if time.monotonic() >= deadline_s:
            raise RetryError("The export is not ready in time", hint=f"Read {layout.log_dir(context.state_dir)}/export-{one.id}.log.")
        time.sleep(POLL_S)
    return found


def _wake(context: Context) -> None:
    """Have the supervisor look at its list now."""
    from hostoffload.process import ProcessHandle
    from hostoffload.state_lock import StateLock

    holder = StateLock(context.state_dir).holder()
    handle = ProcessHandle.open(holder.process) if holder is not None else None
    if handle is not None:
        handle.signal(signal.SIGUSR1)
        handle.close()


def _say_what(context: Context, point: OpenedPoint) -> None:
    if point.note is not None:
        context.say(f"note: {point.note}")
    context.say(f"{point.volume} as it was at {point.moment}")


def _say_error(context: Context, error: HostoffloadError) -> None:
    context.say(f"error: {error.sentence}")
    context.say(f"hint: {error.hint}")


def _tell(context: Context, one: Declared, uri: str) -> None:
    if not context.json:
        context.say(f"export {one.id} is ready")
    context.answer({"volume": one.volume, "uri": uri}, uri)


def _list(context: Context, options: argparse.Namespace) -> int:
    from recovery.point import format_time

    found = [one.facts() for one in exports.listed(context.state_dir)]
    lines = []
    for one in found:
        kind = f"writable ({one['overlay'] or 'unnamed'})" if one["writable"] else "read-only"
        state = f"pid {one['pid']}" if one["pid"] is not None else "being started again"
        lines.append(f"{one['id']}  {one['position']}  {format_time(one['capture_time_ns'])}  {kind}  {state}  {one['uri']}")
    context.answer({"exports": found}, "\n".join(lines))
    return 0


def _stop(context: Context, options: argparse.Namespace) -> int:
    if bool(options.ids) == options.all:
        raise ConfigError("Which exports?", hint="hostoffload export stop ID..., or --all; see `hostoffload export list`.")
    known = {one.declared.id for one in exports.listed(context.state_dir)}
    known |= {one.id for one in exports.declared(context.state_dir)}  # that are not ready yet, or never will be
    ids, stopped = sorted(known) if options.all else options.ids, []
    for export in ids:
        if export not in known and exports.find(context.state_dir, export) is None:
            context.say(f"There is no export {export}")
            continue
        _end(context, export)
        stopped.append(export)
        context.say(f"{export} has ended")
    context.answer({"stopped": stopped}, "")
    return 0 if stopped == ids else 1


def _end(context: Context, export: str) -> None:
    """End one export, whoever runs it, and wait until its process has ended."""
    from hostoffload.process import PidFile, ProcessHandle

    serving = exports.running(context.state_dir, export)
    supervised = PidFile.read(layout.run_dir(context.state_dir) / f"export-{export}.json")
    exports.withdraw(context.state_dir, export)
    _wake(context)
    processes = {one for one in (serving and serving.process, supervised and supervised.process) if one}
    for process in processes:
        handle = ProcessHandle.open(process)
        if handle is None:
            continue
        handle.signal(signal.SIGTERM)
        if not handle.ended(STOP_S_MAX):
            handle.kill()
            handle.ended(STOP_S_MAX)
        handle.close()
    exports.forget(context.state_dir, export)
