"""The replica: a file or block device of exactly the volume's size, held by one target.

Used by the target's session and by nobody else at the same time: the lock refuses a second one and names the first. Guarantees: a
missing file is made only where the caller says that there never was one; a replica that was swapped, cut short or deleted is refused,
never written; `write` returns when everything was handed to the kernel, `sync` when it survives a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from cx_consumers.apply import Pieces
from nbd.blockfile import BlockFile
from stream.errors import ConfigError, RetryError

READ_BYTES = 1 << 20
_FS_IOC_GETVERSION = 0x80087601  # linux/fs.h: the generation of an inode, so that a number used again is told apart


class ReplicaVolume:
    """An open, locked replica. One thread uses it; `identity` tells it from another file under the same name."""

    def __init__(self, path: str, sizes: Sequence[int], identity: str | None) -> None:
        """Open and lock the replica, which must have one of `sizes`.

        `identity` is the one that its checkpoint knows, None if there is no checkpoint: then a missing file is made, of the first size.

        Raises ConfigError for a wrong size, a missing or swapped replica and one that somebody else holds; RetryError for a failing disk.
        """
        self.path = path
        self._buffer: memoryview | None = None
        if identity is None:
            _make_if_missing(path, sizes[0])
        try:
            self._file = BlockFile(path)
        except OSError as error:
            raise _unopened(path, error, known=identity is not None) from error
        self._exclusive: int | None = None
        try:
            self._lock()
            self.size_bytes = self._file.measure()
            self.identity = _identify(self._file)
            self._check_opened(sizes, identity)
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Make sure that what is written next goes where it belongs. Raises ConfigError when the replica was cut short or deleted."""
        if self._file.is_device:
            return
        found = os.fstat(self._file.fd)
        if found.st_size != self.size_bytes:
            raise _wrong_size(self.path, self.size_bytes, found.st_size)
        if found.st_nlink == 0:
            raise ConfigError(
                f"The replica {self.path} was deleted", path=self.path, hint="Remove and add the volume to have it copied anew."
            )

    def write(self, writes: Iterable[tuple[int, int, Pieces]]) -> None:
        """Write all pieces, zeroes as holes where that can be. Raises RetryError; then any part of them may be written."""
        file = self._file
        try:
            for offset_bytes, length_bytes, pieces in writes:
                if pieces is None:
                    file.zero(offset_bytes, length_bytes, punch=True)
                else:
                    file.write(offset_bytes, pieces if len(pieces) > 1 else pieces[0], length_bytes)
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Make all that was written durable. Raises RetryError; then everything since the last good one must be written again."""
        try:
            self._file.sync()
        except OSError as error:
            raise self._failed(error) from error

    def digest(self, offset_bytes: int, length_bytes: int, *, from_disk: bool = False) -> bytes | None:
        """Return xxh3_128 of what stands in the extent, as far as the replica has it; None if the disk can't read it.

        With `from_disk`, pages that lie clean in the cache are read again, so that what is proved is what the disk holds.
        """
        file, at, end = self._file, offset_bytes, min(offset_bytes + length_bytes, self.size_bytes)
        if self._buffer is None:
            self._buffer = memoryview(bytearray(READ_BYTES))
        digest = xxhash.xxh3_128()
        try:
            if from_disk:
                file.forget(offset_bytes, length_bytes)
            while at < end:
                piece = self._buffer[: min(READ_BYTES, end - at)]
                file.read(at, piece)
                digest.update(piece)
                at += len(piece)
        except OSError:
            return None
        return digest.digest()

    def resize(self, size_bytes: int) -> None:
        """Give a file this size; new bytes read as zero. Raises ConfigError for a device that is too small."""
        if size_bytes == self.size_bytes:
            return
        if self._file.is_device:
            if size_bytes > self._file.measure():
                raise _wrong_size(self.path, size_bytes, self._file.measure())
            self.size_bytes = size_bytes
            return
        try:
            os.ftruncate(self._file.fd, size_bytes)
            os.fsync(self._file.fd)
        except OSError as error:
            raise self._failed(error) from error
        self.size_bytes = size_bytes

    def close(self) -> None:
        """Let go of the replica and its lock."""
        self._file.close()
        if self._exclusive is not None:
            os.close(self._exclusive)
            self._exclusive = None

    def _lock(self) -> None:
        try:
            holder = lock_exclusively(self._file.fd)
            if holder is None and self._file.is_device:  # the kernel refuses this for a device that is mounted or part of another
                self._exclusive = os.open(self.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise self._failed(error) from error
            holder = "the kernel (it is mounted, or part of another device)"
        if holder is not None:
            raise ConfigError(
                f"The replica {self.path} is held by {holder}",
                path=self.path,
                hint="Let go of it there, or give this target a replica of its own.",
            )

    def _check_opened(self, sizes: Sequence[int], identity: str | None) -> None:
        if identity is not None and identity != self.identity:
            raise ConfigError(
                f"The replica {self.path} is not the one that was written so far",
                path=self.path,
                expected=identity,
                got=self.identity,
                hint="Put the old one back, or remove and add the volume to have it copied anew.",
            )
        fitting = [size for size in sizes if size <= self.size_bytes]
        if self._file.is_device and fitting:
            self.size_bytes = max(fitting)  # a device comes in sizes of its own; what is behind the volume is left alone
        elif self.size_bytes not in sizes:
            raise _wrong_size(self.path, sizes[0], self.size_bytes)

    def _failed(self, error: OSError) -> RetryError:
        hint = "Make room on the replica's file system." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Look at the replica's disk."
        return RetryError(f"The replica {self.path} can't be written: {error.strerror}", path=self.path, hint=hint)


def identity_of(path: str) -> str | None:
    """Return the identity of what is at `path`, None if there is nothing to open."""
    try:
        file = BlockFile(path, read_only=True)
    except OSError:
        return None
    try:
        return _identify(file)
    finally:
        file.close()


def lock_exclusively(fd: int) -> str | None:
    """Lock the file for as long as it is open; return None, or who holds it already. Raises OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _lock_holder(fd) or "another process"
    return None


def _lock_holder(fd: int) -> str | None:
    """Return who holds a flock on this file, as the kernel's list of locks tells it; None if it does not."""
    found = os.fstat(fd)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
                return f"process {fields[4]}{_command(fields[4])}"
    return None


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return f" ({b' '.join(words[:4]).decode(errors='replace').strip()})"


def _identify(file: BlockFile) -> str:
    if file.is_device:
        return f"device {file.path}"
    generation = 0
    with contextlib.suppress(OSError):  # a file system without generations: the inode has to do
        generation = struct.unpack("L", fcntl.ioctl(file.fd, _FS_IOC_GETVERSION, bytes(8)))[0]
    return f"inode {os.fstat(file.fd).st_ino} generation {generation}"


def _make_if_missing(path: str, size_bytes: int) -> None:
    """Make a sparse file of this size, durably; what is there is left alone, but for an empty file, which a crash in here may have left."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unopened(path, error, known=False) from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            return
        os.ftruncate(handle, size_bytes)
        os.fsync(handle)
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RetryError(f"The replica {path} can't be made: {error.strerror}", path=path, hint="Look at the replica's disk.") from error
    finally:
        os.close(handle)


def _unopened(path: str, error: OSError, *, known: bool) -> ConfigError | RetryError:
    if error.errno == errno.ENOENT and known:
        return ConfigError(
            f"The replica {path} is gone, and it had a checkpoint",
            path=path,
            hint="Put it back, or remove and add the volume to have it copied anew.",
        )
    if error.errno in (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        return RetryError(f"The replica {path} can't be opened: {error.strerror}", path=path, hint="Look at the replica's disk.")
    return ConfigError(
        f"The replica {path} can't be opened: {error.strerror}",
        path=path,
        hint="A replica is a file or block device in a folder that exists; a missing file is made there.",
    )


def _wrong_size(path: str, expected: int, got: int) -> ConfigError:
    return ConfigError(
        f"The replica {path} has {got} bytes, the volume has {expected}",
        path=path,
        expected=expected,
        got=got,
        hint="Give the replica the volume's size, or name another one.",
    )
