"""Doorbells: how capture and publisher wake each other without polling and without a connection between them.

A FIFO in the ring folder for each direction. Whoever sleeps sets a flag in shared memory first, and looks again before it
sleeps; whoever has news rings only if the flag is set. A ring that is missed costs one `WAIT_S_MAX`, never a record.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

WAIT_S_MAX = 0.05


class Doorbell:
    """One direction. The FIFO is opened for both reading and writing, so neither side waits for the other to exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._poll = select.poll()
        self.renew()

    def renew(self) -> None:
        """Open the FIFO, made if it is not there, unless it is the one that is open."""
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)
        fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if self._fd < 0:
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
        else:
            os.dup2(fd, self._fd, inheritable=False)  # the number stays: another thread may be about to ring
            os.close(fd)

    def ring(self) -> None:
        """Wake the other side; never blocks."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._fd, b"!")

    def wait(self, timeout_s: float = WAIT_S_MAX) -> bool:
        """Sleep until it rings or the time is over; tell whether it rang."""
        if not self._poll.poll(timeout_s * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4096)
        return True

    def close(self) -> None:
        os.close(self._fd)
