"""Files of the state folder that are made whole and afterwards changed in place, so that a full disk never matters to them.

The activity log reaches its disk through `StateFiles` and `StateFile` alone: the simulation puts a disk of its own there, which loses,
tears and reorders what was not synced. `HostFiles` is the real one. What each method guarantees after a power cut stands in its docstring.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol


class StateFile(Protocol):
    """An open file. No method uses a file position, so all may be called by several threads."""

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return what stands there; shorter only where the file ends. Raises OSError."""

    def pwrite(self, offset_bytes: int, data: bytes) -> None:
        """Write all of `data`, inside the file. Durable after the next `fdatasync`; until then any part of it may be. Raises OSError."""

    def fdatasync(self) -> None:
        """Make everything written so far durable. Raises OSError: then nothing is known of it."""

    def extend(self, size_bytes: int) -> None:
        """Make the file that long, with room on the disk for all of it; durable after the next `fdatasync`. Raises OSError."""

    def close(self) -> None:
        """Let go of the file; it is of no use afterwards. May be called twice."""


class StateFiles(Protocol):
    """The folder: where files come from."""

    def make(self, path: Path, content: bytes) -> None:
        """Make the file, or put it in the place of the one there. Durable on return, at any moment the old or the new. Raises OSError."""

    def open(self, path: Path) -> StateFile:
        """Open the file that is there. Raises OSError."""

    def remove(self, path: Path) -> None:
        """Remove the file durably, if it is there. Raises OSError."""


class HostFiles:
    """The file system of this host, a `StateFiles`."""

    def make(self, path: Path, content: bytes) -> None:
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        file = HostFile(fd)
        try:
            os.posix_fallocate(fd, 0, len(content))
            file.pwrite(0, content)
            os.fsync(fd)
        except OSError:
            new.unlink()
            raise
        finally:
            file.close()
        os.rename(new, path)
        _sync_folder(path.parent)

    def open(self, path: Path) -> HostFile:
        return HostFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))

    def remove(self, path: Path) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            return
        _sync_folder(path.parent)


class HostFile:
    """An open file of the host, a `StateFile`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, offset_bytes: int, length_bytes: int) -> bytes:
        pieces: list[bytes] = []
        while length_bytes and (piece := os.pread(self._fd, length_bytes, offset_bytes)):
            pieces.append(piece)
            offset_bytes += len(piece)
            length_bytes -= len(piece)
        return b"".join(pieces)

    def pwrite(self, offset_bytes: int, data: bytes) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset_bytes)
            if not done:
                raise OSError(errno.EIO, "the disk took nothing of a write")
            offset_bytes, data = offset_bytes + done, data[done:]

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def extend(self, size_bytes: int) -> None:
        os.posix_fallocate(self._fd, 0, size_bytes)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


HOST_FILES = HostFiles()


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
