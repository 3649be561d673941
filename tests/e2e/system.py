"""A running hostoffload for end-to-end tests, driven only by its command line, as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hostoffload import layout

COMMAND_S_MAX = 330
PIECE_BYTES = 1 << 20


class System:
    """`up` on a state folder of its own; `down` at the end leaves nothing running."""

    def __init__(self, folder: Path, *, bootstrap: str | None = None, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._options = [f"--bootstrap={bootstrap}"] if bootstrap else []
        self.environment = {**os.environ, "HOSTOFFLOAD_STATE": str(self.state), **(environment or {})}

    def run(self, *arguments: object, code: int = 0) -> str:
        """Run a command and return its stdout; the exit code must be the expected one."""
        done = subprocess.run(
            [sys.executable, "-m", "hostoffload", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
            env=self.environment,
        )
        assert done.returncode == code, f"hostoffload {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout.strip()

    def up(self) -> None:
        self.run("up", *self._options)

    def down(self) -> None:
        self.run("down")

    def add(self, name: str, source: Path, *options: str) -> str:
        """Protect a source; return the URI. The replica lies beside it."""
        return self.run("volume", "add", name, "--source", source, "--replica", self.replica(source), *options).splitlines()[-1]

    @staticmethod
    def replica(source: Path) -> Path:
        return source.with_suffix(".replica")

    def status(self, name: str) -> dict:
        return json.loads(self.run("status", name, "--json"))["volumes"][0]

    def processes(self, kind: str) -> list[dict]:
        return [one for one in json.loads(self.run("status", "--json"))["processes"] if one["kind"] == kind]

    def wait_in_sync(self, name: str, timeout_s: float = 300) -> dict:
        self.run("wait", name, "--in-sync", "--timeout", timeout_s)
        return self.status(name)

    def check_equal(self, name: str, source: Path, *, captured: bool = True) -> dict:
        """Wait until in sync, then compare every byte; `captured`: something must have gone through the agent."""
        status = self.wait_in_sync(name)
        assert status["mode"] == "DATA", status
        if captured:
            assert status["captured_bytes"] > 0, "nothing went through the agent"
        assert first_difference(source, self.replica(source)) is None
        return status


@contextlib.contextmanager
def running(folder: Path, **options: object) -> Iterator[System]:
    """Bring a system up and down around a test, keeping its logs' last lines for a failure."""
    system = System(folder, **options)
    try:
        system.up()
        yield system
    except BaseException:
        for log in sorted((system.state / "log").glob("*.log")):
            print(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-25:]))
        raise
    finally:
        system.down()
        shutil.rmtree(layout.ring_dir(system.state, "/dev/shm"), ignore_errors=True)  # kept for a next `up`, the broker being another's
        shutil.rmtree(folder, ignore_errors=True)


def first_difference(one: Path, other: Path) -> int | None:
    """Return the first offset at which two files differ, None if they are equal."""
    if one.stat().st_size != other.stat().st_size:
        return min(one.stat().st_size, other.stat().st_size)
    with open(one, "rb") as left, open(other, "rb") as right:
        at = 0
        while True:
            a, b = left.read(PIECE_BYTES), right.read(PIECE_BYTES)
            if a != b:
                return at + next(index for index in range(min(len(a), len(b))) if a[index] != b[index])
            if not a:
                return None
            at += len(a)


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    """Ask again until it holds."""
    ends_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends_s, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(0.05)


def make_source(path: Path, size_bytes: int, used_bytes: int = 0) -> Path:
    """Make a sparse source with random bytes at its start."""
    with open(path, "wb") as file:
        left = used_bytes
        while left:
            piece = os.urandom(min(left, PIECE_BYTES))
            file.write(piece)
            left -= len(piece)
        file.truncate(size_bytes)
    return path
