"""An image made by hand for the tests of recovery: the bytes are the oracle, and they are given in an order that is not the volume's."""

from __future__ import annotations

import random
from collections.abc import Iterator

from stream.errors import IntegrityError
from stream.position import Position

PIECE_BYTES_MAX = 1 << 20
POSITION = Position(1, 100)


class FakeImage:
    """What `history.image.Image` promises, over a bytearray. `fails_at` is an offset whose read fails."""

    def __init__(self, data: bytes | bytearray, *, position: Position = POSITION, seed: int = 1, fails_at: int | None = None) -> None:
        self.volume = "v1"
        self.position = position
        self.data = bytes(data)
        self.size_bytes = len(data)
        self.fails_at = fails_at
        self.swept: list[tuple[int, int]] = []
        self._rng = random.Random(seed)

    def read(self, offset_bytes: int, into: memoryview) -> None:
        self._check(offset_bytes, len(into))
        into[:] = self.data[offset_bytes : offset_bytes + len(into)]

    def extents(self, offset_bytes: int, length_bytes: int, limit: int = 4096) -> list[tuple[int, bool]]:
        end = min(self.size_bytes, offset_bytes + length_bytes)
        return [(end - offset_bytes, not any(self.data[offset_bytes:end]))] if end > offset_bytes else []

    def sweep(self, offset_bytes: int = 0, end_bytes: int | None = None) -> Iterator[tuple[int, memoryview]]:
        end = self.size_bytes if end_bytes is None else end_bytes
        self.swept.append((offset_bytes, end))
        pieces = []
        at = offset_bytes
        while at < end:
            stop = min(end, at + self._rng.choice((512, 4096, 65536, 300_001)), (at // PIECE_BYTES_MAX + 1) * PIECE_BYTES_MAX)
            if self.data[at:stop].strip(b"\0"):
                pieces.append((at, stop))
            at = stop
        if self._rng.random() < 0.8:
            self._rng.shuffle(pieces)
        scratch = bytearray(PIECE_BYTES_MAX)
        for start, stop in pieces:
            self._check(start, stop - start)
            scratch[: stop - start] = self.data[start:stop]
            yield start, memoryview(scratch)[: stop - start]

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if self.fails_at is not None and offset_bytes <= self.fails_at < offset_bytes + length_bytes:
            raise IntegrityError("A block does not fit its checksum", path="v1/L0/x.avro", at_bytes=7)


def sparse_bytes(size_bytes: int, seed: int, *, extents: int = 40) -> bytearray:
    """Return a volume with some data and large holes."""
    rng = random.Random(seed)
    data = bytearray(size_bytes)
    for _ in range(extents):
        length = rng.choice((1, 511, 4096, 65536, 200_000))
        at = rng.randrange(size_bytes - length)
        data[at : at + length] = rng.randbytes(length)
    return data
