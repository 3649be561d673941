"""A scratch volume that records are applied to, one by one, exactly as they were captured.

Used by `replay`. Fragments of a split write are held until the last one is there and applied together; if it never comes they are not.
Marks that tell the volume's size resize a file. Nothing is durable before `sync`.
"""

from __future__ import annotations

import os

from nbd.blockfile import BlockFile
from stream.errors import ConfigError
from stream.position import Position
from stream.record import FLAG_MORE, Batch, Kind

_SIZED = frozenset((Kind.EPOCH_START, Kind.RESIZE))


class ScratchVolume:
    """Apply records to an open file or device. One thread."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._held: list[tuple[int, memoryview]] = []
        self._held_last: Position | None = None
        self.size_bytes = file.measure()
        self.records = 0
        self.written_bytes = 0
        self.zeroed_bytes = 0

    def apply(self, batch: Batch) -> None:
        """Apply all records of a batch, which follows the one before. Raises OSError, ConfigError for a device that is too small."""
        self._drop_unless_followed(batch.first)
        columns = zip(batch.kinds, batch.flags, batch.offsets, batch.lengths, batch.payload_slices(), strict=True)
        for index, (kind, flags, offset, length, payload) in enumerate(columns):
            if kind == Kind.WRITE:
                assert payload is not None
                self._write(offset, payload, more=bool(flags & FLAG_MORE))
                continue
            self._held = []
            if kind in (Kind.ZERO, Kind.TRIM):
                self._reach(offset + length)
                self._file.zero(offset, length, punch=True)
                self.zeroed_bytes += length
            elif kind in _SIZED:
                self._resize(batch.marks.get(index, {}).get("size_bytes", ""))
        self.records += batch.count
        self._held_last = batch.last

    def sync(self) -> None:
        """Make everything applied durable."""
        self._file.sync()

    def _write(self, offset: int, payload: memoryview, *, more: bool) -> None:
        if more:
            self._held.append((offset, payload))
            return
        for at, data in (*self._held, (offset, payload)):
            self._reach(at + len(data))
            self._file.write(at, data, len(data))
            self.written_bytes += len(data)
        self._held = []

    def _drop_unless_followed(self, first: Position) -> None:
        """Give up a split write whose next fragment did not come."""
        if self._held and (self._held_last is None or first != self._held_last.next()):
            self._held = []

    def _reach(self, end_bytes: int) -> None:
        """Grow a file whose size no mark told."""
        if end_bytes > self.size_bytes:
            self._resize(str(end_bytes))

    def _resize(self, text: str) -> None:
        if not (text.isascii() and text.isdigit()) or int(text) == self.size_bytes:
            return
        size_bytes = int(text)
        if not self._file.is_device:
            os.ftruncate(self._file.fd, size_bytes)
            self.size_bytes = size_bytes
        elif size_bytes > self.size_bytes:
            raise ConfigError(
                f"{self._file.path} has {self.size_bytes} bytes, the volume needs {size_bytes}", hint="Use a larger device, or a file."
            )
