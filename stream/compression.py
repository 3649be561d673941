"""Compression of a payload blob by the name of the codec, as the journal and the segments store it.

Used by the CX to write and by whoever reads the journal or the store. Raw block formats without framing, the length is known
from the message. Libraries are imported on first use: the agent never compresses and never pays for them.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from stream.errors import IntegrityError

CODECS = ("none", "snappy", "zstd", "lz4")
ZSTD_LEVEL = 1
PAYS_BELOW = 0.95  # a blob that shrinks to no less than this share is stored as it is


class _Codec(Protocol):
    def compress(self, data: bytes | memoryview) -> bytes: ...
    def decompress(self, data: bytes, size_bytes: int) -> bytes: ...


class _Snappy:
    def __init__(self) -> None:
        import snappy

        self._snappy = snappy

    def compress(self, data: bytes | memoryview) -> bytes:
        return self._snappy.compress(bytes(data))

    def decompress(self, data: bytes, size_bytes: int) -> bytes:
        return self._snappy.decompress(data)


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._zstandard = zstandard

    def compress(self, data: bytes | memoryview) -> bytes:
        return self._zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)

    def decompress(self, data: bytes, size_bytes: int) -> bytes:
        return self._zstandard.ZstdDecompressor().decompress(data, max_output_size=size_bytes)


class _Lz4:
    def __init__(self) -> None:
        import lz4.block

        self._block = lz4.block

    def compress(self, data: bytes | memoryview) -> bytes:
        return self._block.compress(data, store_size=False)

    def decompress(self, data: bytes, size_bytes: int) -> bytes:
        return self._block.decompress(data, uncompressed_size=size_bytes)


@cache
def _codec(name: str) -> _Codec:
    return {"snappy": _Snappy, "zstd": _Zstd, "lz4": _Lz4}[name]()


def compress(name: str, data: bytes | memoryview) -> tuple[str, bytes]:
    """Return the codec really used and the blob: `none` where compression does not pay."""
    if name == "none" or len(data) == 0:
        return "none", bytes(data)
    packed = _codec(name).compress(data)
    if len(packed) >= len(data) * PAYS_BELOW:
        return "none", bytes(data)
    return name, packed


def decompress(name: str, packed: bytes, size_bytes: int) -> bytes:
    """Return the blob of exactly `size_bytes`. Raises IntegrityError when the bytes do not give that."""
    if name == "none":
        data = packed
    elif name not in CODECS:
        raise IntegrityError("A payload is compressed by a codec that this version does not know", codec=name)
    else:
        try:
            data = _codec(name).decompress(packed, size_bytes)
        except Exception as error:  # each library has an exception type of its own
            raise IntegrityError(f"A payload can't be decompressed: {error}", codec=name) from error
    if len(data) != size_bytes:
        raise IntegrityError("A payload has the wrong length", codec=name, expected=size_bytes, got=len(data))
    return data
