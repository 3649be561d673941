"""A process of this machine that can be told from any other: found again, watched, signalled, started.

Used by the supervisor and by `down`. A pid alone is never trusted: `ProcessId` also has the start time and the boot, and every signal goes
through a pidfd that was opened before the identity was checked, so it can't hit a stranger who got the same pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FIRST_LISTEN_FD = 3  # sd_listen_fds(3)
EXEC_FAILED = 127
AUTOGROUP = Path("/proc/self/autogroup")
_RESET = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Name one process for ever: `start_ticks` is field 22 of /proc/<pid>/stat (proc(5)), `boot` the kernel's boot id."""

    pid: int
    start_ticks: int
    boot: str

    def __post_init__(self) -> None:
        if self.pid < 1 or self.start_ticks < 0:
            raise ValueError(f"not a process: pid {self.pid}, started at {self.start_ticks}")

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Return the identity of the living process with this pid, None if there is none (a zombie is dead)."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, boot_id())

    @property
    def started_at(self) -> float:
        """Return when it started, in seconds since 1970 by today's clock, good to some 10 ms."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + self.start_ticks / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        return self.boot == boot_id() and start_ticks(self.pid) == self.start_ticks


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """Return when the process started, in clock ticks since the boot; None if it does not live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


class ProcessHandle:
    """Hold one process by a pidfd, whoever started it. `fd` is readable once it has ended."""

    __slots__ = ("_child", "fd", "id")

    def __init__(self, identity: ProcessId, fd: int, *, child: bool) -> None:
        self.id = identity
        self.fd = fd
        self._child = child

    @classmethod
    def open(cls, identity: ProcessId) -> ProcessHandle | None:
        """Return a handle, or None if that very process does not live any more."""
        try:
            fd = os.pidfd_open(identity.pid)
        except OSError:
            return None
        if not identity.alive():
            os.close(fd)
            return None
        return cls(identity, fd, child=False)

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended is passed over."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def kill(self) -> None:
        """End it by force, and its process group with it if it leads one."""
        if self.id.alive() and _leads_group(self.id.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.id.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Tell whether it has ended, after waiting at most that long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> int | None:
        """Let go of an ended process; return its exit code (negative: a signal's number), None if it was not our child."""
        os.close(self.fd)
        if not self._child:
            return None
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.id.pid, 0)[1])
        except ChildProcessError:
            return None


def spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    output: Path | None,
    sockets: Sequence[tuple[str, socket.socket]] = (),
    niceness: int = 0,
    record: Callable[[ProcessId], None],
) -> ProcessHandle:
    """Start a child in a session of its own; it keeps nothing of ours but `sockets`, as LISTEN_FDS (sd_listen_fds(3)), named.

    `output` gets its stdout and stderr (None: ours). `niceness` is added to ours. The child calls `record` before its program begins, so
    there is never a process without a record, even if we are killed in between. The caller has one thread only (fork).
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            identity = ProcessId.of(os.getpid())
            assert identity is not None
            _record(record, identity)
            if niceness:
                _stand_back(niceness)
            _become(argv, dict(environment), output, sockets)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"{argv[0]} can't be started: {error}\n".encode())
        os._exit(EXEC_FAILED)
    fd = os.pidfd_open(pid)
    ticks = start_ticks(pid)
    return ProcessHandle(ProcessId(pid, ticks if ticks is not None else 0, boot_id()), fd, child=True)


def _record(record: Callable[[ProcessId], None], identity: ProcessId) -> None:
    """Write the record; on a full disk the process runs all the same, and only a supervisor that is killed then loses sight of it."""
    try:
        record(identity)
    except OSError as error:
        os.write(2, f"no pid file: {error}\n".encode())


def _stand_back(niceness: int) -> None:
    """Leave the processor to others, by both of the ways in which Linux shares it out (sched(7)).

    Where it groups by session, which is usual, a nice value counts inside the session only: the session's own must be set as well.
    """
    os.nice(niceness)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(niceness))


def _become(argv: Sequence[str], environment: dict[str, str], output: Path | None, sockets: Sequence[tuple[str, socket.socket]]) -> None:
    """Turn the forked child into the program."""
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    if output is not None:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
    above = FIRST_LISTEN_FD + len(sockets)
    copies = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, above) for _, one in sockets]
    for index, copy in enumerate(copies):
        os.dup2(copy, FIRST_LISTEN_FD + index)
    os.closerange(above, os.sysconf("SC_OPEN_MAX"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    if sockets:
        environment |= {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in sockets),
        }
    os.execvpe(argv[0], list(argv), environment)


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


@dataclass(frozen=True, slots=True)
class PidFile:
    """What the pid file of a supervised process says; `since` in seconds since 1970."""

    kind: str
    name: str
    process: ProcessId
    since: float
    restarts: int
    rank: int

    def write(self, path: Path) -> None:
        """Replace the file atomically."""
        told = {
            "kind": self.kind,
            "name": self.name,
            "pid": self.process.pid,
            "start_ticks": self.process.start_ticks,
            "boot": self.process.boot,
            "since": self.since,
            "restarts": self.restarts,
            "rank": self.rank,
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(told), encoding="utf-8")
        os.replace(new, path)

    @classmethod
    def read(cls, path: Path) -> PidFile | None:
        """Return what it says, None if there is none or it can't be read."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            process = ProcessId(told["pid"], told["start_ticks"], told["boot"])
            return cls(told["kind"], told["name"], process, told["since"], told["restarts"], told["rank"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
