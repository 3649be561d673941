"""Bookmarks between publisher and capture: what is asked for, what became of it, and the file that tells it.

The publisher hands over what is asked in the file of the declared volumes (`agent.declared`); capture tells what became of it in
`<state>/agent/bookmarks.json`: `{"begun": {asked} or null, "outcomes": [{outcome}, ...]}`, the newest last. The file is replaced before
marks are taken and when they are; it survives both processes and a power cut, so that either is noticed. Pure but for `BookmarkFile`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agent.state_file import HOST_FILES

OUTCOMES_KEPT = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one mark in each of `volumes`, at one instant; not to be begun after `until_ns` on the wall clock."""

    id: str
    label: str
    group: str
    volumes: tuple[str, ...]
    until_ns: int


@dataclass(frozen=True, slots=True)
class TakenMark:
    """A mark that is in the ring: its position as text, and its capture time (0: not known)."""

    position: str
    capture_time_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: every volume has its mark and `error` is empty; or `error` says why not, and `marks` which have it all the
    same (none, unless the process died in the middle)."""

    asked: Asked
    marks: dict[str, TakenMark] = field(default_factory=dict)
    stopped_ms: float = 0.0
    error: str = ""


class BookmarkFile:
    """The file; capture alone writes it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "agent" / "bookmarks.json"
        self._seen: tuple[int, ...] | None = None
        self._told: tuple[Asked | None, list[Outcome]] = (None, [])

    def told(self) -> tuple[Asked | None, list[Outcome]]:
        """Return what `read` does; the file is read only when it changed since the last call."""
        try:
            found = self.path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            return None, []
        if seen != self._seen:
            self._seen, self._told = seen, self.read()
        return self._told

    def read(self) -> tuple[Asked | None, list[Outcome]]:
        """Return what is begun and the outcomes; nothing if there is no file, or none that can be read: it tells what was, and no more."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(self.path.read_bytes())
            begun = told["begun"]
            return None if begun is None else asked_of(begun), [_outcome(one) for one in told["outcomes"]]
        return None, []

    def write(self, begun: Asked | None, outcomes: Iterable[Outcome]) -> None:
        """Replace it, durably. Raises OSError."""
        kept = list(outcomes)[-OUTCOMES_KEPT:]
        told = {"begun": None if begun is None else asdict(begun), "outcomes": [asdict(one) for one in kept]}
        HOST_FILES.make(self.path, json.dumps(told).encode())


def asked_of(told: dict) -> Asked:
    """Return what a JSON object says."""
    return Asked(told["id"], told["label"], told["group"], tuple(told["volumes"]), told["until_ns"])


def _outcome(told: dict) -> Outcome:
    marks = {name: TakenMark(one["position"], one["capture_time_ns"]) for name, one in told["marks"].items()}
    return Outcome(asked_of(told["asked"]), marks, told["stopped_ms"], told["error"])
