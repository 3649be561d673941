"""The source volume: opened for one agent alone, and recognised again.

The lock on the file or device (flock) lives as long as the process; a second agent is refused and told who holds it. The
identity (inode, size, modification time) says whether somebody wrote to the source while no agent ran.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from nbd.blockfile import BlockFile
from stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What tells that a source is the one it was, untouched: a device has no modification time, its number stands for the inode."""

    inode: int
    size_bytes: int
    mtime_ns: int


class Source:
    """The opened and locked source; `file` does the reading and writing."""

    def __init__(self, path: str) -> None:
        """Open and lock. Raises ConfigError: missing, not a volume, empty, not writable, or held by another process."""
        try:
            self.file = BlockFile(path)
        except OSError as error:
            raise ConfigError(
                f"The source {path} can't be opened: {error.strerror}",
                hint="It must be an existing regular file or block device that this user may write.",
                path=path,
            ) from error
        try:
            fcntl.flock(self.file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = lock_holder(self.file.fd)
            self.file.close()
            raise ConfigError(
                f"The source {path} is held by {holder}",
                hint="One agent serves a source. Stop the other one first.",
                path=path,
            ) from error
        self.size_bytes = self.file.measure()
        if self.size_bytes == 0:
            self.file.close()
            raise ConfigError(f"The source {path} is empty", hint="Make it its full size first, for example with truncate.", path=path)

    def identity(self) -> SourceIdentity:
        """Return what it is now; flush first, if the modification time is to be final."""
        found = os.fstat(self.file.fd)
        if self.file.is_device:
            return SourceIdentity(found.st_rdev, self.file.measure(), 0)
        return SourceIdentity(found.st_ino, found.st_size, found.st_mtime_ns)

    def close(self) -> None:
        self.file.close()


def lock_holder(fd: int) -> str:
    """Return who holds the flock on this file, as far as /proc/locks tells (proc(5))."""
    found = os.fstat(fd)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[1] == "FLOCK" and columns[5] == wanted:
            pid = columns[4]
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                command = "unknown command"
            return f"process {pid} ({command[:160]})"
    return "another process"


def lock_file(path: Path, what: str) -> int:
    """Lock a file of the state folder for the life of this process; return its descriptor. Raises ConfigError with the holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = lock_holder(fd)
        os.close(fd)
        raise ConfigError(f"{what} is held by {holder}", hint="Stop that one first, or use another --state.") from error
    return fd
