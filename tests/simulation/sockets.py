"""Sockets between clients and the agent, and the accept loop of `nbd.server.Server` on them; the connections are the product's own."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from typing import Any

from nbd.apart import Crowd
from nbd.connection import Connection
from nbd.exports import Exports
from nbd.server import STOP_S, _end
from tests.simulation.scheduler import Scheduler, Task


class Socket:
    """One end of a connection."""

    family = socket.AF_UNIX

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.peer: Socket
        self._inbox: deque[memoryview] = deque()
        self._waiters: list[Task] = []
        self._timeout_s: float | None = None
        self._over = False  # nothing more comes
        self.closed = False

    def settimeout(self, seconds: float | None) -> None:
        self._timeout_s = seconds

    def setsockopt(self, *_: Any) -> None:
        """Options change nothing here."""

    def sendall(self, data: Any) -> None:
        self._scheduler.point()
        if self.closed or self.peer.closed:
            raise BrokenPipeError(32, "the other side is gone")
        if len(data):
            self.peer._inbox.append(memoryview(bytes(data)))
            self.peer._wake()

    def recv(self, size: int) -> bytes:
        into = bytearray(size)
        return bytes(into[: self.recv_into(memoryview(into))])

    def recv_into(self, view: memoryview) -> int:
        scheduler = self._scheduler
        scheduler.point()
        until_s = None if self._timeout_s is None else scheduler.now + self._timeout_s
        while not self._inbox:
            if self._over or self.closed:
                return 0
            if until_s is not None and scheduler.now >= until_s:
                raise TimeoutError("timed out")
            self._waiters.append(scheduler.current)
            scheduler.park("socket", None if until_s is None else until_s - scheduler.now)
            if scheduler.current in self._waiters:
                self._waiters.remove(scheduler.current)
        got = 0
        while self._inbox and got < len(view):
            piece = self._inbox.popleft()
            part = piece[: len(view) - got]
            view[got : got + len(part)] = part
            got += len(part)
            if len(part) < len(piece):
                self._inbox.appendleft(piece[len(part) :])
        return got

    def recvmsg_into(self, views: list[memoryview], ancillary: int = 0, flags: int = 0) -> tuple[int, list[Any], int, None]:
        total = 0
        for view in views:
            at = 0
            while at < len(view):
                got = self.recv_into(view[at:])
                if not got:
                    return total, [], 0, None
                at += got
                total += got
        return total, [], 0, None

    def shutdown(self, how: int) -> None:
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._over = True
            self._inbox.clear()
            self._wake()
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self.peer._over = True
            self.peer._wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.peer._over = True
            self._wake()
            self.peer._wake()

    def _wake(self) -> None:
        for task in self._waiters:
            self._scheduler.wake(task)
        self._waiters.clear()


class Listener:
    """A host's listening socket: it belongs to the supervisor, so who connects waits in the backlog while no capture runs."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._backlog: deque[Socket] = deque()
        self._acceptors: list[Task] = []

    def connect(self) -> Socket:
        """Return the client's end of a new connection."""
        mine, theirs = Socket(self._scheduler), Socket(self._scheduler)
        mine.peer, theirs.peer = theirs, mine
        self._backlog.append(theirs)
        for task in self._acceptors:
            self._scheduler.wake(task)
        self._acceptors.clear()
        return mine

    def accept(self, timeout_s: float) -> Socket | None:
        if not self._backlog:
            self._acceptors.append(self._scheduler.current)
            self._scheduler.park("accept", timeout_s)
            if self._scheduler.current in self._acceptors:
                self._acceptors.remove(self._scheduler.current)
        return self._backlog.popleft() if self._backlog else None

    def refuse_all(self) -> None:
        """The host is down: nobody waits any more."""
        while self._backlog:
            self._backlog.popleft().close()


class Server:
    """`nbd.server.Server` without its selector: a thread that accepts, and the product's `Connection` for each client."""

    scheduler: Scheduler

    def __init__(self, exports: Exports, sockets: Iterable[Any], *, connections_max: int = 64, tls: None = None) -> None:
        assert tls is None, "nothing here is encrypted"
        self._exports = exports
        self._crowd = Crowd()
        self._connections: list[Connection] = []
        self._stopping = False

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        self.scheduler.spawn(self.scheduler.current.process, "nbd-accept", self._accept_all)

    def stop(self, timeout_s: float = STOP_S) -> bool:
        self._stopping = True
        return _end(list(self._connections), timeout_s)

    def disconnect(self, export: str, timeout_s: float = STOP_S) -> bool:
        return _end([one for one in self._connections if one.export == export], timeout_s)

    def _accept_all(self) -> None:
        process = self.scheduler.current.process
        listener = process.machine.listener
        while not self._stopping:
            accepted = listener.accept(0.5)
            if accepted is not None:
                process.closers.append(accepted.close)
                connection = Connection(accepted, self._exports, self._crowd, self._connections.remove)
                self._connections.append(connection)
                connection.start()
