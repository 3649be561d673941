"""Digests: what the replicas hold, as they told it, so that a copy after the loss of the host sends only what differs (design rule 3).

The publisher asks the targets and writes what they answer beside the ring (`agent.comparison`); here the copier waits for that,
reads it, and compares. A chunk of 64 KiB counts as equal only if every replica has the digest of what the source holds now, read under the
extent's lock. That may be compared with a replica that is behind: all changes since the gap began are in the stream, and applying
them to bytes that have them already changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import xxhash

from agent import ring as layout
from agent.digest_file import DIGEST_CHUNK_BYTES, GAP, GAP_ROW, ROW, path_of
from agent.ring import VolumeRing
from stream.position import Position


class Digests:
    """The digests of one volume's replicas, for the copier's thread."""

    def __init__(self, ring: VolumeRing) -> None:
        self._ring = ring
        self._words = ring.words
        self._path = path_of(ring.path.parent, ring.path.stem)
        self._known: dict[int, bytes | None] = {}

    @property
    def there(self) -> bool:
        """Tell whether there is anything to compare with."""
        return bool(self._known) and not self._void

    @property
    def _void(self) -> bool:
        """Tell whether order was lost or anything was owed anew since the comparison was wanted: then equal digests prove nothing."""
        return self._words[layout.W_ORDER_LOST] != self._words[layout.W_COMPARE_AT]

    def ready(self) -> bool:
        """Tell whether the copy may begin: no comparison is wanted, or it is answered, or nobody answers."""
        state = self._words[layout.W_COMPARE]
        if state != layout.COMPARE_NONE and self._void:
            self.forget()
            return True
        if state == layout.COMPARE_ANSWERED and not self._known:
            self._read()
        return state != layout.COMPARE_WANTED

    def differing(self, start_bytes: int, view: memoryview) -> Iterator[tuple[int, int]]:
        """Yield the parts of what the source holds from `start_bytes` on that some replica lacks, joined, relative to it."""
        begin: int | None = None
        for at in range(0, len(view), DIGEST_CHUNK_BYTES):
            part = view[at : at + DIGEST_CHUNK_BYTES]
            equal = self._known.get(start_bytes + at) == xxhash.xxh3_128_digest(part)
            if not equal and begin is None:
                begin = at
            elif equal and begin is not None:
                yield begin, at
                begin = None
        if begin is not None:
            yield begin, len(view)

    def forget(self) -> None:
        """Let go of them: the copy is over."""
        self._known = {}
        if self._words[layout.W_COMPARE] != layout.COMPARE_NONE:
            self._words[layout.W_COMPARE] = layout.COMPARE_NONE
            self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Read the file; replicas that differ from each other leave a chunk without a digest: it is sent."""
        with suppress(OSError):
            raw = self._path.read_bytes()
            rows = ROW.iter_unpack(raw[: len(raw) // ROW.size * ROW.size])
            if next(rows, None) != (GAP_ROW, self._gap()):
                return  # of an older comparison
            known: dict[int, bytes | None] = {}
            for offset_bytes, digest in rows:
                known[offset_bytes] = digest if known.get(offset_bytes, digest) == digest else None
            self._known = known

    def _gap(self) -> bytes:
        gap = Position.parse(self._ring.text("compare_gap"))
        return GAP.pack(gap.epoch, gap.sequence)
