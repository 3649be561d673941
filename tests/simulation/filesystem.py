"""Stand-ins for `os`, `mmap`, `fcntl` and `select`: one tree of paths for all machines, each first folder a machine's own disk.

`/<machine>/ram/...` is that machine's shared memory. Names are journaled as a file system with ordered metadata does it: changes of names
that no fsync followed are lost from some point on when the power goes. A process that ends lets go of its descriptors and locks.
"""

from __future__ import annotations

import errno
import os as real_os
import stat
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from tests.simulation.disk import Inode, Mapping, refuse
from tests.simulation.scheduler import Process, Scheduler

PUNCH_HOLE = 0x02
_HIT_SHARE = 0.7


class Handle:
    """An open file; `path` is where it was opened."""

    __slots__ = ("at", "errors", "inode", "nonblocking", "path", "process")

    def __init__(self, inode: Inode | None, path: str, process: Process | None, nonblocking: bool) -> None:
        self.inode = inode
        self.path = path
        self.process = process
        self.at = 0
        self.errors = inode.errors if inode is not None else 0  # that this open file was told
        self.nonblocking = nonblocking


class _Anonymous(bytearray):
    """Mapped memory without a file."""

    def close(self) -> None:
        """It goes when nobody looks at it any more."""


class Volume:
    """One machine's disk: names as everybody sees them, and as the disk has them."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.stable: dict[str, Inode] = {}
        self.pending: list[tuple[str, Inode | None]] = []

    def name(self, path: str, inode: Inode | None) -> None:
        """Give a name, or take it away."""
        if inode is None:
            del self.names[path]
        else:
            self.names[path] = inode
        if inode is None or not inode.ram:
            self.pending.append((path, inode))

    def commit(self) -> None:
        """Bring all changes of names to the disk."""
        self._apply(len(self.pending))

    def lose_power(self, rng: Any) -> None:
        if self.pending:
            self._apply(rng.randint(0, len(self.pending)))
        for inode in {id(one): one for one in self.names.values()}.values():
            inode.holder = None
            if inode.ram:
                inode.lose_power(rng)
        self.names = {path: inode for path, inode in self.stable.items() if not inode.ram}
        for inode in {id(one): one for one in self.names.values()}.values():
            inode.lose_power(rng)

    def _apply(self, count: int) -> None:
        for path, inode in self.pending[:count]:
            if inode is None:
                self.stable.pop(path, None)
            else:
                self.stable[path] = inode
        self.pending.clear()


class FileSystem:
    """What `import os` gives the product in this run. What is not here is the real `os`, if it is a constant or without effect."""

    _PLAIN = frozenset(("fspath", "strerror", "major", "minor", "path", "getuid", "geteuid", "environ", "PathLike", "name"))

    def __init__(self, scheduler: Scheduler, now_ns: Callable[[], int]) -> None:
        self._scheduler = scheduler
        self._now_ns = now_ns
        self.volumes: dict[str, Volume] = {}
        self.folders: set[str] = {"/", "/proc"}
        self._handles: dict[int, Handle] = {}
        self._next_fd = 100
        self._next_inode = 1000
        self.fsynced: Callable[[str], None] = lambda folder: None
        self.full: set[str] = set()  # folders in which nothing new has room
        self.slow_share = 1.0

    def __getattr__(self, name: str) -> Any:
        if name.isupper() or name in self._PLAIN:
            return getattr(real_os, name)
        raise AttributeError(f"the simulation has no os.{name}")

    # -- names ---------------------------------------------------------------------------------------------------------

    def volume(self, path: str) -> Volume:
        return self.volumes.setdefault(path.split("/")[1], Volume())

    def lookup(self, path: Any) -> Inode:
        path = real_os.fspath(path)
        inode = self.volume(path).names.get(path)
        if inode is None:
            raise refuse(errno.EISDIR if path in self.folders else errno.ENOENT, path)
        return inode

    def create(self, path: str, mode: int = 0o600) -> Inode:
        if path.rpartition("/")[0] not in self.folders:
            raise refuse(errno.ENOENT, path)
        if any(path.startswith(folder) for folder in self.full):
            raise refuse(errno.ENOSPC, path)
        self._next_inode += 1
        inode = Inode(self._next_inode, path.split("/")[2:3] == ["ram"], stat.S_IFREG | mode)
        inode.mtime_ns = self._now_ns()
        self.volume(path).name(path, inode)
        return inode

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        self._scheduler.point()
        path = real_os.fspath(path)
        if path in self.folders:
            return self._handle(None, path, flags)
        inode = self.volume(path).names.get(path)
        if inode is None:
            if not flags & real_os.O_CREAT:
                raise refuse(errno.ENOENT, path)
            inode = self.create(path, mode)
        elif flags & real_os.O_CREAT and flags & real_os.O_EXCL:
            raise refuse(errno.EEXIST, path)
        if flags & real_os.O_TRUNC:
            inode.resize(0)
        return self._handle(inode, path, flags)

    def close(self, fd: int) -> None:
        handle = self._handles.pop(fd, None)
        if handle is None:
            raise refuse(errno.EBADF, str(fd))
        if handle.inode is not None and handle.inode.holder is handle:
            handle.inode.holder = None

    def rename(self, old: Any, new: Any) -> None:
        self._scheduler.point()
        old, new = real_os.fspath(old), real_os.fspath(new)
        inode = self.lookup(old)
        volume = self.volume(old)
        there = volume.names.get(new)
        if there is not None:
            there.links -= 1
        volume.name(new, inode)
        volume.name(old, None)

    replace = rename

    def unlink(self, path: Any) -> None:
        self._scheduler.point()
        path = real_os.fspath(path)
        self.lookup(path).links -= 1
        self.volume(path).name(path, None)

    def mkfifo(self, path: Any, mode: int = 0o666) -> None:
        path = real_os.fspath(path)
        if path in self.volume(path).names:
            raise refuse(errno.EEXIST, path)
        self.create(path, mode).mode = stat.S_IFIFO | mode

    def rmdir(self, path: Any) -> None:
        path = real_os.fspath(path)
        if self.listing(path):
            raise refuse(errno.ENOTEMPTY, path)
        self.folders.discard(path)

    def listing(self, folder: str) -> list[str]:
        return sorted(path for path in self.volume(folder).names if path.rpartition("/")[0] == folder)

    def lose_power(self, machine: str) -> None:
        """Do to a machine's disks what a power cut does; its memory is empty afterwards."""
        self.volumes[machine].lose_power(self._scheduler.rng)
        ram = f"/{machine}/ram/"
        self.folders = {folder for folder in self.folders if not folder.startswith(ram)}

    # -- reading and writing -------------------------------------------------------------------------------------------

    def read(self, fd: int, size: int) -> bytes:
        handle = self._of(fd)
        inode = handle.inode
        if stat.S_ISFIFO(inode.mode):
            if not inode.bell:
                raise refuse(errno.EAGAIN, handle.path)
            inode.bell = 0
            return b"!"
        found = bytes(inode.data[handle.at : handle.at + size])
        handle.at += len(found)
        return found

    def write(self, fd: int, data: Any) -> int:
        handle = self._of(fd)
        inode = handle.inode
        if stat.S_ISFIFO(inode.mode):
            inode.bell = 1
            ringers, inode.ringers = inode.ringers, []
            for task in ringers:
                self._scheduler.wake(task)
            self._scheduler.point()
            return len(data)
        done = self.pwrite(fd, data, handle.at)
        handle.at += done
        return done

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self.pwritev(fd, [data], offset)

    def pwritev(self, fd: int, pieces: Iterable[Any], offset: int, flags: int = 0) -> int:
        handle = self._of(fd)
        data = b"".join(pieces)
        inode = handle.inode
        self._busy(inode, 0.0002)
        data = data[: self._allowed(inode, handle.path, "write", len(data))]
        if any(handle.path.startswith(folder) for folder in self.full) and offset + len(data) > len(inode.data):
            raise refuse(errno.ENOSPC, handle.path)
        cut = 0
        if len(data) > 4096 and self._scheduler.rng.random() < 0.3:
            cut = int(self._scheduler.rng.random() * (len(data) // 512)) * 512
            inode.put(offset, data[:cut])
            self._scheduler.point()
        inode.put(offset + cut, data[cut:])
        inode.mtime_ns = self._now_ns()
        if flags & real_os.RWF_DSYNC:
            self._sync(handle, lambda: inode.flush_extent(offset, offset + len(data)))
        return len(data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        into = bytearray(size)
        return bytes(into[: self.preadv(fd, [into], offset)])

    def preadv(self, fd: int, views: list[Any], offset: int, flags: int = 0) -> int:
        handle = self._of(fd)
        inode = handle.inode
        if flags & real_os.RWF_NOWAIT and self._scheduler.rng.random() > _HIT_SHARE:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache", handle.path)
        if not flags & real_os.RWF_NOWAIT:
            self._busy(inode, 0.0005)
        code = inode.faults.take("read")
        if code:
            raise refuse(code, handle.path)
        done = 0
        for view in views:
            piece = inode.data[offset + done : offset + done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
            if len(piece) < len(view):
                break
        return done

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        inode = self._of(fd).inode
        wanted = 1 if whence == real_os.SEEK_DATA else 0
        assert whence in (real_os.SEEK_DATA, real_os.SEEK_HOLE), "only holes and data are sought here"
        block = offset // 4096
        while block < len(inode.mapped) and inode.mapped[block] != wanted:
            block += 1
        if block >= len(inode.mapped):
            if wanted:
                raise refuse(errno.ENXIO, "")
            return len(inode.data)
        return max(offset, block * 4096)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        """Stand in for `nbd.blockfile._fallocate`."""
        handle = self._of(fd)
        inode = handle.inode
        if not inode.punches:
            return False
        self._busy(inode, 0.0002)
        code = inode.faults.take("zero")
        if code:
            inode.wipe(offset, length // 2 // 512 * 512, punch=bool(mode & PUNCH_HOLE))
            raise refuse(code, handle.path)
        inode.wipe(offset, length, punch=bool(mode & PUNCH_HOLE))
        inode.mtime_ns = self._now_ns()
        return True

    def ftruncate(self, fd: int, size: int) -> None:
        self._scheduler.point()
        self._of(fd).inode.resize(size)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        handle = self._of(fd)
        if any(handle.path.startswith(folder) for folder in self.full):
            raise refuse(errno.ENOSPC, handle.path)
        handle.inode.resize(max(len(handle.inode.data), offset + length))

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        """Drop what is clean, if that is the advice."""
        if advice == real_os.POSIX_FADV_DONTNEED:
            self._of(fd).inode.forget(offset, offset + length)

    def fsync(self, fd: int) -> None:
        handle = self._of(fd)
        if handle.inode is None:
            self._scheduler.point()
            self.volume(handle.path).commit()
            self.fsynced(handle.path)
        else:
            self._sync(handle, handle.inode.flush)

    fdatasync = fsync

    # -- facts ---------------------------------------------------------------------------------------------------------

    def fstat(self, fd: int) -> SimpleNamespace:
        return self._stat(self._of(fd).inode)

    def stat(self, path: Any) -> SimpleNamespace:
        path = real_os.fspath(path)
        return self._stat(None if path in self.folders else self.lookup(path))

    def utime(self, fd: int, *, ns: tuple[int, int]) -> None:
        self._of(fd).inode.mtime_ns = ns[1]

    def getpid(self) -> int:
        current = self._scheduler.current
        return 0 if current is None else self._scheduler.processes.index(current.process) + 2

    def dup2(self, fd: int, fd2: int, inheritable: bool = True) -> int:
        self._handles[fd2] = self._of(fd)
        return fd2

    # -- fcntl, select, mmap -------------------------------------------------------------------------------------------

    def flock(self, fd: int, operation: int) -> None:
        handle = self._of(fd)
        holder = handle.inode.holder
        if holder is not None and holder is not handle:
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        handle.inode.holder = handle

    def poll(self) -> SimpleNamespace:
        """Stand in for `select.poll`, for FIFOs."""
        fds: list[int] = []

        def wait(timeout_ms: float) -> list[tuple[int, int]]:
            inode = self._of(fds[0]).inode
            self._scheduler.point()
            if not inode.bell:
                task = self._scheduler.current
                inode.ringers.append(task)
                self._scheduler.park("bell", timeout_ms / 1000)
                if task in inode.ringers:
                    inode.ringers.remove(task)
            return [(fds[0], 1)] if inode.bell else []

        return SimpleNamespace(register=lambda fd, mask: fds.append(fd), poll=wait)

    def mmap(self, fd: int, size: int) -> Mapping | _Anonymous:
        return _Anonymous(size) if fd < 0 else self._of(fd).inode.data

    # -- inside --------------------------------------------------------------------------------------------------------

    def _handle(self, inode: Inode | None, path: str, flags: int) -> int:
        current = self._scheduler.current
        process = current.process if current is not None else None
        handle = Handle(inode, path, process, bool(flags & real_os.O_NONBLOCK))
        self._next_fd += 1
        fd = self._next_fd
        self._handles[fd] = handle
        if process is not None:
            process.closers.append(lambda: self._let_go(fd))
        return fd

    def _let_go(self, fd: int) -> None:
        if fd in self._handles:
            self.close(fd)

    def _of(self, fd: int) -> Handle:
        handle = self._handles.get(fd)
        if handle is None:
            raise refuse(errno.EBADF, str(fd))
        return handle

    def _stat(self, inode: Inode | None) -> SimpleNamespace:
        if inode is None:
            return SimpleNamespace(st_ino=1, st_size=0, st_mode=stat.S_IFDIR | 0o700, st_uid=real_os.getuid(), st_mtime_ns=0, st_nlink=2)
        return SimpleNamespace(
            st_ino=inode.number, st_size=len(inode.data), st_mode=inode.mode, st_uid=real_os.getuid(), st_gid=0, st_dev=1, st_rdev=0,
            st_mtime_ns=inode.mtime_ns, st_atime_ns=inode.mtime_ns,
            st_mtime=inode.mtime_ns / 1e9, st_nlink=inode.links, st_blocks=sum(inode.mapped) * 8,
        )  # fmt: skip

    def _busy(self, inode: Inode, usual_s: float) -> None:
        """Take the time of one operation of a disk; mostly the cache answers."""
        scheduler = self._scheduler
        scheduler.point()
        if inode.ram:
            return
        if inode.faults.slow_s:
            scheduler.sleep(inode.faults.slow_s * scheduler.rng.random(), "slow disk")
        elif scheduler.rng.random() < 0.1:
            scheduler.sleep(usual_s * scheduler.rng.expovariate(1.0), "disk")

    def _allowed(self, inode: Inode, path: str, what: str, size: int) -> int:
        """Return how much of a write is taken: a full disk takes some and then refuses."""
        code = inode.faults.take(what)
        if not code:
            return size
        taken = int(self._scheduler.rng.random() * (size // 512)) * 512 if code == errno.ENOSPC else 0
        if taken:
            inode.faults.planned[what].insert(0, -code)  # the rest of the write is refused
            return taken
        raise refuse(abs(code), path)

    def _sync(self, handle: Handle, flush: Callable[[], None]) -> None:
        """Flush, or fail; each open file hears once of a flush that failed, whoever asked for it."""
        scheduler, inode = self._scheduler, handle.inode
        scheduler.point()
        if not inode.ram:
            scheduler.sleep(0.0003 * scheduler.rng.expovariate(1.0) + inode.faults.slow_s * 3 * scheduler.rng.random(), "flush")
        code = inode.faults.take("sync")
        if code:
            inode.fail_flush()
        if handle.errors < inode.errors:
            handle.errors = inode.errors
            raise refuse(code or errno.EIO, handle.path)
        flush()
        if not inode.ram:
            self.volume(handle.path).commit()
