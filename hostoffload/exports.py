"""The exports of a state folder: what was asked for, and what runs of it.

    exports/<id>.json          what was asked for; the id is the volume's name and a number
    exports/<id>.run.json      the process that serves it, written once clients can connect

A declaration with `detached` is the supervisor's to run until it is removed; others end with the command that made them. A point that was
asked for by time or as `latest` is written down as a position when it is opened first, so that an export that is started again shows the
same bytes. Files are replaced atomically; one that is damaged is passed over.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hostoffload import layout
from hostoffload.process import ProcessId
from stream.errors import ConfigError

EXPORTS_MAX = 1000
OVERLAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RUN = ".run.json"


@dataclass(frozen=True, slots=True)
class Declared:
    """What was asked for: `at` as it was written, relative times made absolute; `position` once it is known."""

    id: str
    volume: str
    at: str
    position: str | None
    writable: bool
    overlay: str | None
    detached: bool

    @property
    def point(self) -> str:
        """Return the point to open: the position, if it was opened before."""
        return self.position or self.at


@dataclass(frozen=True, slots=True)
class Running:
    """An export that serves, or did until its process died."""

    declared: Declared
    uri: str
    position: str
    capture_time_ns: int
    process: ProcessId
    since: float

    def facts(self) -> dict[str, Any]:
        """Return what `export list --json` shows."""
        one = self.declared
        told = {"id": one.id, "volume": one.volume, "uri": self.uri, "position": self.position, "capture_time_ns": self.capture_time_ns}
        return told | {
            "writable": one.writable,
            "overlay": one.overlay,
            "detached": one.detached,
            "pid": self.process.pid if self.process.alive() else None,
            "since": self.since,
        }


def declare(state_dir: Path, wanted: Declared) -> Declared:
    """Write down a new export under an id that nobody has; return it with the id. Raises ConfigError when there are too many."""
    folder = layout.exports_dir(state_dir)
    listed(state_dir)  # ids of the dead are free again
    for number in range(1, EXPORTS_MAX + 1):
        one = replace(wanted, id=f"{wanted.volume}-{number}")
        if (folder / f"{one.id}{_RUN}").exists():
            continue  # it was withdrawn, and has not ended yet
        new = folder / f".{one.id}.{os.getpid()}.new"
        new.write_text(json.dumps(asdict(one)), encoding="utf-8")
        try:
            os.link(new, folder / f"{one.id}.json")
            return one
        except FileExistsError:
            continue
        finally:
            new.unlink()
    raise ConfigError(f"{wanted.volume} has {EXPORTS_MAX} exports already", hint="hostoffload export stop ID")


def find(state_dir: Path, export: str) -> Declared | None:
    """Return what was asked for under an id, None if there is none."""
    return _declared(layout.exports_dir(state_dir) / f"{export}.json")


def declared(state_dir: Path) -> list[Declared]:
    """Return the exports that the supervisor is to run, in order."""
    return [one for one in _all(state_dir) if one.detached]


def settle(state_dir: Path, one: Declared, position: str) -> Declared:
    """Write down which position an export was opened at; nothing happens if it was removed meanwhile."""
    settled = replace(one, position=position)
    path = layout.exports_dir(state_dir) / f"{one.id}.json"
    if path.exists():
        _write(path, asdict(settled))
    return settled


def tell_running(state_dir: Path, one: Declared, uri: str, position: str, capture_time_ns: int, since: float) -> None:
    """Say that this process serves an export now."""
    identity = ProcessId.of(os.getpid())
    assert identity is not None
    told = {"uri": uri, "position": position, "capture_time_ns": capture_time_ns, "process": asdict(identity), "since": since}
    _write(layout.exports_dir(state_dir) / f"{one.id}{_RUN}", told)


def running(state_dir: Path, export: str) -> Running | None:
    """Return what serves an export, None if nothing has yet."""
    one = find(state_dir, export)
    told = _json(layout.exports_dir(state_dir) / f"{export}{_RUN}")
    try:
        if one is None or told is None:
            return None
        return Running(one, told["uri"], told["position"], told["capture_time_ns"], ProcessId(**told["process"]), told["since"])
    except (KeyError, TypeError, ValueError):
        return None


def listed(state_dir: Path) -> list[Running]:
    """Return the exports that serve, or will again; what a killed command left behind is removed."""
    found = []
    for one in _all(state_dir):
        serving = running(state_dir, one.id)
        if serving is None:
            continue
        if one.detached or serving.process.alive():
            found.append(serving)
        else:
            forget(state_dir, one.id)
    return found


def withdraw(state_dir: Path, export: str) -> None:
    """Remove what was asked for: the supervisor ends it. Its id is free once it is forgotten."""
    (layout.exports_dir(state_dir) / f"{export}.json").unlink(missing_ok=True)


def forget(state_dir: Path, export: str) -> None:
    """Remove all that is said of an export; a named overlay stays."""
    for suffix in (".json", _RUN):
        (layout.exports_dir(state_dir) / f"{export}{suffix}").unlink(missing_ok=True)
    layout.export_socket(state_dir, export).unlink(missing_ok=True)


def forget_declared(state_dir: Path) -> None:
    """Remove all detached exports: nobody runs them any more."""
    for one in declared(state_dir):
        forget(state_dir, one.id)


def check_overlay_name(name: str) -> str:
    """Return the name if an overlay may have it. Raises ConfigError."""
    if not OVERLAY_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of an overlay", hint="Use letters, digits, dots, dashes and underscores, at most 64.")
    return name


def _all(state_dir: Path) -> Iterator[Declared]:
    try:
        names = sorted(os.listdir(layout.exports_dir(state_dir)))
    except OSError:
        return
    for name in names:
        if name.endswith(".json") and not name.endswith(_RUN) and not name.startswith("."):
            one = _declared(layout.exports_dir(state_dir) / name)
            if one is not None:
                yield one


def _declared(path: Path) -> Declared | None:
    told = _json(path)
    try:
        return None if told is None else Declared(**told)
    except TypeError:
        return None


def _write(path: Path, told: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(json.dumps(told), encoding="utf-8")
    os.replace(new, path)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
