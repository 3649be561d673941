"""The lock of a state folder's supervisor: one at a time, and everybody can see which process it is.

`run/supervisor.lock` is locked (flock) for the supervisor's life and says who holds it; the kernel lets go of it with the process, so a
dead supervisor never stands in the way of the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostoffload.process import ProcessId
from stream.errors import RetryError

ROLE_ALL = "all"
ROLE_AGENT = "agent"
WAIT_S = 5.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Holder:
    """Who supervises, and what: `role` is `all` (`up`) or `agent` (`agent run`)."""

    process: ProcessId
    role: str


class StateLock:
    """Lock one state folder, or see who has."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "run" / "supervisor.lock"

    @contextlib.contextmanager
    def held(self, role: str, wait_s: float = WAIT_S) -> Iterator[None]:
        """Hold the lock. Raises RetryError that names the holder after `wait_s`."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(fd, time.monotonic() + wait_s)
            identity = ProcessId.of(os.getpid())
            assert identity is not None
            told = {"pid": identity.pid, "start_ticks": identity.start_ticks, "boot": identity.boot, "role": role}
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(told).encode(), 0)
            yield
        finally:
            os.close(fd)

    def holder(self) -> Holder | None:
        """Return who holds it, None if nobody does."""
        try:
            told = json.loads(self._path.read_bytes())
            identity = ProcessId(told["pid"], told["start_ticks"], told["boot"])
            return Holder(identity, told["role"]) if identity.alive() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _lock(self, fd: int, deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    found = self.holder()
                    holder = f"process {found.process.pid}" if found else "another process"
                    raise RetryError(
                        f"The services of this state folder are run by {holder} already",
                        hint="Stop it first (hostoffload down), or use another --state.",
                        path=self._path,
                    ) from None
                time.sleep(POLL_S)
