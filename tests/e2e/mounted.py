"""A filesystem on a loop device on nbdfuse on an export, as a user without a kernel NBD client has it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

READY_S_MAX = 60
COMMAND_S_MAX = 200


class Mounted:
    """Mounted while inside; `path` is the mount."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.path = folder / "mnt"
        self._fuse, self._uri = folder / "fuse", uri
        self._loop = ""

    def __enter__(self) -> Path:
        self._fuse.mkdir()
        self.path.mkdir()
        file = self._fuse / "volume"
        self._process = subprocess.Popen(["nbdfuse", str(file), self._uri])
        ends_s = time.monotonic() + READY_S_MAX
        while not file.exists():
            assert time.monotonic() < ends_s and self._process.poll() is None, "nbdfuse does not come up"
            time.sleep(0.02)
        self._loop = run("losetup", "--find", "--show", str(file)).strip()
        run("mount", self._loop, str(self.path))
        return self.path

    def __exit__(self, *_: object) -> None:
        if os.path.ismount(self.path):
            run("umount", str(self.path))
        if self._loop:
            run("losetup", "--detach", self._loop)
        run("fusermount3", "-u", str(self._fuse))
        self._process.wait(READY_S_MAX)


def run(*command: str) -> str:
    """Run a program, which must do well; return what it says."""
    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout
