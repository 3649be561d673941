"""The processes that are measured: nbdkit, the agent's two, CX and target, started here and ended here.

`Nbdkit` and `Agent` are servers with a URI; `Agent` knows from the ring, exactly, how far capture and publisher are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent import ring as layout
from agent.declared import Declared
from agent.declared import path_of as declared_path
from agent.declared import write as write_declared
from agent.ring import VolumeRing
from nbd.listen import listen_unix
from stream.control import VolumeDeclaration
from stream.errors import ConfigError, RetryError

START_S_MAX = 60.0
DRAIN_S_MAX = 120.0
STOP_S_MAX = 15.0
POLL_S = 0.002
ROOT = Path(__file__).resolve().parent.parent
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """A child of the benchmark, in a session of its own, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise RetryError with the end of its log if it has ended."""
        code = self._child.poll()
        if code is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-1500:].strip()
            raise RetryError(f"{self.name} ended with {code} in the middle of a measurement", said=said)

    def cpu_s(self) -> float:
        """Return the processor time it has used (proc(5), utime and stime)."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def stop(self) -> None:
        """End it, by force if it takes longer than `STOP_S_MAX`."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Nbdkit:
    """nbdkit's file plugin on `image`: what a tap that does nothing costs."""

    name = "nbdkit file"

    def __init__(self, folder: Path, image: Path) -> None:
        tool = shutil.which("nbdkit")
        if tool is None:
            raise ConfigError("nbdkit is not installed", hint="It is the yardstick: install the package nbdkit.")
        folder.mkdir(parents=True, exist_ok=True)
        sock = folder / "nbdkit.sock"
        self.uri = f"nbd+unix:///?socket={sock}"
        self._process = Process("nbdkit", [tool, "-f", "-U", str(sock), "file", str(image)], folder / "nbdkit.log", os.environ)
        wait_until(sock.exists, "nbdkit to listen", self._process.check)

    def cpu_s(self) -> float:
        return self._process.cpu_s()

    def settle(self) -> None:
        """Nothing waits behind nbdkit."""

    def close(self) -> None:
        self._process.stop()


class Agent:
    """The agent on one volume: capture, and a publisher that is the real one or discards.

    `environment` is what its processes run with, config included (`HOSTOFFLOAD_...`).
    """

    def __init__(
        self, name: str, folder: Path, declaration: VolumeDeclaration, environment: Mapping[str, str], *, discard: bool, shm: Path
    ) -> None:
        self.name = name
        self.volume = declaration.volume
        self.state = folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self._environment = environment
        self.ring_dir = shm / f"hostoffload-bench-{os.getpid()}-{folder.name}"
        sock = folder / "nbd.sock"
        self.uri = f"nbd+unix:///{self.volume}?socket={sock}"
        self._processes: dict[str, Process] = {}
        self._ring: VolumeRing | None = None
        try:
            if discard:
                declared_path(self.state).parent.mkdir(parents=True, exist_ok=True)
                write_declared(declared_path(self.state), "bench", Declared((declaration,)))
            with listen_unix(sock) as listening:
                self.start("discard" if discard else "publisher")
                self.start("capture", [listening.fileno()])
            wait_until(lambda: self.facts("capture").get("mode") == "DATA", f"{name} to be in sync", self.check)
            self._ring = VolumeRing.attach(self.ring_dir / f"{self.volume}.ring")
        except BaseException:
            self.close()
            raise

    def start(self, kind: str, fds: Sequence[int] = ()) -> None:
        """Start one more service of the product on this state folder (`bench.service`)."""
        command = [sys.executable, "-m", "bench.service", kind, str(self.state), str(self.ring_dir)]
        for fd in fds:
            command += ["--listen-fd", str(fd)]
        self._processes[kind] = Process(kind, command, self.state.parent / f"{kind}.log", self._environment, fds)

    def check(self) -> None:
        """Raise RetryError if one of the processes has ended."""
        for process in self._processes.values():
            process.check()

    def facts(self, kind: str) -> dict:
        """Return what the last report of that kind says about the volume; empty before the first one."""
        for path in (self.state / "status").glob(f"{kind}-*.json"):
            return json.loads(path.read_text(encoding="utf-8"))["volumes"].get(self.volume, {})
        return {}

    def captured(self) -> int:
        """Return the last sequence captured."""
        return self._ring.words[layout.W_HEAD]

    def cpu_s(self) -> float:
        """Return the processor time of capture and publisher together."""
        return sum(self._processes[kind].cpu_s() for kind in ("capture", "publisher", "discard") if kind in self._processes)

    def settle(self) -> None:
        """Wait until the publisher's other side has everything that was captured."""
        words = self._ring.words
        wait_until(lambda: words[layout.W_ACKED] == words[layout.W_HEAD], f"{self.name} to drain", self.check, DRAIN_S_MAX)

    def close(self) -> None:
        """End all processes and give the shared memory back."""
        if self._ring is not None:
            self._ring.close()
        for kind in ("capture", "discard", "publisher", "cx", "target"):
            if kind in self._processes:
                self._processes.pop(kind).stop()
        shutil.rmtree(self.ring_dir, ignore_errors=True)


def wait_until(reached: Callable[[], bool], what: str, check: Callable[[], None], limit_s: float = START_S_MAX) -> None:
    """Poll until `reached`. Raises RetryError after `limit_s`, or what `check` raises."""
    deadline_s = time.monotonic() + limit_s
    while not reached():
        check()
        if time.monotonic() > deadline_s:
            raise RetryError(f"Waited {limit_s:.0f} s in vain for {what}", hint="Read the processes' logs (--keep keeps them).")
        time.sleep(POLL_S)
