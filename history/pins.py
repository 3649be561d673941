"""Pins: moments that are kept whatever their age, said in the store itself.

    <volume>/pins/<position>            a JSON object, `label` and `at_ns`; a line feed; the xxh3_64 of the bytes before that, in hex

Retention makes a pinned moment an end of each level of folds in turn, so it stays restorable when all around it has gone. Bookmarks are
pinned by themselves for as long as `history.bookmarks_d` says; a pin outlives that.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass

import xxhash

from history.store import Store
from stream.errors import ConfigError, IntegrityError
from stream.position import Position


@dataclass(frozen=True, slots=True)
class Pin:
    """A kept moment; `label` is for people."""

    position: Position
    label: str


def pin(store: Store, volume: str, position: Position, label: str) -> bool:
    """Keep a moment, durable on return; False if it is kept already. The caller has seen that it can be restored. May raise RetryError."""
    told = json.dumps({"label": label, "at_ns": time.time_ns()}).encode()
    return store.put(f"{_folder(volume)}{position}", [told, b"\n", xxhash.xxh3_64_hexdigest(told).encode()])


def unpin(store: Store, volume: str, position: Position) -> None:
    """Let a moment go when its time comes. May raise RetryError."""
    store.delete(f"{_folder(volume)}{position}")


def pins(store: Store, volume: str) -> list[Pin]:
    """Return the kept moments in order. May raise RetryError."""
    found = []
    for one in store.list(_folder(volume)):
        try:
            found.append(read_pin(store, one.name))
        except IntegrityError:  # removed since; or damaged: then its name is good enough
            with suppress(ConfigError):
                found.append(Pin(Position.parse(one.name.removeprefix(_folder(volume))), ""))
        except ConfigError:  # not ours
            continue
    return found


def read_pin(store: Store, path: str) -> Pin:
    """Return what a pin says. Raises IntegrityError if it is damaged or gone, ConfigError if that is no name of a pin."""
    position = Position.parse(path.rpartition("/")[2])
    told, _, digest = store.get(path).rpartition(b"\n")
    if xxhash.xxh3_64_hexdigest(told).encode() != digest:
        raise IntegrityError("A pin does not match its checksum", path=path, hint="The moment is kept; remove the pin and set it again.")
    return Pin(position, str(json.loads(told)["label"]))


def _folder(volume: str) -> str:
    return f"{volume}/pins/"
