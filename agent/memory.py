"""Shared memory files: created exclusively, owned by us, readable by nobody else (design rule 12).

Ring and pool live in such files under the ring folder. They outlive the processes that map them; the space is allocated when the file
is made, so that a full memory file system is told then and not by a SIGBUS in the middle of a write.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

from stream.errors import ConfigError, IntegrityError

PAGE_BYTES = 4096


def make_folder(path: Path) -> None:
    """Make the ring folder, 0700, or check that the one there is ours. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"The ring folder {path} can't be made: {error.strerror}", hint="Set agent.ring_dir to a memory file system."
        ) from error
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"The ring folder {path} belongs to somebody else or is open to others", hint="Remove it, or set agent.ring_dir.")


class SharedFile:
    """One mapped file; `view` is all of it, `words` the same as native 64-bit words, stored and loaded whole."""

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._inode = os.fstat(fd).st_ino
        self._map = mmap.mmap(fd, size_bytes)
        self.view = memoryview(self._map)
        self.words = self.view[:PAGE_BYTES].cast("Q")

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> SharedFile:
        """Make the file, zeroed, under a new name. Raises ConfigError when memory is short, FileExistsError when it is there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            return cls(path, fd, size_bytes)
        except OSError as error:
            path.unlink()
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise ConfigError(
                f"{path.parent} has no room for {size_bytes >> 20} MiB",
                hint="Give the memory file system more room (in a container: its shm size), or lower agent.buffer_bytes_max.",
            ) from error
        finally:
            os.close(fd)

    @classmethod
    def attach(cls, path: Path) -> SharedFile:
        """Map the file that is there. Raises FileNotFoundError, IntegrityError when it is not ours or cut short."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            found = os.fstat(fd)
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o600 or not stat.S_ISREG(found.st_mode):
                raise IntegrityError(f"{path} is not ours", hint="Remove it if you know whose it is.", path=path, uid=found.st_uid)
            if found.st_size < PAGE_BYTES:
                raise IntegrityError(f"{path} is cut short", path=path, bytes=found.st_size)
            return cls(path, fd, found.st_size)
        finally:
            os.close(fd)

    @property
    def current(self) -> bool:
        """Tell whether the path still names this file: it may have been removed or made anew."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def same_file(self, other: SharedFile) -> bool:
        """Tell whether both map the same memory."""
        return self._inode == other._inode

    def close(self) -> None:
        """Unmap; views taken from it must be gone, else the mapping stays until they are."""
        self.words.release()
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            return  # a slice still lives; the mapping goes with it
