"""`ImageDevice`: an image as an NBD block device, read-only, or writable over an overlay.

Served by exports. Errors of the image become EIO for the client that asked and are told to `failed`; the connection goes on, and so do
all others.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nbd.blockfile import EXTENT_DATA, EXTENT_HOLE
from nbd.device import Pieces
from nbd.filedevice import FileLane
from recovery.base_image import BaseImage
from recovery.overlay import Overlay
from stream.errors import HostoffloadError

ALIGN_BYTES = 4096
EXTENTS_MIN = 256


class ImageDevice:
    """A `BlockDevice`. `failed` is called with every error of the image, by any thread."""

    def __init__(self, image: BaseImage, overlay: Overlay | None = None, *, failed: Callable[[HostoffloadError], None]) -> None:
        self.size_bytes = image.size_bytes
        self.read_only = overlay is None
        self._image = image
        self._overlay = overlay
        self._failed = failed

    def open_session(self) -> ImageSession:
        """Open a session for a new connection."""
        return ImageSession(self._image, self._overlay, self._failed)


class ImageSession:
    """A `Session`; several threads may use it."""

    concurrent = concurrent_reads = True

    def __init__(self, image: BaseImage, overlay: Overlay | None, failed: Callable[[HostoffloadError], None]) -> None:
        self.lane = FileLane()
        self._image = image
        self._overlay = overlay
        self._failed = failed

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`."""
        with self._told():
            (self._overlay or self._image).read(offset_bytes, into)

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        """Read the plain way: nobody can tell what is in which cache."""
        self.read(offset_bytes, into)
        return True

    def announce(self, offset_bytes: int, length_bytes: int) -> None:
        """Do nothing: blocks are read when they are needed."""

    def write(self, offset_bytes: int, pieces: Pieces, length_bytes: int, fua: bool) -> None:
        """Write into the overlay."""
        with self._told():
            overlay = self._writable()
            overlay.write(offset_bytes, pieces, length_bytes)
            if fua:
                overlay.flush()

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        """Punch a hole into the overlay."""
        with self._told():
            overlay = self._writable()
            overlay.zero(offset_bytes, length_bytes)
            if fua:
                overlay.flush()

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        """Do as `zero` does."""
        self.zero(offset_bytes, length_bytes, punch=True, fast=False, fua=fua)

    def flush(self) -> None:
        """Make the overlay durable."""
        if self._overlay is not None:
            self._overlay.flush()

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Describe the extent: holes read as zero, and begin and end at multiples of `ALIGN_BYTES`."""
        with self._told():
            asked = max(limit, EXTENTS_MIN)
            if self._overlay is not None:
                told = self._overlay.extents(offset_bytes, length_bytes, asked)
            else:
                found = self._image.extents(offset_bytes, length_bytes, asked)
                told = [(size, EXTENT_HOLE if zero else EXTENT_DATA) for size, zero in found]
            return _aligned(offset_bytes, told, self._image.size_bytes)[:limit]

    def close(self) -> None:
        """End the session; image and overlay stay open for the others."""

    def _writable(self) -> Overlay:
        if self._overlay is None:
            raise OSError(errno.EPERM, "the export is read-only")
        return self._overlay

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn an error of the image into one that NBD knows."""
        try:
            yield
        except HostoffloadError as error:
            self._failed(error)
            raise OSError(errno.EIO, error.sentence) from error


def _aligned(offset_bytes: int, told: list[tuple[int, int]], size_bytes: int) -> list[tuple[int, int]]:
    """Return the same extents with the ragged edges of holes told as data, neighbours joined.

    qemu-img counts in sectors and takes a hole that ends inside one to the sector's end (tried with 7.2: bytes were lost).
    """
    found: list[tuple[int, int]] = []

    def tell(start: int, end: int, state: int) -> None:
        if start < end and found and found[-1][1] == state:
            found[-1] = (found[-1][0] + end - start, state)
        elif start < end:
            found.append((end - start, state))

    at = offset_bytes
    for size, state in told:
        end = at + size
        if state == EXTENT_DATA:
            tell(at, end, EXTENT_DATA)
        else:
            begin = at if at == offset_bytes else -(-at // ALIGN_BYTES) * ALIGN_BYTES
            stop = end if end == size_bytes else end // ALIGN_BYTES * ALIGN_BYTES
            if begin < stop:
                tell(at, begin, EXTENT_DATA)
                tell(begin, stop, EXTENT_HOLE)
                tell(stop, end, EXTENT_DATA)
            else:
                tell(at, end, EXTENT_DATA)
        at = end
    return found
