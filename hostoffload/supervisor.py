"""The supervisor: keeps a list of processes running, whoever dies, and stops them in order.

Started by `up` (all services) and `agent run` (the agent's two). One thread, no Kafka client, no knowledge of what it runs. Guarantees:

- A process that ends is started again, after 0.2 s at first, doubling to 10 s, from the start again once it lived 30 s.
- It does not take its children along when it is killed; its successor finds them by their pid files and goes on with them.
- The listening sockets stay open while the process that serves them is away.
- What `more` returns is run beside the fixed list: what is new there is started, what is no longer there is ended, the others not touched.
- SIGTERM or SIGINT: the processes are ended rank by rank, by SIGTERM, after their time by SIGKILL.
- SIGUSR1: whatever waits for a restart starts now.
- `status/supervisor-local.json` says what runs; it is replaced with every change.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostoffload.listeners import Listeners
from hostoffload.process import PidFile, ProcessHandle, ProcessId, spawn
from hostoffload.supervisor_report import SupervisorReport
from stream.errors import HostoffloadError
from stream.log import Repeats, event

BACKOFF_S = 0.2
BACKOFF_S_MAX = 10.0
SETTLED_S = 30.0
TICK_S = 0.5
KILL_WAIT_S = 10.0
LOG_BYTES_MAX = 32 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run, and how.

    `name` is unique. `find` tells the pid of a process that already does the job, whoever started it; `prepare` is called before each
    start; `end` ends it within the given seconds, in place of signals. Lower ranks stop first. `niceness` is how far it stands back from
    others for the processor. A file `run/<name>.held` keeps it from being started.
    """

    kind: str
    name: str
    argv: Callable[[], Sequence[str]]
    environment: Mapping[str, str]
    listens: bool = False
    rank: int = 0
    niceness: int = 0
    stop_s: float = 10.0
    find: Callable[[], int | None] | None = None
    prepare: Callable[[], None] | None = None
    end: Callable[[float], None] | None = None


@dataclass(slots=True)
class Ward:
    """One process in care: what it is now."""

    spec: ProcessSpec
    handle: ProcessHandle | None = None
    since: float = 0.0
    restarts: int = 0
    started_at_s: float = 0.0
    start_at_s: float = 0.0
    backoff_s: float = BACKOFF_S
    exit_code: int | None = None
    failure: str | None = None
    held: bool = False
    leaves_by_s: float | None = None


class Supervisor:
    """Run until told to stop. `log_dir` None leaves the children's output where ours goes."""

    def __init__(
        self,
        state_dir: Path,
        role: str,
        specs: Sequence[ProcessSpec],
        listeners: Listeners,
        *,
        log_dir: Path | None,
        more: Callable[[], Sequence[ProcessSpec]] = tuple,
    ) -> None:
        self._run_dir = state_dir / "run"
        self._log_dir = log_dir
        self._listeners = listeners
        self._wards = [Ward(spec) for spec in specs]
        self._fixed = frozenset(spec.name for spec in specs)
        self._more = more
        self._report = SupervisorReport(state_dir, role)
        self._repeats = Repeats()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()

    def run(self) -> int:
        """Keep all running until SIGTERM, SIGINT or SIGHUP, then stop them; return the exit code."""
        self._catch_signals()
        for ward in self._wards:
            self._adopt(ward)
        event(_log, logging.INFO, "supervisor_started", pid=os.getpid(), processes=len(self._wards))
        while not self._stopping:
            self._follow_changes()
            self._start_what_is_due()
            self._tell()
            self._wait(self._next_s())
        self._stop()
        self._report.remove()
        event(_log, logging.INFO, "supervisor_stopped", pid=os.getpid())
        return 0

    # -- starting ------------------------------------------------------------------------------------------------------

    def _adopt(self, ward: Ward) -> None:
        """Go on with a process that a former supervisor left behind."""
        found = PidFile.read(self._pid_path(ward.spec.name))
        ward.handle = ProcessHandle.open(found.process) if found is not None else None
        if ward.handle is not None:
            assert found is not None
            ward.since, ward.restarts = found.since, found.restarts
            ward.started_at_s = time.monotonic() - max(0.0, time.time() - found.since)
            event(_log, logging.INFO, "process_adopted", process=ward.spec.name, pid=found.process.pid)

    def _follow_changes(self) -> None:
        """Take in what `more` has since, and end what it has no longer."""
        wanted = {spec.name: spec for spec in self._more()}
        for name in wanted.keys() - {ward.spec.name for ward in self._wards}:
            self._wards.append(Ward(wanted[name]))
            self._adopt(self._wards[-1])
        for ward in [one for one in self._wards if one.spec.name not in self._fixed and one.spec.name not in wanted]:
            if ward.handle is None:
                self._pid_path(ward.spec.name).unlink(missing_ok=True)
                self._wards.remove(ward)
            elif ward.leaves_by_s is None:
                ward.leaves_by_s = time.monotonic() + ward.spec.stop_s
                self._ask_to_end(ward)
            elif time.monotonic() >= ward.leaves_by_s:
                ward.handle.kill()

    def _start_what_is_due(self) -> None:
        now_s = time.monotonic()
        for ward in self._wards:
            ward.held = self._hold_path(ward.spec.name).exists()
            if ward.handle is None and not ward.held and now_s >= ward.start_at_s:
                ward.leaves_by_s = None
                self._start(ward)

    def _start(self, ward: Ward) -> None:
        spec = ward.spec
        try:
            if spec.find is not None and (pid := spec.find()) is not None:
                self._take(ward, pid)
                return
            if spec.prepare is not None:
                spec.prepare()
            sockets = self._listeners.sockets() if spec.listens else ()
            argv = list(spec.argv())
            since = time.time()
            ward.handle = spawn(
                argv,
                spec.environment,
                output=self._log_path(spec.name),
                sockets=sockets,
                niceness=spec.niceness,
                record=lambda process: self._record(ward, process, since),
            )
        except (HostoffloadError, OSError) as error:
            ward.failure = str(error)
            self._put_off(ward)
            event(
                _log,
                logging.ERROR,
                "process_not_started",
                process=spec.name,
                error=error,
                again_in_s=round(ward.start_at_s - time.monotonic(), 1),
            )
            return
        ward.since, ward.started_at_s, ward.failure = since, time.monotonic(), None
        event(_log, logging.INFO, "process_started", process=spec.name, pid=ward.handle.id.pid, restarts=ward.restarts)

    def _take(self, ward: Ward, pid: int) -> None:
        """Go on with a process that somebody else started."""
        identity = ProcessId.of(pid)
        ward.handle = ProcessHandle.open(identity) if identity is not None else None
        if ward.handle is not None:
            ward.since, ward.started_at_s, ward.failure = ward.handle.id.started_at, time.monotonic(), None
            self._record(ward, ward.handle.id, ward.since)
            event(_log, logging.INFO, "process_adopted", process=ward.spec.name, pid=pid)

    def _record(self, ward: Ward, process: ProcessId, since: float) -> None:
        """Write the pid file; called by the child itself before its program begins."""
        PidFile(ward.spec.kind, ward.spec.name, process, since, ward.restarts, ward.spec.rank).write(self._pid_path(ward.spec.name))

    # -- watching ------------------------------------------------------------------------------------------------------

    def _next_s(self) -> float:
        """Return how long nothing is due; never longer than a tick, for what is watched by looking."""
        now_s = time.monotonic()
        due_s = [ward.start_at_s - now_s for ward in self._wards if ward.handle is None and ward.start_at_s > now_s]
        return max(0.0, min([TICK_S, *due_s]))

    def _wait(self, timeout_s: float) -> None:
        """Wait for a signal, an end, or the time; take note of every end."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        by_fd = {ward.handle.fd: ward for ward in self._wards if ward.handle is not None}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout_s * 1000):
            if fd == self._woken.fileno():
                self._hear(self._woken.recv(64))
            else:
                self._ended(by_fd[fd])
        for name in ("supervisor", *(ward.spec.name for ward in self._wards)):
            self._bound_log(name)

    def _ended(self, ward: Ward) -> None:
        assert ward.handle is not None
        pid = ward.handle.id.pid
        ward.exit_code = ward.handle.close()
        ward.handle = None
        lived_s = time.monotonic() - ward.started_at_s
        if lived_s >= SETTLED_S:
            ward.backoff_s = BACKOFF_S
        if ward.spec.listens:
            with contextlib.suppress(HostoffloadError):
                self._listeners.sockets()  # at once: one that was adopted took its sockets with it
        self._put_off(ward)
        ward.restarts += 1
        event(
            _log,
            logging.WARNING,
            "process_ended",
            process=ward.spec.name,
            pid=pid,
            exit_code=ward.exit_code,
            lived_s=round(lived_s, 1),
            again_in_s=round(ward.start_at_s - time.monotonic(), 1),
        )

    def _put_off(self, ward: Ward) -> None:
        ward.start_at_s = time.monotonic() + ward.backoff_s
        ward.backoff_s = min(BACKOFF_S_MAX, ward.backoff_s * 2)

    def _catch_signals(self) -> None:
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, _ignore)

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGUSR1:
                for ward in self._wards:
                    ward.start_at_s, ward.backoff_s = 0.0, BACKOFF_S
            else:
                self._stopping = True

    # -- stopping ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End all, rank by rank; nothing that was started here is left."""
        for rank in sorted({ward.spec.rank for ward in self._wards}):
            wards = [ward for ward in self._wards if ward.spec.rank == rank and ward.handle is not None]
            deadline_s = time.monotonic() + max((ward.spec.stop_s for ward in wards), default=0.0)
            for ward in wards:
                self._ask_to_end(ward)
            for ward in wards:
                self._see_end(ward, deadline_s)
            self._tell()
        self._listeners.close()

    def _ask_to_end(self, ward: Ward) -> None:
        assert ward.handle is not None
        event(_log, logging.INFO, "process_stopping", process=ward.spec.name, pid=ward.handle.id.pid)
        if ward.spec.end is None:
            ward.handle.signal(signal.SIGTERM)
            return
        try:
            ward.spec.end(ward.spec.stop_s)
        except HostoffloadError as error:
            event(_log, logging.ERROR, "process_not_ended", process=ward.spec.name, error=error)

    def _see_end(self, ward: Ward, deadline_s: float) -> None:
        assert ward.handle is not None
        if not ward.handle.ended(deadline_s - time.monotonic()):
            event(_log, logging.WARNING, "process_killed", process=ward.spec.name, pid=ward.handle.id.pid, stop_s=ward.spec.stop_s)
            ward.handle.kill()
            ward.handle.ended(KILL_WAIT_S)
        if ward.handle.ended():
            ward.exit_code = ward.handle.close()
            ward.handle = None
            self._pid_path(ward.spec.name).unlink(missing_ok=True)

    def _tell(self) -> None:
        """Write the report; a full disk must not end the supervisor."""
        try:
            self._report.write(self._wards)
        except OSError as error:
            self._repeats.event(_log, logging.ERROR, "report_not_written", error=error)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _pid_path(self, name: str) -> Path:
        return self._run_dir / f"{name}.json"

    def _hold_path(self, name: str) -> Path:
        return self._run_dir / f"{name}.held"

    def _log_path(self, name: str) -> Path | None:
        return self._log_dir / f"{name}.log" if self._log_dir is not None else None

    def _bound_log(self, name: str) -> None:
        """Move what a log holds aside once it is too long; its writer goes on in place (it appends)."""
        path = self._log_path(name)
        if path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES_MAX:
                with contextlib.suppress(OSError):  # no room to keep it: all the more reason to cut it
                    shutil.copyfile(path, path.with_suffix(".log.1"))
                os.truncate(path, 0)


def _ignore(*_: object) -> None:
    """Let a signal interrupt nothing but the wait: the wake-up socket tells its number."""
