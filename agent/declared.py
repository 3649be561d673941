"""The volumes that this host should serve, in a local file: the publisher writes it from `ho.control`, capture reads it.

So capture needs no Kafka client, and a host boots while Kafka is away. `<state>/agent/volumes.json`:
`{"agent": name, "volumes": [{declaration}, ...], "resyncs": {volume: [{"id", "reason", "gap", "extents": [[start, end], ...]}, ...]},
"verifies": {volume: [id, ...]}, "moved": {volume: agent}, "bookmarks": [{"id", "label", "group", "volumes", "until_ns"}, ...]}`. What is
asked stands there until it is answered; capture tells in the ring's text `handled` what it took, and of bookmarks by `agent.bookmarks`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agent.bookmarks import Asked, asked_of
from agent.extent_list import Run
from stream.control import Replica, VolumeDeclaration


@dataclass(frozen=True, slots=True)
class Resync:
    """A request to copy extents again, the whole volume if it names none; it closes `gap` (a gap's name, may be empty)."""

    id: str
    reason: str
    gap: str
    extents: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """What the file says."""

    volumes: tuple[VolumeDeclaration, ...] = ()
    resyncs: dict[str, tuple[Resync, ...]] = field(default_factory=dict)
    verifies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """Volumes that another agent has, and its name: what of them is served here is let go."""
    bookmarks: tuple[Asked, ...] = ()
    """The oldest first; what becomes of them is told by `agent.bookmarks`."""


def path_of(state_dir: Path) -> Path:
    return state_dir / "agent" / "volumes.json"


def write(path: Path, agent: str, declared: Declared) -> None:
    """Replace the file atomically and durably. Its modification time always rises, whatever the clock does: capture looks at that."""
    told = {
        "agent": agent,
        "volumes": [asdict(one) for one in declared.volumes],
        "resyncs": {volume: [asdict(one) for one in asked] for volume, asked in declared.resyncs.items()},
        "verifies": declared.verifies,
        "moved": declared.moved,
        "bookmarks": [asdict(one) for one in declared.bookmarks],
    }
    new = path.with_suffix(".new")
    with open(new, "w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        made = os.fstat(file.fileno())
        before_ns = path.stat().st_mtime_ns if path.exists() else 0
        os.utime(file.fileno(), ns=(made.st_atime_ns, max(made.st_mtime_ns, before_ns + 1)))
        os.fsync(file.fileno())
    os.replace(new, path)


def read(path: Path) -> Declared:
    """Read the file, one of an older version too. Raises FileNotFoundError before the first one was written."""
    told = json.loads(path.read_text(encoding="utf-8"))
    volumes = tuple(
        VolumeDeclaration(**(one | {"replicas": tuple(Replica(**replica) for replica in one["replicas"])})) for one in told["volumes"]
    )
    resyncs = {volume: tuple(_resync(one) for one in asked) for volume, asked in told["resyncs"].items()}
    verifies = {volume: tuple(asked) for volume, asked in told.get("verifies", {}).items()}
    return Declared(volumes, resyncs, verifies, told.get("moved", {}), tuple(asked_of(one) for one in told.get("bookmarks", ())))


def _resync(told: dict) -> Resync:
    return Resync(told["id"], told["reason"], told["gap"], tuple((start, end) for start, end in told.get("extents", ())))
