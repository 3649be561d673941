"""What a check sees of the machine: a volume served by NBD as a block device, and as a mounted filesystem; and its end.

Used by the keeper's process alone (`recovery.keeper`), which has one thread. nbdfuse shows the volume as a file, losetup makes a block
device of it, mount does the rest. `clear` undoes everything in the opposite order, whatever state it is in, and touches nothing that is
not this stage's: a folder is unmounted only if it is a mount point, a loop device detached only while it stands over the stage's own
file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

READY_S_MAX = 20.0
COMMAND_S_MAX = 60.0
UMOUNT_S_MAX = 10.0
END_S = 3.0
POLL_S = 0.01
DISK = "disk"


class StageError(Exception):
    """Something of the volume can't be shown; the text is what the program said."""


class Stage:
    """A folder with the volume in it: `nbd/disk` as a file, `mount` as a filesystem."""

    def __init__(self, folder: Path, uri: str, environment: dict[str, str], *, is_root: bool) -> None:
        self.uri = uri
        self._folder = folder
        self._environment = environment
        self._is_root = is_root
        self._fuse = folder / "nbd"
        self._mount = folder / "mount"
        self._pidfile = folder / "nbdfuse.pid"
        self._nbdfuse: subprocess.Popen[bytes] | None = None
        self._loop = ""
        self._filesystem = ""

    @property
    def processes(self) -> set[int]:
        """Return the processes that belong to the stage."""
        return set() if self._nbdfuse is None else {self._nbdfuse.pid}

    def device(self) -> str:
        """Return the volume's block device; without root, its file. Raises StageError."""
        file = self._file()
        if self._is_root and not self._loop:
            self._loop = self._run("losetup", "--find", "--show", str(file)).strip()
        return self._loop or str(file)

    def mount(self) -> str:
        """Return where the filesystem is mounted. Raises StageError with what mount said."""
        if not self._filesystem:
            device = self.device()
            self._mount.mkdir(exist_ok=True)
            if _is_mountpoint(self._mount):
                raise StageError(f"{self._mount} is a mount point already")
            kind = self._run("blkid", "-p", "-o", "value", "-s", "TYPE", device, allowed=(0, 2)).strip()
            options = ["-o", "nouuid"] if kind == "xfs" else []  # the volume that it is an image of may be mounted as well
            self._run("mount", *options, device, str(self._mount))
            self._filesystem = kind or "unknown"
        return str(self._mount)

    def unmount(self, end_users: Callable[[], int]) -> None:
        """Unmount; `end_users` ends what a check has left running. Raises StageError if it stays busy."""
        said = ""
        ends_s = time.monotonic() + UMOUNT_S_MAX
        while _is_mountpoint(self._mount):
            end_users()
            try:
                self._run("umount", str(self._mount))
            except StageError as error:
                said = str(error)
                if time.monotonic() > ends_s:
                    self._run("umount", "--lazy", str(self._mount))
                    raise StageError(f"the filesystem stays busy: {said}") from error
                time.sleep(POLL_S * 10)
        self._filesystem = ""

    def clear(self, end_users: Callable[[], int]) -> list[str]:
        """Undo everything; return what went wrong, empty if all is gone."""
        problems = []
        for step in (lambda: self.unmount(end_users), self._detach, self._end_nbdfuse):
            try:
                step()
            except (StageError, OSError, subprocess.TimeoutExpired) as error:
                problems.append(str(error))
        return problems

    def remove_folder(self) -> None:
        """Remove the folder and what may lie in it by right. What is not empty stays: nothing is removed below a mount."""
        for folder in (self._mount, self._fuse):
            with contextlib.suppress(OSError):
                folder.rmdir()
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if not path.is_dir():
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _file(self) -> Path:
        """Return the file that nbdfuse shows, starting it if it does not run."""
        file = self._fuse / DISK
        if self._nbdfuse is not None:
            return file
        self._fuse.mkdir(exist_ok=True)
        self._pidfile.unlink(missing_ok=True)
        command = ["nbdfuse", "--pidfile", str(self._pidfile), str(file), self.uri]
        self._nbdfuse = subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            self._await(self._nbdfuse)
        except StageError:
            self._end_nbdfuse()  # else the next check would take it for shown
            raise
        return file

    def _await(self, nbdfuse: subprocess.Popen[bytes]) -> None:
        """Return when the file is there. Raises StageError."""
        ends_s = time.monotonic() + READY_S_MAX
        while not self._pidfile.exists():
            if nbdfuse.poll() is not None:
                assert nbdfuse.stderr is not None
                raise StageError(f"nbdfuse ended: {nbdfuse.stderr.read().decode(errors='replace').strip()}")
            if time.monotonic() > ends_s:
                raise StageError(f"nbdfuse is not ready after {READY_S_MAX:.0f} s")
            time.sleep(POLL_S)

    def _detach(self) -> None:
        """Detach every loop device over the stage's file, one that nobody was told of too."""
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().strip() == str(self._fuse / DISK):
                    self._run("losetup", "--detach", f"/dev/{backing.parent.parent.name}")
        self._loop = ""

    def _end_nbdfuse(self) -> None:
        process, self._nbdfuse = self._nbdfuse, None
        if _is_mountpoint(self._fuse):
            with contextlib.suppress(StageError):
                self._run("fusermount3", "-u", "-z", str(self._fuse))
        if process is None:
            self._end_foreign()
            return
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            if number:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
                break
        if process.stderr is not None:
            process.stderr.close()

    def _end_foreign(self) -> None:
        """End an nbdfuse that a keeper started who was killed; the unmount asked it to end already."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pidfile.read_text())
            for number in (0, signal.SIGTERM, signal.SIGKILL):
                ends_s = time.monotonic() + END_S
                while str(self._fuse).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    if number:
                        os.kill(pid, number)
                    if time.monotonic() > ends_s:
                        break
                    time.sleep(POLL_S)
                else:
                    return

    def _run(self, *command: str, allowed: tuple[int, ...] = (0,)) -> str:
        try:
            done = subprocess.run(
                command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S_MAX, check=False
            )
        except FileNotFoundError as error:
            raise StageError(f"{command[0]} can't be found") from error
        except subprocess.TimeoutExpired as error:
            raise StageError(f"{command[0]} takes longer than {COMMAND_S_MAX:.0f} s") from error
        if done.returncode not in allowed:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise StageError(f"{command[0]}: {said or f'exit code {done.returncode}'}")
        return done.stdout.decode(errors="replace")


def _is_mountpoint(folder: Path) -> bool:
    """Ask the kernel's list, which does not hang as a look into a broken mount may."""
    place = os.path.realpath(folder.parent) + "/" + folder.name
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(_unescaped(line.split(" ")[4]) == place for line in mounts)


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
