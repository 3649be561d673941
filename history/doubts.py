"""Doubts: stretches of history in which the store is known to show something else than the volume had (design rule 26).

A `verify` mark tells the digest of a chunk of the source at one position; the store's image at that position has it too, or the history
since the chunk was last proved is in doubt: no point of it is offered, until the chunk is proved again. What is known stands in the store:

    <volume>/doubts/<after>_<found>             the positions behind `after`, found out at the mark at `found`
    <volume>/doubts/<after>_<found>_<until>     the same, over at `until`, where the chunk was right again

A JSON object: `offset_bytes` and `length_bytes` of the chunk; a line feed; the xxh3_64 of the bytes before that, in hex.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import xxhash

from history.store import Store
from stream.errors import ConfigError, IntegrityError
from stream.extent import Extent
from stream.position import Position


@dataclass(frozen=True, slots=True)
class Doubt:
    """The positions between `after` and `until` (None: no end yet) are in doubt, neither of them itself; `chunk` None: not known."""

    after: Position
    found: Position
    until: Position | None = None
    chunk: Extent | None = None

    def covers(self, position: Position) -> bool:
        return self.after < position and (self.until is None or position < self.until)

    @property
    def name(self) -> str:
        until = "" if self.until is None else f"_{self.until}"
        return f"{self.after}_{self.found}{until}"


def in_doubt(doubts: Iterable[Doubt], position: Position) -> Doubt | None:
    """Return a doubt that covers a position, None if it may be offered."""
    return next((doubt for doubt in doubts if doubt.covers(position)), None)


def doubt(store: Store, volume: str, one: Doubt) -> None:
    """Keep a doubt, durable on return. May raise RetryError."""
    chunk = one.chunk
    told = json.dumps({"offset_bytes": chunk.offset_bytes, "length_bytes": chunk.length_bytes} if chunk is not None else {}).encode()
    store.put(_folder(volume) + one.name, [told, b"\n", xxhash.xxh3_64_hexdigest(told).encode()])


def end(store: Store, volume: str, one: Doubt, until: Position) -> Doubt:
    """Say that a doubt is over; what it covers stays in doubt. May raise RetryError."""
    ended = replace(one, until=until)
    doubt(store, volume, ended)
    store.delete(_folder(volume) + one.name)
    return ended


def forget(store: Store, volume: str, one: Doubt) -> None:
    """Remove a doubt about history that is not there any more. May raise RetryError."""
    store.delete(_folder(volume) + one.name)


def doubts(store: Store, volume: str) -> list[Doubt]:
    """Return what is in doubt, in order; a doubt that has an end counts with it only. May raise RetryError."""
    found: dict[tuple[Position, Position], Doubt] = {}
    for one in store.list(_folder(volume)):
        try:
            doubt = read_doubt(store, one.name)
        except IntegrityError:  # removed since; or damaged: then its name is good enough
            doubt = _named(one.name)
        except ConfigError:  # not ours
            continue
        key = doubt.after, doubt.found
        if key not in found or doubt.until is not None:
            found[key] = doubt
    return sorted(found.values(), key=lambda doubt: (doubt.after, doubt.found))


def read_doubt(store: Store, path: str) -> Doubt:
    """Return what an object says. Raises IntegrityError if it is damaged or gone, ConfigError if that is no name of a doubt."""
    named = _named(path)
    told, _, digest = store.get(path).rpartition(b"\n")
    if xxhash.xxh3_64_hexdigest(told).encode() != digest:
        raise IntegrityError("A doubt does not match its checksum", path=path, hint="What it covers is not offered; keep the file.")
    body = json.loads(told)
    return replace(named, chunk=Extent(body["offset_bytes"], body["length_bytes"])) if body else named


def _named(path: str) -> Doubt:
    """Return what the name of an object says. Raises ConfigError."""
    parts = [Position.parse(part) for part in path.rpartition("/")[2].split("_")]
    if not 2 <= len(parts) <= 3:
        raise ConfigError(f"{path} is no doubt")
    return Doubt(parts[0], parts[1], parts[2] if len(parts) > 2 else None)


def _folder(volume: str) -> str:
    return f"{volume}/doubts/"
