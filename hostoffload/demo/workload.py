"""How the demo writes to the protected volume: through a mounted filesystem if it can, else by its own NBD client.

Mounted: nbdfuse makes the export a file, a loop device makes it a disk, ext4 is mounted on it and real files are written,
deleted and trimmed. That takes root, nbdfuse and loop devices. Otherwise the same kind of change is made to a copy of the
filesystem, and every block that differs is sent to the export by `nbd.client`, in order.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from hostoffload.demo.filesystem import change_offline, make_files
from nbd.client import Client
from stream.errors import ConfigError

BLOCK_BYTES = 4096
READY_S_MAX = 10.0


def can_mount() -> str | None:
    """Return None if a filesystem can be mounted here, else why not."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("nbdfuse", "mount", "umount", "losetup", "fstrim"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists():
        return "no FUSE or loop devices"
    return None


class MountedWorkload:
    """Write through ext4 on a loop device on nbdfuse on the export; `close` takes everything down again, in any state."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._fuse_dir, self._mount_dir = folder / "fuse", folder / "mnt"
        self._uri = uri
        self._nbdfuse: subprocess.Popen[bytes] | None = None
        self._loop = ""

    def open(self) -> None:
        """Mount. Raises ConfigError when a step fails."""
        self._fuse_dir.mkdir()
        self._mount_dir.mkdir()
        file = self._fuse_dir / "volume"
        self._nbdfuse = subprocess.Popen(["nbdfuse", str(file), self._uri], stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + READY_S_MAX
        while not file.exists():
            if self._nbdfuse.poll() is not None or time.monotonic() > deadline_s:
                raise ConfigError("nbdfuse does not come up", hint="Is FUSE allowed here? Without it the demo uses its own NBD client.")
            time.sleep(0.05)
        self._loop = _output(["losetup", "--find", "--show", str(file)])
        _output(["mount", self._loop, str(self._mount_dir)])

    def write(self, round_number: int) -> None:
        """Write a folder of files, sync; delete an older one and give its space back."""
        place = self._mount_dir / f"round-{round_number}"
        make_files(place, 40, round_number)
        old = self._mount_dir / f"round-{round_number - 2}"
        if old.exists():
            shutil.rmtree(old)
        fd = os.open(self._mount_dir, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        if round_number % 2 and os.path.ismount(self._mount_dir):
            _output(["fstrim", str(self._mount_dir)])

    def close(self) -> None:
        """Unmount, detach, end nbdfuse; each only if it is there."""
        if os.path.ismount(self._mount_dir):
            _output(["umount", str(self._mount_dir)])
        if self._loop:
            _output(["losetup", "--detach", self._loop])
            self._loop = ""
        if self._nbdfuse is not None:
            if os.path.ismount(self._fuse_dir):
                subprocess.run(["fusermount3", "-u", str(self._fuse_dir)], check=False, capture_output=True)
            try:
                self._nbdfuse.wait(READY_S_MAX)
            except subprocess.TimeoutExpired:
                self._nbdfuse.kill()
                self._nbdfuse.wait()
            self._nbdfuse = None


class ClientWorkload:
    """Make each change to a copy of the filesystem, then send the blocks that differ through the project's own NBD client."""

    def __init__(self, folder: Path, uri: str, programs: dict[str, str], source: Path) -> None:
        self._folder, self._uri, self._programs = folder, uri, programs
        self._before, self._after = folder / "before.img", folder / "after.img"
        self._client: Client | None = None
        shutil.copyfile(source, self._before)

    def open(self) -> None:
        self._client = Client(self._uri)

    def write(self, round_number: int) -> None:
        """Change the copy, send what differs, flush."""
        files = self._folder / f"round-{round_number}"
        make_files(files, 20, round_number)
        shutil.copyfile(self._before, self._after)
        names = [str(path.relative_to(files)) for path in sorted(files.rglob("file-*"))]
        change_offline(self._programs, self._after, files, names)
        self._client.write_all(self._changed_blocks())
        self._client.flush()
        shutil.move(self._after, self._before)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _changed_blocks(self):
        with open(self._before, "rb") as old, open(self._after, "rb") as new:
            at = 0
            while block := new.read(BLOCK_BYTES):
                if old.read(BLOCK_BYTES) != block:
                    yield at, block
                at += len(block)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"{' '.join(command[:2])} failed: {done.stderr.strip()}", hint="Without a mount the demo uses its own NBD client."
        )
    return done.stdout.strip()
