"""Group commit: changes of many threads become durable together.

A thread hands in its change and comes back when it is durable. The first that finds nobody at work carries out all changes handed in until
then; those that come meanwhile wait for the next round and share that one. So a change waits for two rounds at most, and one round is
on its way at a time: an error that the disk tells once can't go to somebody else.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Change = TypeVar("_Change")


class GroupCommit(Generic[_Change]):
    """Carry out changes in groups. Thread-safe. `failure` is the first error: from then on everything is refused."""

    def __init__(self, carry_out: Callable[[list[_Change]], None]) -> None:
        """`carry_out` makes a group durable or raises OSError; one thread at a time calls it, holding no lock of this object."""
        self.failure: OSError | None = None
        self._carry_out = carry_out
        self._turn = threading.Condition()
        self._busy = False
        self._next: _Group[_Change] = _Group()

    def commit(self, *changes: _Change) -> None:
        """Return when the changes are durable. Raises OSError when that can't be said: then or before something has failed."""
        with self._turn:
            self.refuse()
            group = self._next
            group.changes.extend(changes)
            while self._busy and not group.over:
                self._turn.wait()
            if not group.durable:
                self.refuse()
            if group.over:
                return
            self._busy = True
            self._next = _Group()
        self._lead(group)

    def fail(self, error: OSError) -> None:
        """Refuse everything from now on."""
        self.failure = self.failure or error

    def close(self, timeout_s: float) -> bool:
        """Refuse everything from now on, and wait for the round on its way; tell whether it ended in time."""
        with self._turn:
            self.fail(OSError(errno.ESHUTDOWN, "closed"))
            return self._turn.wait_for(lambda: not self._busy, timeout_s)

    def refuse(self) -> None:
        """Raise the failure if there is one."""
        if self.failure is not None:
            raise OSError(self.failure.errno, f"an earlier change could not be made durable: {self.failure.strerror}")

    def _lead(self, group: _Group[_Change]) -> None:
        try:
            self._carry_out(group.changes)
            group.durable = True
        except OSError as error:
            self.fail(error)
            raise
        finally:
            with self._turn:
                if not group.durable:
                    self.fail(OSError(errno.EIO, "interrupted"))
                self._busy = False
                group.over = True
                self._turn.notify_all()


class _Group(Generic[_Change]):
    """Changes that become durable together; `over` when they were carried out, `durable` if that went well."""

    __slots__ = ("changes", "durable", "over")

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self.durable = False
        self.over = False
