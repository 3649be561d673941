"""`check [NAME]`: everything that the store says, derived again from its bytes."""

from __future__ import annotations

import argparse
from typing import Any

from hostoffload import layout
from hostoffload.cli.progress import Progress
from hostoffload.context import Context
from stream.errors import ConfigError


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    check = commands.add_parser(
        "check",
        help="prove every byte of the history in the store",
        description="Read everything that the store holds of one volume, or of all, and derive every digest, chain, index and name again. "
        "What is wrong is named, with the file and the bytes of the volume that it concerns; then the exit code is 1.",
    )
    check.add_argument("name", metavar="NAME", nargs="?", help="the volume (default: all that the store has)")
    check.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from history.checker import Checked, check_volume
    from history.vault import open_existing_vault

    config = context.config()
    url = config.cx.store_url or str(layout.store_dir(context.state_dir))
    store = open_existing_vault(url, config.history)
    if store is None:
        raise ConfigError(f"There is no store at {url}", hint="Segments are stored there when the first volume is protected.")
    names = sorted({one.name.partition("/")[0] for one in store.list()})
    if options.name is not None and options.name not in names:
        raise ConfigError(f"The store has no volume {options.name!r}", hint=f"Volumes there: {', '.join(names) or 'none'}.")
    volumes: list[dict[str, Any]] = []
    for name in names if options.name is None else [options.name]:
        checked, problems = Checked(), []
        with Progress(context, name) as progress:
            for finding in check_volume(store, name, checked, lambda share, show=progress.show: show("checked", 100.0 * share)):
                problems.append(finding)
                context.say(f"{name}: {finding}")
        levels = {f"L{level}": count for level, count in sorted(checked.levels.items())}
        told = {"volume": name, "segments": checked.segments, "bytes": checked.size_bytes, "levels": levels}
        volumes.append(told | {"problems": [finding.facts() for finding in problems]})
    wrong = sum(len(volume["problems"]) for volume in volumes)
    context.answer({"store": store.url, "good": not wrong, "volumes": volumes}, "\n".join(map(_line, volumes)))
    return 1 if wrong else 0


def _line(volume: dict[str, Any]) -> str:
    count = len(volume["problems"])
    verdict = "nothing is wrong" if not count else "1 thing is wrong" if count == 1 else f"{count} things are wrong"
    return f"{volume['volume']}: {volume['segments']} segments, {volume['bytes'] / 1e6:.1f} MB checked, {verdict}"
