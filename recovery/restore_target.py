"""Where a restore goes: a regular file that appears under its name when it is whole, or a block device that is overwritten.

A file is written as `<name>.restoring` in the same folder and gets its name by a link or a rename once all of it is proved, so an existing
file is whole until the moment it is replaced. A device is written in place, held exclusively (O_EXCL), so one that is mounted or
otherwise in use is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path

from history.store import fsync_folder
from nbd.blockfile import BlockFile
from stream.errors import ConfigError, RetryError

UNFINISHED = ".restoring"
JOURNAL = ".journal"
_IN_USE = frozenset((errno.EBUSY, errno.EAGAIN))


class RestoreTarget:
    """A checked target. `open` gives the volume to write; `finish` or `give_up` ends it."""

    def __init__(self, path: Path, size_bytes: int, *, force: bool, journal_dir: Path | None = None) -> None:
        """Check that a volume of that size may be written to `path`; nothing is changed. `journal_dir` is for devices, which have no folder
        that lasts. Raises ConfigError: exists and not `force`, no such folder, too small; RetryError: in use."""
        self.path = Path(os.path.realpath(path))
        self.size_bytes = size_bytes
        self._replaces = self.path.exists()
        self._held = -1
        if not self.path.parent.is_dir():
            raise ConfigError(f"There is no folder {self.path.parent}", hint="Make it, or name another path.")
        if self.path.is_dir():
            raise ConfigError(f"{path} is a folder", hint="Name the file that is to be made in it.")
        if self._replaces and not force:
            raise ConfigError(f"{path} exists already", hint="Name another path, or say --force to have it replaced.")
        self.is_device = self.path.is_block_device()
        if self._replaces and not self.is_device and not self.path.is_file():
            raise ConfigError(f"{path} is neither a regular file nor a block device", hint="Name another path.")
        self.unfinished = self.path if self.is_device else self.path.with_name(self.path.name + UNFINISHED)
        beside = self.path if journal_dir is None or not self.is_device else journal_dir / self.path.name
        self.journal_path = beside.with_name(beside.name + UNFINISHED + JOURNAL)
        if not self.is_device and not self.journal_path.exists() and self.unfinished.exists() and self.unfinished.stat().st_size:
            raise ConfigError(f"{self.unfinished} stands in the way", hint="No restore left it there; move it away.")
        if self._replaces:
            self._hold()

    def identity(self) -> dict[str, object]:
        """Return what tells this target from another that has its name later; of a file, the unfinished one must exist."""
        found = os.stat(self.unfinished)
        return {"device": found.st_rdev if self.is_device else found.st_dev, "inode": 0 if self.is_device else found.st_ino}

    def open(self, *, anew: bool) -> BlockFile:
        """Open the volume for writing, at its size; `anew`: a file is begun as one hole. Raises OSError, RetryError: in use."""
        if self.is_device:
            self.close()  # the kernel lets one alone have it
            return open_alone(self.unfinished)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if anew else 0)
        fd = os.open(self.unfinished, flags, 0o600)
        try:
            os.ftruncate(fd, self.size_bytes)
        finally:
            os.close(fd)
        return BlockFile(self.unfinished)

    def finish(self) -> None:
        """Give a proved and durable file its name, atomically; a file that is replaced hands down owner and mode.

        Raises ConfigError if something appeared under the name meanwhile.
        """
        if self.is_device:
            return
        if self._replaces:
            before = os.stat(self.path)
            os.chmod(self.unfinished, stat.S_IMODE(before.st_mode))
            if os.geteuid() == 0:
                os.chown(self.unfinished, before.st_uid, before.st_gid)
            os.replace(self.unfinished, self.path)
        else:
            self._link()
        fsync_folder(self.path.parent)

    def give_up(self) -> None:
        """Remove an unfinished file. What a device holds then is neither what it held nor what was wanted."""
        if not self.is_device:
            with suppress(FileNotFoundError):
                self.unfinished.unlink()

    def close(self) -> None:
        """Let go of the target. May be called twice."""
        if self._held >= 0:
            os.close(self._held)
        self._held = -1

    def _hold(self) -> None:
        """Refuse what somebody uses: a device that is mounted, a file that an agent or a target has locked."""
        exclusive = os.O_EXCL if self.is_device else 0
        try:
            self._held = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | exclusive)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            measured = os.lseek(self._held, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            if error.errno in _IN_USE:
                raise _in_use(self.path, error) from error
            raise ConfigError(f"{self.path} can't be written: {error.strerror}", hint="Check the rights of this user there.") from error
        if self.is_device and measured < self.size_bytes:
            self.close()
            raise ConfigError(f"{self.path} has {measured} bytes, the volume needs {self.size_bytes}", hint="Name a larger device.")

    def _link(self) -> None:
        try:
            os.link(self.unfinished, self.path)
        except FileExistsError as error:
            raise ConfigError(f"{self.path} appeared meanwhile", hint=f"What was restored stands in {self.unfinished}.") from error
        except OSError:
            if self.path.exists():
                raise ConfigError(f"{self.path} appeared meanwhile", hint=f"What was restored stands in {self.unfinished}.") from None
            os.rename(self.unfinished, self.path)  # a file system without links
        else:
            self.unfinished.unlink()


def open_alone(path: Path) -> BlockFile:
    """Open a file or device for writing that nobody else uses, and that nobody takes for a source or a replica meanwhile.

    Raises RetryError: in use, that is mounted, or locked by an agent, a target or a restore; OSError.
    """
    file: BlockFile | None = None
    try:
        file = BlockFile(path, exclusive=True)
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if file is not None:
            file.close()
        raise _in_use(path, error) if error.errno in _IN_USE else error from error
    return file


def _in_use(path: Path, error: OSError) -> RetryError:
    hint = "Unmount it, or pause the volume (`hostoffload volume pause`), and try again."
    return RetryError(f"{path} is in use", hint=hint, errno=error.errno)
