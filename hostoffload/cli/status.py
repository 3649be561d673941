"""`status`: mode, positions, lags and processes, from the state folder alone; answers whatever is dead."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from hostoffload import layout, local_state
from hostoffload.context import Context
from hostoffload.listeners import parse_listen
from hostoffload.status import merge
from nbd.uri import format_uri
from stream.config import Config, host_name
from stream.errors import ConfigError

WATCH_INTERVAL_S = 0.5
ANY_ADDRESS = ("0.0.0.0", "::", "*")


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    status = commands.add_parser(
        "status",
        help="mode, positions, RPO lag, backlog, buffer; all processes",
        description="Show volumes, processes and broker as the state folder tells, within two seconds whatever is dead.",
    )
    status.add_argument("name", metavar="NAME", nargs="?", help="this volume alone")
    status.add_argument("--watch", action="store_true", help="go on showing it until interrupted")
    status.set_defaults(run=_run)


def gather(context: Context) -> dict[str, Any]:
    """Return the whole status as facts."""
    from hostoffload.broker import current

    config = context.config()
    return merge(
        local_state.read(context.state_dir),
        current(context.state_dir, config.kafka),
        now_ns=time.time_ns(),
        uri_of=lambda name: uri_of(context, config, name),
        buffer_bytes_max=config.agent.buffer_bytes_max,
    )


def uri_of(context: Context, config: Config, name: str) -> str:
    """Return the NBD URI of a volume's export: TCP if the agent listens there, else the unix socket."""
    tcp = parse_listen(config.agent.listen)
    if tcp is None:
        return format_uri(name, layout.nbd_socket(context.state_dir))
    host, port = tcp
    return format_uri(name, (host_name() if host in ANY_ADDRESS else host, port), tls=bool(config.agent.tls_certificate))


def _run(context: Context, options: argparse.Namespace) -> int:
    if options.watch:
        _watch(context, options.name)
        return 0
    facts = _selected(gather(context), options.name)
    if context.json:
        context.answer(facts, "")
    else:
        from rich.console import Console

        from hostoffload.cli.status_view import view

        console = Console(highlight=False, soft_wrap=True)
        console.print(view(facts, bars=console.is_terminal))
    return 0


def _selected(facts: dict[str, Any], name: str | None) -> dict[str, Any]:
    if name is None:
        return facts
    volumes = [one for one in facts["volumes"] if one["volume"] == name]
    if not volumes:
        known = ", ".join(one["volume"] for one in facts["volumes"]) or "none"
        raise ConfigError(f"There is no volume {name!r} here", hint=f"Volumes: {known}.")
    return facts | {"volumes": volumes}


def _watch(context: Context, name: str | None) -> None:
    """Show it again and again until interrupted: a live picture, or a line of JSON each time."""
    if context.json:
        while True:
            print(json.dumps(_selected(gather(context), name)), flush=True)
            time.sleep(WATCH_INTERVAL_S)
    from rich.console import Console
    from rich.live import Live

    from hostoffload.cli.status_view import view

    with Live(view(_selected(gather(context), name), bars=True), console=Console(highlight=False), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_INTERVAL_S)
            live.update(view(_selected(gather(context), name), bars=True), refresh=True)
