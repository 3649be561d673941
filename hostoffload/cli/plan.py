"""`plan PATH`, `plan --trace FILE`: what protecting a workload would need, and whether the config in force suffices."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostoffload.context import Context
from stream.config import Config
from stream.errors import ConfigError

if TYPE_CHECKING:
    from hostoffload.capacity.trace import Trace
    from hostoffload.capacity.workload import Workload

WATCH_S = 60
_TIMES_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    plan = commands.add_parser(
        "plan",
        help="what protecting a volume would need, from a trace or a live watch",
        description="Watch a volume, or read a trace of one, and say what protecting it would need: bandwidth, Kafka's disk, the store, "
        "the buffer for an outage; and whether the config in force suffices. A block device is watched by its counters; a file, or a "
        "device with --serve, is served over NBD meanwhile and its writes are counted. Needs no Kafka. Exit 1 if something is known "
        "not to suffice.",
    )
    plan.add_argument("path", metavar="PATH", nargs="?", help="block device or file to watch")
    plan.add_argument("--trace", metavar="FILE", help="read the text of blkparse or iostat -x, or snapshots of /proc/diskstats")
    plan.add_argument("--for", dest="seconds", metavar="TIME", type=_watched, default=WATCH_S, help="watch for so long (default: 60s)")
    plan.add_argument("--serve", action="store_true", help="serve a block device over NBD too, instead of reading its counters")
    plan.add_argument("--socket", metavar="PATH", help="serve at this unix socket (default: one in a folder of its own)")
    plan.add_argument("--outage", metavar="TIME", type=_seconds, help="an outage of Kafka that the buffer is to bridge: 60s, 5m, 1h")
    plan.add_argument("--device", metavar="NAME", help="which device of a trace that has several")
    plan.add_argument("--interval", metavar="TIME", type=_seconds, help="time between two reports of a trace that does not tell it")
    plan.add_argument("--ratio", metavar="N", type=_ratio, help="how many times smaller the data compresses, where it can't be seen")
    plan.add_argument("--size", metavar="BYTES", type=_bytes, help="size of the traced volume; K, M, G, T are powers of 1024")
    plan.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.capacity.plan import make_plan, windows_s
    from hostoffload.cli.plan_view import view

    if (options.path is None) == (options.trace is None):
        raise ConfigError("What is to be planned for?", hint="hostoffload plan PATH, or hostoffload plan --trace FILE")
    config = context.config()
    trace = None
    if options.trace is not None:
        trace = _read(context, options, windows_s(config))
        workload = trace.workload
    else:
        workload = _watch(context, options, config)
    workload = replace(
        workload,
        ratio=workload.ratio or options.ratio,
        fold_ratio=workload.fold_ratio or options.ratio,
        size_bytes=workload.size_bytes or options.size,
    )
    plan = make_plan(workload, config, options.outage)
    context.answer(plan.facts() | {"trace": _facts(trace)}, view(plan, config))
    return 0 if plan.suffices else 1


def _read(context: Context, options: argparse.Namespace, windows: tuple[int, ...]) -> Trace:
    """Read a trace; say its form and its bad lines. Raises ConfigError."""
    from hostoffload.capacity.trace import Wanted, read_trace

    try:
        with open(options.trace, encoding="utf-8", errors="replace") as lines:
            trace = read_trace(lines, options.trace, Wanted(options.device, options.interval, windows))
    except OSError as error:
        raise ConfigError(f"{options.trace} can't be read: {error.strerror}", hint="Name a file by --trace.") from error
    context.say(f"{options.trace}: {trace.form}, {trace.lines} lines")
    for note in trace.notes:
        context.say(f"note: {note}")
    if trace.bad_lines:
        context.say(f"note: {trace.bad_lines} of {trace.lines} lines can't be read and are left out")
        for bad in trace.bad:
            context.say(f"  line {bad.number}: {bad.why}")
    return trace


def _facts(trace: Trace | None) -> dict[str, Any] | None:
    if trace is None:
        return None
    named = [{"line": bad.number, "why": bad.why} for bad in trace.bad]
    return {"form": trace.form, "lines": trace.lines, "bad_lines": trace.bad_lines, "bad": named, "notes": list(trace.notes)}


def _watch(context: Context, options: argparse.Namespace, config: Config) -> Workload:
    """Watch a live volume. Raises ConfigError."""
    path = options.path
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ConfigError(f"{path} can't be used: {error.strerror}", hint="Name a block device or a regular file.") from error
    with _interruptible() as stop:
        if not stat.S_ISBLK(found.st_mode) or options.serve:
            return _serve(context, options, config, stop)
        from hostoffload.capacity.watch import watch_counters

        context.say(f"watching the counters of {path} for {options.seconds} s; interrupt to end it sooner")
        return watch_counters((os.major(found.st_rdev), os.minor(found.st_rdev)), options.seconds, stop, size_bytes=_size(path))


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set: a watch that is ended plans for what it saw."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(context: Context, options: argparse.Namespace, config: Config, stop: threading.Event) -> Workload:
    """Serve the volume while its writes are counted; nobody else may serve it meanwhile. Raises ConfigError."""
    from agent.source import Source
    from hostoffload.capacity.pass_through import PassThrough
    from hostoffload.capacity.plan import windows_s
    from nbd.exports import ExportTable
    from nbd.listen import listen_unix
    from nbd.server import Server
    from nbd.uri import format_uri

    with contextlib.ExitStack() as stack:
        source = Source(options.path)
        stack.callback(source.close)
        device = PassThrough(options.path, windows_s(config), (config.cx.codec, config.history.codec))
        stack.callback(device.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostoffload-plan-"))
        path = Path(options.socket or Path(folder) / "nbd.sock").absolute()
        listener = stack.enter_context(listen_unix(path))
        stack.callback(path.unlink, missing_ok=True)
        server = Server(ExportTable({"": device}), [listener])
        server.start()
        stack.callback(server.stop)
        context.say(f"serving {options.path} for {options.seconds} s; interrupt to end it sooner; use it at:")
        context.say(format_uri("", str(path)))
        return device.watch(f"NBD pass-through of {options.path}", options.seconds, stop)


def _size(path: str) -> int | None:
    """Return the size of a block device, None if this user may not open it."""
    from nbd.blockfile import BlockFile

    try:
        file = BlockFile(path, read_only=True)
    except OSError:
        return None
    try:
        return file.measure()
    finally:
        file.close()


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)(s|m|min|h|d)?", text)
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 60s, 5m, 1h or 1d, at least a second")
    return int(match[1]) * _TIMES_S[match[2] or ""]


def _watched(text: str) -> int:
    from hostoffload.capacity.events import SECONDS_MAX

    if (seconds := _seconds(text)) > SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than {SECONDS_MAX // 86_400} days")
    return seconds


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper().removesuffix("IB"))
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: for example 100G")
    return int(match[1]) * _BYTES[match[2]]


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no ratio: a number from 1 on, for example 2.5")
    return value
