"""Proving the store: the image at each verify mark against the digest that the mark tells (design rule 26).

Called by `history.upkeep` before what holds the marks is folded, so each is compared once the bytes are there and as they were written.
Marks inside gaps and the first copy count for nothing. What was compared before a restart and is not folded yet is compared again.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

from history.catalog import Catalog
from history.doubts import Doubt, doubt, doubts, end, forget
from history.levels import AS_WRITTEN, SNAPSHOT
from history.moments import gap_open_at
from history.segment import SegmentName, StoredMark
from stream.errors import RecoveryError
from stream.extent import Extent
from stream.position import ZERO, Position
from stream.record import Kind

CHUNK_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """A chunk of which the store's image at `position` is not what the source had there."""

    position: Position
    chunk: Extent


class Prover:
    """Compare the verify marks of one volume, in order. One thread uses it."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._compared: Position | None = None
        self.proved = 0

    def prove(self) -> list[Difference]:
        """Compare the marks that came since the last call; keep what is in doubt, and end doubts that are over.

        Returns what differs and was not known to; at the first call, all that is in doubt still. Raises RetryError,
        ConfigError; IntegrityError for a damaged segment.
        """
        catalog = self._catalog
        store, volume = catalog.store, catalog.volume
        known = doubts(store, volume)
        self._forget(known)
        different: list[Difference] = []
        if self._compared is None:
            folded = (name.last for level, names in catalog.levels().items() if level > AS_WRITTEN for name in names)
            self._compared = max(folded, default=ZERO)
            different += [Difference(one.found, one.chunk) for one in known if one.until is None and one.chunk is not None]
        for name, mark, chunk, digest in self._marks(self._compared):
            standing = [one for one in known if one.chunk == chunk and one.covers(mark.position)]
            equal = self._equal(mark.position, chunk, digest)
            if equal:
                for one in standing:
                    if one.until is None and one.found < mark.position:
                        known[known.index(one)] = end(store, volume, one, mark.position)
            elif equal is False and not standing:
                one = Doubt(self._last_proof(name, mark, chunk), mark.position, chunk=chunk)
                doubt(store, volume, one)
                known.append(one)
                different.append(Difference(mark.position, chunk))
            self.proved += equal is True
            self._compared = mark.position
        return different

    def _marks(self, after: Position) -> list[tuple[SegmentName, StoredMark, Extent, bytes]]:
        """Return the verify marks of level 0 behind a position that can be compared, in order."""
        found = []
        seen = after
        for name in self._catalog.levels().get(AS_WRITTEN, []):
            if name.last <= after:
                continue
            header = self._catalog.header(name)
            for mark in header.marks:
                told = _told(mark)
                if told is not None and mark.position > seen and not gap_open_at(header, mark.position):
                    found.append((name, mark, *told))
                    seen = mark.position
        return found

    def _equal(self, position: Position, chunk: Extent, digest: bytes) -> bool | None:
        """Tell whether the image has this digest; None if it can't be made or does not have those bytes."""
        try:
            image = self._catalog.image(position)
        except RecoveryError:
            return None
        if chunk.end_bytes > image.size_bytes:
            return None
        shown = bytearray(chunk.length_bytes)
        for offset, data in image.sweep(chunk.offset_bytes, chunk.end_bytes):
            shown[offset - chunk.offset_bytes : offset - chunk.offset_bytes + len(data)] = data
        return xxhash.xxh3_128_digest(shown) == digest

    def _last_proof(self, name: SegmentName, mark: StoredMark, chunk: Extent) -> Position:
        """Return the last position before a mark at which the chunk was compared: it was equal then, or a doubt would be open."""
        levels = self._catalog.levels()
        before = [one for names in levels.values() for one in names if one.first < mark.position]
        for one in sorted(before, key=lambda one: (one.last, -one.level), reverse=True):
            header = self._catalog.header(one)
            for other in reversed(header.marks):
                told = _told(other) if other.position < mark.position else None
                if told is not None and told[0] == chunk and not gap_open_at(header, other.position):
                    return other.position
        return ZERO

    def _forget(self, known: list[Doubt]) -> None:
        """Remove the doubts about what retention has deleted: they end at or below the oldest snapshot, and before all else there is."""
        levels = self._catalog.levels()
        if SNAPSHOT not in levels:
            return
        oldest = min(name.last for name in levels[SNAPSHOT])
        for one in [one for one in known if one.until is not None and one.until <= oldest]:
            forget(self._catalog.store, self._catalog.volume, one)
            known.remove(one)


def _told(mark: StoredMark) -> tuple[Extent, bytes] | None:
    """Return chunk and digest of a verify mark, None for another or one that can't be compared."""
    if mark.kind != Kind.VERIFY:
        return None
    told = mark.attributes
    try:
        chunk = Extent(int(told["offset_bytes"]), int(told["length_bytes"]))
        digest = bytes.fromhex(told["digest"])
    except (KeyError, ValueError):
        return None
    return (chunk, digest) if chunk.length_bytes <= CHUNK_BYTES_MAX and len(digest) == 16 else None
