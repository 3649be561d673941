"""The command line: `hostoffload COMMAND`, one module here for each command or noun.

A module offers `add(commands)`, which adds its parsers with `set_defaults(run=function)`; `run(context, options)` returns the exit code.
Heavy imports stand inside the functions that need them, so that `--help` and `status` are quick. Everything that can go wrong is turned
into a sentence and an exit code here, in `main`: 0 done, 1 the answer is no, 2 wrong use or config, 3 can't be done now.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from hostoffload import layout
from hostoffload.context import Context
from stream.errors import HostoffloadError

COMMANDS = (
    "up",
    "down",
    "broker",
    "agent",
    "cx",
    "target",
    "volume",
    "group",
    "status",
    "wait",
    "verify",
    "bookmark",
    "points",
    "export",
    "restore",
    "replay",
    "drill",
    "check",
    "plan",
    "demo",
    "config",
    "acl",
    "supervise",
    "metrics",
)
WRONG_USE = 2
NOT_NOW = 3
ENDED_BY_SIGNAL = 128
_BEFORE_NOW = re.compile(r"-\d+(\.\d+)?(ms|s|m|h|d)?$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    logging.getLogger().addHandler(logging.NullHandler())  # a command speaks in sentences; services configure a log of their own
    try:
        options = parser(_named(sys.argv[1:] if arguments is None else arguments)).parse_args(arguments)
        context = replace(_context(options), own_process=arguments is None)
        try:
            return options.run(context, options)
        except HostoffloadError as error:
            return _refuse(context, error)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return ENDED_BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return ENDED_BY_SIGNAL + signal.SIGPIPE
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        return NOT_NOW


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or of one alone: importing all of them takes longer than most commands do."""
    top = _Parser(prog="hostoffload", description="Continuous data protection for block volumes, on Kafka.", parents=[_everywhere()])
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands", parser_class=_Command)
    for name in COMMANDS if command is None else (command,):
        import_module(f"hostoffload.cli.{name}").add(commands)
    return top


def _named(arguments: Sequence[str]) -> str | None:
    """Return the command that stands first in a command line, None where that is not plain to see: then all are looked at."""
    words = iter(arguments)
    for word in words:
        if word in ("--state", "--config"):
            next(words, None)
        elif word != "--json" and not word.startswith(("--state=", "--config=")):
            return word if word in COMMANDS else None
    return None


def _everywhere() -> argparse.ArgumentParser:
    """Return the options that stand before or after any command; the default of one must not undo the other."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--state", metavar="DIR", type=Path, help="local state folder (HOSTOFFLOAD_STATE)")
    options.add_argument(
        "--config", metavar="FILE", type=Path, help="config file (HOSTOFFLOAD_CONFIG; default: config.toml in the state folder)"
    )
    options.add_argument("--json", action="store_true", help="print facts as JSON")
    return options


def _context(options: argparse.Namespace) -> Context:
    named = os.environ.get("HOSTOFFLOAD_CONFIG")
    path = getattr(options, "config", Path(named) if named else None)
    state_dir = getattr(options, "state", None) or layout.default_state_dir()
    return Context(state_dir.absolute(), path, getattr(options, "json", False))


def _refuse(context: Context, error: HostoffloadError) -> int:
    """Say what is wrong and what to do; as JSON on stderr too, if JSON was asked for."""
    if context.json:
        facts = {key: str(value) for key, value in error.facts.items() if value is not None}
        print(json.dumps({"error": error.sentence, "hint": error.hint, "facts": facts}), file=sys.stderr)
    else:
        print(f"error: {error.sentence}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence and a hint."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message[:1].upper()}{message[1:]}", file=sys.stderr)
        print(f"hint: {self.prog} --help", file=sys.stderr)
        sys.exit(WRONG_USE)


class _Command(_Parser):
    """A parser of a command: it knows the options that stand everywhere."""

    def __init__(self, **settings) -> None:
        super().__init__(parents=[_everywhere()], **settings)
        self._negative_number_matcher = _BEFORE_NOW  # what looks like that is a value and no option: --at -30s


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"hostoffload {version('hostoffload')}")
        parser.exit()
