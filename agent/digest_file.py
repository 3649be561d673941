"""The digest file: what targets hold, as the publisher hands it to capture.

`<ring folder>/<volume>.digests`, mode 0600, replaced as a whole. Rows of 24 bytes, native byte order: `offset_bytes` of a chunk (u64) and
the xxh3_128 of its `DIGEST_CHUNK_BYTES` (16 bytes), one row for each chunk and target, chunks in rising order. The first row says what
they answer: its offset is `GAP_ROW`, its 16 bytes are epoch and sequence of the gap. A chunk without a row was not compared: it is sent.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.ring import OWED_BYTES
from stream.position import Position
from stream.record import DIGEST_BYTES

DIGEST_CHUNK_BYTES = OWED_BYTES
GAP_ROW = (1 << 64) - 1
ROW = struct.Struct("=Q16s")
DIGESTS_BYTES_MAX = 64 << 20
GAP = struct.Struct("=QQ")


def path_of(ring_dir: Path, volume: str) -> Path:
    return ring_dir / f"{volume}.digests"


class DigestFile:
    """Write the file, chunk by chunk; it is there only after `finish`. Raises OSError when memory is full."""

    def __init__(self, path: Path, gap: Position) -> None:
        self._path = path
        self._new = path.with_suffix(".digests-new")
        self._new.unlink(missing_ok=True)
        self._file = open(os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb")  # noqa: SIM115
        self._file.write(ROW.pack(GAP_ROW, GAP.pack(gap.epoch, gap.sequence)))
        self.size_bytes = ROW.size

    def __enter__(self) -> DigestFile:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._new.unlink(missing_ok=True)

    def add(self, offsets: Iterable[int], answers: Sequence[bytes]) -> None:
        """Add chunks at these offsets; each answer has all their digests, in order."""
        rows = bytearray()
        for at, offset in enumerate(offsets):
            for answer in answers:
                rows += ROW.pack(offset, answer[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES])
        self._file.write(rows)
        self.size_bytes += len(rows)

    def finish(self) -> None:
        """Let it be read."""
        self._file.close()
        os.rename(self._new, self._path)
