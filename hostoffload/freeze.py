"""A frozen application: a shell line that makes it hold still, and one that lets it go on, which runs whatever happens.

Used by `bookmark`. The thaw line waits in a process of its own for the end of a pipe that only this process holds, so it runs once when the
frozen stretch ends in any way: as it should, by an error, a signal, or the death of this process by SIGKILL, and a freeze line that still
runs is killed before. Both are run by `/bin/sh` in sessions of their own, so that an interrupt from the terminal reaches neither; what they
say goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import FrameType

from stream.errors import RetryError

THAW_S_MAX = 60.0
KILL_WAIT_S = 5.0
STDERR = 2
_SHELL = "/bin/sh"
# Told the freeze line's process while that runs, then an empty line: one that outlives us must not freeze what was thawed.
_GUARD = """
freezing=
while read -r told; do freezing=$told; done
[ -z "$freezing" ] || kill -s KILL -- "-$freezing" 2>/dev/null
exec /bin/sh -c "$0" </dev/null
"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class FrozenApplication:
    """`with` freezes within `timeout_s` and thaws. Raises RetryError if it did not freeze: it was thawed all the same."""

    def __init__(self, freeze: str, thaw: str, timeout_s: float) -> None:
        self._freeze_line = freeze
        self._thaw_line = thaw
        self._timeout_s = timeout_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self.frozen_ms: float | None = None
        self.thaw_failure: str | None = None
        """What went wrong with the thaw line, None if nothing did; known once it has run."""

    def __enter__(self) -> FrozenApplication:
        self._guard = subprocess.Popen(
            [_SHELL, "-c", _GUARD, self._thaw_line], stdin=subprocess.PIPE, stdout=STDERR, start_new_session=True
        )
        self._began_s = time.monotonic()
        try:
            self._freeze()
        except BaseException:
            self.thaw()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()

    def thaw(self) -> None:
        """Thaw, once; signals wait until it is done. What goes wrong is told by `thaw_failure`."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        with _held_signals():
            assert guard.stdin is not None
            guard.stdin.close()
            try:
                code = guard.wait(THAW_S_MAX)
                self.thaw_failure = None if code == 0 else f"the thaw command ended with exit code {code}"
            except subprocess.TimeoutExpired:  # not killed: half a thaw may be none
                self.thaw_failure = f"the thaw command still runs after {THAW_S_MAX:.0f} s (process {guard.pid})"
            self.frozen_ms = round((time.monotonic() - self._began_s) * 1000, 3)

    def _tell_guard(self, line: str) -> None:
        assert self._guard is not None and self._guard.stdin is not None
        self._guard.stdin.write(f"{line}\n".encode())
        self._guard.stdin.flush()

    def _freeze(self) -> None:
        freezing = subprocess.Popen([_SHELL, "-c", self._freeze_line], stdin=subprocess.DEVNULL, stdout=STDERR, start_new_session=True)
        try:
            self._tell_guard(str(freezing.pid))
            code = freezing.wait(self._timeout_s)
            self._tell_guard("")
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(freezing.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel: the thaw must not wait for it
                freezing.wait(KILL_WAIT_S)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RetryError(
                f"The freeze command did not end within {self._timeout_s:.0f} s", hint="The application was thawed. Nothing is marked."
            ) from error
        if code:
            raise RetryError(
                f"The freeze command ended with exit code {code}", hint="The application was thawed. Nothing is marked.", exit_code=code
            )


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end what runs here as SIGINT does: by KeyboardInterrupt, so that it can tidy up."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
