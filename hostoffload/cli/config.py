"""`config check`: what is in force, secrets masked."""

from __future__ import annotations

import argparse
import json
from typing import Any

from hostoffload.context import Context
from hostoffload.listeners import parse_listen
from stream import security
from stream.config import describe


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parsers."""
    config = commands.add_parser("config", help="the configuration", description="The configuration.")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="check it and print what is in force",
        description="Check file and environment, and print what is in force, secrets masked.",
    )
    check.set_defaults(run=_check)


def _check(context: Context, options: argparse.Namespace) -> int:
    from agent.listener_tls import listener_tls
    from history.vault import load_keys

    config = context.config()
    parse_listen(config.agent.listen)
    security.check(config.kafka)
    listener_tls(config.agent)
    load_keys(config.history)
    shown = describe(config)
    source = context.config_file()
    context.say(f"config: {source if source is not None else 'no file, defaults and environment only'}")
    context.answer(shown, "\n\n".join(_section(name, keys) for name, keys in shown.items()))
    return 0


def _section(name: str, keys: dict[str, Any]) -> str:
    """Return a section as TOML (a JSON string, number or boolean is one in TOML too)."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
