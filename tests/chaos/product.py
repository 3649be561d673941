"""The product under faults: brought up, watched and brought down by its command line, as a user does it; and the faults themselves.

Nothing is signalled but processes of this state folder: the pid comes from `status`, and its command line must name the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import cut
from tests.chaos.plan import Fault
from tests.chaos.watch import Sample, Watch
from tests.e2e.system import System

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "restart": signal.SIGTERM}
PID_S_MAX = 20.0
UP_S_MAX = 150
POLL_S = 0.02
AGAIN_S = 0.5
RPO_MS_MAX = 5000.0


@dataclass(slots=True)
class Done:
    """A fault that was carried out, on which process and when (seconds since 1970); `until` is when it was over."""

    kind: str
    process: str
    pid: int
    at: float
    until: float


class Product(System):
    """A running hostoffload with a watch on it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(folder, environment=environment)
        self.state = self.state.resolve()
        self.operator = Operator([sys.executable, "-m", "hostoffload", "up", "--timeout", str(UP_S_MAX)], self.environment)
        self._options = ["--broker=jars"]

    def facts(self) -> dict:
        """Return the whole status."""
        return json.loads(self.run("status", "--json"))

    def watched(self) -> Watch:
        """Return a watch that has begun."""
        return Watch(self.environment, self.folder / "watch.log")

    def traces(self) -> list[str]:
        """Return where a process of the product wrote a traceback or crashed."""
        signs = ("Traceback (most recent call last)", "Fatal Python error", "AssertionError")
        paths = [*sorted((self.state / "log").glob("*.log*")), self.folder / "watch.log"]
        return [f"{path}: {sign}" for path in paths for sign in signs if path.exists() and sign in path.read_text(errors="replace")]

    def left(self) -> list[int]:
        """Return the processes of this state folder that run."""
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _is_ours(int(entry), self.state)]


@dataclass(slots=True)
class Operator:
    """Who says `hostoffload up` again after something died: one at a time, in the background. `ended`: each one's code, time and words."""

    command: list[str]
    environment: dict[str, str]
    ended: list[tuple[int, float, str]] = field(default_factory=list)
    _wanted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None
    _over: bool = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="operator", daemon=True)
        self._thread.start()

    def up(self, after_s: float = 0.0) -> None:
        """Have `up` run soon."""
        threading.Timer(after_s, self._wanted.release).start() if after_s else self._wanted.release()

    def close(self) -> None:
        """Wait for the one at work, begin no other."""
        self._over = True
        self._wanted.release()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._wanted.acquire()
            while self._wanted.acquire(blocking=False):
                pass  # several wishes are one
            if self._over:
                return
            began_s = time.monotonic()
            done = subprocess.run(self.command, env=self.environment, capture_output=True, text=True, check=False)
            self.ended.append((done.returncode, time.monotonic() - began_s, done.stderr.strip()))


class Faults:
    """Carry faults out on the processes that the watch shows; `done` and `missed` say what became of them."""

    def __init__(self, product: Product, watch: Watch, port: int) -> None:
        self.done: list[Done] = []
        self.missed: list[Fault] = []
        self._product, self._watch, self._port = product, watch, port
        self._timers: list[threading.Timer] = []

    def act(self, fault: Fault) -> Done | None:
        """Do it; return what was done, None if there was no such process for too long. A `stop` or `drop` ends by itself later."""
        pid = self._pid(fault.process)
        if pid is None:
            self.missed.append(fault)
            return None
        now = time.time()
        done = Done(fault.kind, fault.process, pid, now, now + fault.lasts_s)
        if fault.kind in SIGNALS:
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, SIGNALS[fault.kind])
            if fault.kind == "stop":
                self._later(fault.lasts_s, lambda: _go_on(handle))
            else:
                os.close(handle)
        elif fault.kind == "reset":
            cut.reset(pid, self._port)
        else:
            self._later(fault.lasts_s, cut.Drop(pid, self._port).heal)
        self.done.append(done)
        return done

    def heal(self) -> None:
        """Wait until everything that was stopped or cut off goes on again."""
        for timer in self._timers:
            timer.join()

    def _later(self, after_s: float, act) -> None:
        timer = threading.Timer(after_s, act)
        timer.start()
        self._timers.append(timer)

    def _pid(self, kind: str) -> int | None:
        """Wait for such a process to run; return its pid."""
        deadline_s = time.monotonic() + PID_S_MAX
        while time.monotonic() < deadline_s:
            pid = self._watch.newest().pids.get(kind)
            if pid is not None and _is_ours(pid, self._product.state):
                return pid
            if self._watch.newest().pids.get("supervisor") is None:
                self._product.operator.up()  # nobody else would start it
                time.sleep(AGAIN_S)
            time.sleep(POLL_S)
        return None


def well(sample: Sample, processes: tuple[str, ...]) -> bool:
    """Tell whether all processes run, all volumes keep order, and all replicas follow closely."""
    return all(sample.pids.get(kind) for kind in processes) and all(
        one["mode"] == "DATA" and one["rpo_ms"] is not None and one["rpo_ms"] <= RPO_MS_MAX for one in sample.volumes.values()
    )


def _go_on(handle: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGCONT)
    os.close(handle)


def _is_ours(pid: int, state: Path) -> bool:
    """Tell whether the process lives and its command line names the state folder (our own commands have it in their environment)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as told:
            arguments = told.read().split(b"\0")
        with open(f"/proc/{pid}/stat", "rb") as stat:
            dead = stat.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return False
    name = os.fsencode(state)
    return not dead and any(one == name or one.startswith(name + b"/") for one in arguments)
