"""`BlockFile`: a regular file or a block device as an array of bytes, with the file system's finer operations.

Used by `filedevice`, and by everyone who needs exact whole writes, holes and zeroes on a volume. Guarantees: a write or read is
whole or raises OSError (never short); zeroed and trimmed extents are coherent with the page cache; no method uses the file
position, so all may run in several threads at once. Buffered I/O throughout. Flags of fallocate: linux/falloc.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from nbd.device import Pieces

ZERO_PIECE_BYTES_MAX = 1 << 20
PIECES_MAX = 1024
"""IOV_MAX of Linux."""

EXTENT_DATA = 0
EXTENT_HOLE = 3
"""A hole that reads as zero: STATE_HOLE | STATE_ZERO of the wire."""

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int
_ZEROES = memoryview(bytes(ZERO_PIECE_BYTES_MAX))


class BlockFile:
    """An open volume."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, exclusive: bool = False) -> None:
        """Open `path`, which must exist. Raises OSError; IsADirectoryError and EINVAL for what is neither file nor block device.

        `exclusive`: a block device that is mounted or so opened by somebody else is refused (EBUSY), and nobody mounts it meanwhile.
        """
        self.path = os.fspath(path)
        self.read_only = read_only
        mode = os.stat(self.path).st_mode  # Before open, which would wait at a pipe.
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "neither a regular file nor a block device", self.path)
        self.is_device = stat.S_ISBLK(mode)
        self._nowait = os.RWF_NOWAIT
        alone = os.O_EXCL if exclusive and self.is_device else 0
        self.fd = os.open(self.path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | alone)
        self._durable_fd = -1
        try:
            if not read_only:  # the kernel tells each open file once what it could not write back: `sync` must not miss that
                self._durable_fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            self.sector_bytes = _ioctl_int(self.fd, _BLKSSZGET) if self.is_device else 1
            self.measure()
        except BaseException:
            self.close()
            raise

    def measure(self) -> int:
        """Return the size in bytes as it is now."""
        if self.is_device:
            return struct.unpack("Q", fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8)))[0]
        return os.fstat(self.fd).st_size

    def write(self, offset_bytes: int, pieces: Pieces, length_bytes: int, durable: bool = False) -> None:
        """Write all of `pieces` (`length_bytes` together); with `durable` they survive a power cut on return.

        Raises OSError; what lies in the extent is then unknown (a full disk stops a write in the middle). What else was not durable then
        is told by the next `sync`, as for `zero` and `trim`.
        """
        if durable:
            self._write_durable(offset_bytes, pieces, length_bytes)
        elif type(pieces) is not list:
            done = os.pwrite(self.fd, pieces, offset_bytes)
            if done != length_bytes:
                self._write_rest(offset_bytes, [pieces], done, 0)
        else:
            self._write_rest(offset_bytes, pieces, 0, 0)

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`. Raises OSError(EIO) if the file ends before."""
        done = os.preadv(self.fd, [into], offset_bytes)
        while done < len(into):
            got = os.preadv(self.fd, [into[done:]], offset_bytes + done)
            if not got:
                raise OSError(errno.EIO, "the volume ends inside the extent", self.path)
            done += got

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        """Fill `into` from the page cache; return False if that takes a disk (`into` is then undefined).

        Where the file system can't tell (tmpfs), reads the plain way.
        """
        try:
            return os.preadv(self.fd, [into], offset_bytes, self._nowait) == len(into)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._nowait:
                raise
            self._nowait = 0
            self.read(offset_bytes, into)
            return True

    def announce(self, offset_bytes: int, length_bytes: int) -> None:
        """Start reading the extent into the page cache and return at once. Advice: never fails."""
        try:
            os.posix_fadvise(self.fd, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            return

    def forget(self, offset_bytes: int, length_bytes: int) -> None:
        """Drop clean pages of the extent from the page cache, so that the next read asks the disk."""
        os.posix_fadvise(self.fd, offset_bytes, length_bytes, os.POSIX_FADV_DONTNEED)

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool = False, durable: bool = False) -> None:
        """Make the extent read as zero: a hole if `punch` and possible, else allocated zeroes, else written ones.

        With `fast`, raise OSError(ENOTSUP) instead of writing. Raises OSError; what lies in the extent is then unknown.
        """
        ways = (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE) if punch else (_ZERO_RANGE | _KEEP_SIZE,)
        if not any(self._zero_inner(way, offset_bytes, length_bytes) for way in ways):
            if fast:
                raise OSError(errno.ENOTSUP, "zeroing is no faster than writing here", self.path)
            self._write_zeroes(offset_bytes, length_bytes)
        if durable:
            os.fdatasync(self._durable_fd)

    def trim(self, offset_bytes: int, length_bytes: int, *, durable: bool = False) -> bool:
        """Give the extent's space back if that makes it read as zero; return whether it does. False: nothing was changed."""
        if not self._zero_inner(_PUNCH_HOLE | _KEEP_SIZE, offset_bytes, length_bytes):
            return False
        if durable:
            os.fdatasync(self._durable_fd)
        return True

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Describe the extent by at most `limit` pairs (length in bytes, EXTENT_DATA or EXTENT_HOLE), from its start on.

        May cover less than asked for, never more, and at least one byte.
        """
        found: list[tuple[int, int]] = []
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end and len(found) < limit:
            kind, stop = self._extent_at(at, end)
            found.append((stop - at, kind))
            at = stop
        return found

    def sync(self) -> None:
        """Make all that was written durable (fdatasync)."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Close the file; the object is of no use afterwards. May be called twice."""
        fds, self.fd, self._durable_fd = (self.fd, self._durable_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _write_durable(self, offset_bytes: int, pieces: Pieces, length_bytes: int) -> None:
        listed = pieces if type(pieces) is list else [pieces]
        try:
            self._write_rest(offset_bytes, listed, 0, os.RWF_DSYNC)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.write(offset_bytes, listed, length_bytes)
            os.fdatasync(self._durable_fd)

    def _write_rest(self, offset_bytes: int, pieces: list[memoryview], done: int, flags: int) -> None:
        """Write what is left of `pieces` after the first `done` bytes."""
        at, rest = offset_bytes + done, _behind(pieces, done)
        while rest:
            wrote = os.pwritev(self._durable_fd if flags else self.fd, rest[:PIECES_MAX], at, flags)
            if not wrote:
                raise OSError(errno.EIO, "the volume took nothing of a write", self.path)
            at += wrote
            rest = _behind(rest, wrote)

    def _zero_inner(self, mode: int, offset_bytes: int, length_bytes: int) -> bool:
        """Zero by fallocate; parts of sectors at both ends of a device's extent are written. False: unsupported, nothing done."""
        head = min(-offset_bytes % self.sector_bytes, length_bytes)
        tail = (length_bytes - head) % self.sector_bytes
        inner = length_bytes - head - tail
        if inner and not _fallocate(self.fd, mode, offset_bytes + head, inner):
            return False
        if head:
            self._write_zeroes(offset_bytes, head)
        if tail:
            self._write_zeroes(offset_bytes + head + inner, tail)
        return True

    def _write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        end = offset_bytes + length_bytes
        for at in range(offset_bytes, end, ZERO_PIECE_BYTES_MAX):
            piece = _ZEROES[: min(ZERO_PIECE_BYTES_MAX, end - at)]
            self.write(at, piece, len(piece))

    def _extent_at(self, at: int, end: int) -> tuple[int, int]:
        """Return kind and end of the extent that begins at `at`, cut at `end`."""
        try:
            data = os.lseek(self.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return EXTENT_DATA, end
            return EXTENT_HOLE, end
        if data > at:
            return EXTENT_HOLE, min(data, end)
        return EXTENT_DATA, min(max(os.lseek(self.fd, at, os.SEEK_HOLE), at + 1), end)


def _behind(pieces: list[memoryview], done: int) -> list[memoryview]:
    """Return `pieces` without their first `done` bytes."""
    for index, piece in enumerate(pieces):
        if done < len(piece):
            return [piece[done:], *pieces[index + 1 :]]
        done -= len(piece)
    return []


def _fallocate(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> bool:
    """Call fallocate; False if file system or device can't do it. Raises OSError for every other failure."""
    while _libc.fallocate(fd, mode, offset_bytes, length_bytes):
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def _ioctl_int(fd: int, request: int) -> int:
    return struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0]
