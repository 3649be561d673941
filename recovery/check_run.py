"""One check run to its end: its shell, and every process that it left, however far it went from it.

Used by the keeper's process alone. That process is a subreaper (prctl(2)), so what a check starts in the background, a database server for
instance, becomes its child when its parents end, and is ended with the check. Processes that belong to the stage are spared.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

OUTPUT_BYTES_MAX = 16 << 10
READ_BYTES = 64 << 10
TERM_S = 2.0
POLL_S = 0.01
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class CheckRun:
    """How a check ended; `exit_code` is negative for a signal, None if it was ended because the time was out or nobody waits any more.

    `output` is the end of what it wrote, `left` the number of processes that it left behind.
    """

    exit_code: int | None
    timed_out: bool
    seconds: float
    output: str
    left: int


def become_subreaper() -> None:
    """Inherit every orphan among the descendants of this process from now on."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process can't become a subreaper")


def run_check(
    line: str, environment: dict[str, str], timeout_s: float, *, spared: Callable[[], Set[int]], abandoned: Callable[[], bool]
) -> CheckRun:
    """Run a shell line for at most `timeout_s`, or until `abandoned`; return when it and all that it started are gone."""
    began_s = time.monotonic()
    shell = subprocess.Popen(
        ["/bin/sh", "-c", line],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
    )
    assert shell.stdout is not None
    output = _Output(shell.stdout.fileno())
    timed_out = given_up = False
    while shell.poll() is None and not (timed_out or given_up):
        output.read(POLL_S * 5)
        timed_out = time.monotonic() - began_s > timeout_s
        given_up = abandoned()
    if timed_out or given_up:
        _end_group(shell)
    seconds = time.monotonic() - began_s
    output.read(0)
    left = end_descendants(spared())
    output.read(0)
    shell.stdout.close()
    code = None if timed_out or given_up else shell.returncode
    return CheckRun(code, timed_out, seconds, output.text(), left)


def end_descendants(spared: Set[int]) -> int:
    """End every child of this process but those spared, and what they leave behind; return how many there were."""
    ended: set[int] = set()
    ends_s = time.monotonic() + TERM_S
    while children := _children() - spared:
        force = time.monotonic() > ends_s
        for pid in children:
            ended.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if force else signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(POLL_S)
    return len(ended)


def _end_group(shell: subprocess.Popen[bytes]) -> None:
    """End the shell and its process group, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(shell.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            shell.wait(TERM_S)
            break


def _children() -> set[int]:
    """Return the children of this process, those not yet waited for among them (proc(5): field 4 of stat is the parent)."""
    mine = str(os.getpid()).encode()
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            if Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1] == mine:
                found.add(int(name))
    return found


class _Output:
    """The end of what comes out of a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = b""
        self._open = True
        os.set_blocking(fd, False)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self, timeout_s: float) -> None:
        """Take what is there, waiting at most that long for the first of it."""
        if not self._open:
            time.sleep(timeout_s)
            return
        if not self._poll.poll(timeout_s * 1000):
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, READ_BYTES):
                self._end = (self._end + data)[-OUTPUT_BYTES_MAX:]
            self._open = False

    def text(self) -> str:
        return self._end.decode(errors="replace")
