"""The broker's JVM as a process: find it, start it detached, end it.

The process table is the pid file: a broker is the `java` process whose last two arguments are Kafka's main class and *this* folder's
`server.properties`, seen through that process's own root. So nothing can be stale, a reused pid can't be mistaken, and a broker is
adopted whoever started it (a command, the supervisor, a container of this machine).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stream.errors import RetryError

MAIN_CLASS = "kafka.Kafka"
KILL_WAIT_S = 10.0


def find(properties: Path) -> int | None:
    """Return the pid of the JVM that runs on `properties`, or None. Reads /proc only: some 10 µs a process."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and _is_broker(int(entry.name), properties):
            return int(entry.name)
    return None


def spawn(argv: Sequence[str], environment: dict[str, str], *, out: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own with none of the caller's files open; its output goes to `out`, from the start."""
    with out.open("wb") as output:
        return subprocess.Popen(
            argv,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
        )


def end(properties: Path, deadline_s: float) -> bool:
    """End the JVM on `properties`: SIGTERM, after `deadline_s` SIGKILL. Return whether it ended by itself (or there was none).

    Signals go through a pidfd, so they can't hit another process. Raises RetryError if even SIGKILL does not end it.
    """
    pid = find(properties)
    if pid is None:
        return True
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not _is_broker(pid, properties):
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        if _ended(handle, deadline_s):
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not _ended(handle, KILL_WAIT_S):
            raise RetryError("The broker does not end, not even by SIGKILL.", hint="is its disk hanging?", pid=pid)
        return False
    finally:
        os.close(handle)


def _ended(pidfd: int, deadline_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(deadline_s, 0) * 1000))


def _is_broker(pid: int, properties: Path) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        if arguments[-2:] != [MAIN_CLASS.encode(), os.fsencode(properties)] or os.path.basename(arguments[0]) != b"java":
            return False
        return os.path.samefile(f"/proc/{pid}/root{properties}", properties)
    except (OSError, IndexError):
        return False


def tail(path: Path, lines_max: int = 5, bytes_max: int = 8192) -> str:
    """Return the last lines of a log for an error's facts; empty if there is none."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(handle.seek(0, os.SEEK_END) - bytes_max, 0))
            return "\n".join(handle.read().decode(errors="replace").strip().splitlines()[-lines_max:])
    except OSError:
        return ""
