"""`Server`: accepts NBD clients on sockets that are already listening, and serves block devices to them, a thread a connection.

Made by the agent, by recovery's exports and by `python -m nbd`. The sockets belong to the caller: they are never closed here, so clients
that come while nobody serves wait in the backlog. A device may be added or removed at any time (`ExportTable`); `disconnect` ends
the connections of one. No client can end the server.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable
from ssl import SSLContext
from time import monotonic

from nbd.apart import Crowd
from nbd.connection import Connection
from nbd.exports import Exports
from nbd.notices import warn

CONNECTIONS_MAX = 256
REFUSED_MAX = 32
"""Connections above the limit that are told so in the handshake; those above this too are closed unheard."""

STOP_S = 5.0
ACCEPT_PAUSE_S = 0.1
"""How long to leave new clients in the backlog after accept failed (no file descriptors, no memory)."""


class Server:
    """Serves `exports` on `sockets` from `start` until `stop`."""

    def __init__(
        self,
        exports: Exports,
        sockets: Iterable[socket.socket],
        *,
        connections_max: int = CONNECTIONS_MAX,
        tls: SSLContext | None = None,
    ) -> None:
        """With `tls` (`nbd.tls.server_context`) clients over TCP must begin TLS; unix sockets are as they are."""
        self._exports = exports
        self._tls = tls
        self._sockets = list(sockets)
        self._connections_max = connections_max
        self._crowd = Crowd()
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept_all, name="nbd-accept", daemon=True)

    @property
    def connections(self) -> int:
        """The number of connections now, those in the handshake included."""
        return len(self._connections)

    def start(self) -> None:
        """Begin to accept clients; returns at once. A server is started once."""
        for sock in self._sockets:
            sock.setblocking(False)
        self._acceptor.start()

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """Accept nobody any more, let each connection answer the batch it is serving, end them all.

        Returns whether all had ended in time; those that had not (a device that hangs) are left to their daemon threads.
        """
        self._stopping = True
        self._wake.send(b"x")
        self._acceptor.join()
        with self._lock:
            connections = list(self._connections)
        ended = _end(connections, timeout_s)
        self._wake.close()
        self._woken.close()
        return ended

    def disconnect(self, export: str, timeout_s: float = STOP_S) -> bool:
        """End the connections of an export that was removed before; return whether all ended in time."""
        with self._lock:
            connections = [connection for connection in self._connections if connection.export == export]
        return _end(connections, timeout_s)

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.fileobj is not self._woken:
                        self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            warn("accept_failed", reason=error)
            with selectors.DefaultSelector() as selector:
                selector.register(self._woken, selectors.EVENT_READ)
                selector.select(ACCEPT_PAUSE_S)
            return
        sock.setblocking(True)
        count = len(self._connections)
        if count >= self._connections_max + REFUSED_MAX:
            warn("connection_refused", connections=count)
            sock.close()
            return
        tls = self._tls if listener.family != socket.AF_UNIX else None
        refusal = "too many connections" if count >= self._connections_max else ""
        connection = Connection(sock, self._exports, self._crowd, self._forget, refusal=refusal, tls=tls)
        with self._lock:
            self._connections.add(connection)
        try:
            connection.start()
        except RuntimeError as error:  # No more threads.
            warn("connection_refused", reason=error)
            self._forget(connection)
            sock.close()

    def _forget(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)


def _end(connections: list[Connection], timeout_s: float) -> bool:
    """End connections gently, after most of the time by force; return whether all ended."""
    began = monotonic()
    for connection in connections:
        connection.stop()
    left = [each for each in connections if not each.join(began + timeout_s * 0.8 - monotonic())]
    for connection in left:
        connection.cut()
    return all([connection.join(began + timeout_s - monotonic()) for connection in left])
