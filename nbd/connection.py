"""`Connection`: one client, from accept to the end, on a thread of its own. Made by `server`.

Order of the end: the session takes no more requests, everything begun is answered or given up, then session, lane and socket are closed.
Whatever a client does, or a device raises, ends at most this connection, with one line in the log.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from ssl import SSLContext
from time import monotonic

from nbd import wire
from nbd.apart import Crowd
from nbd.device import BlockDevice, Session
from nbd.errors import ProtocolError
from nbd.exports import Exports, resolve
from nbd.handshake import ExportInfo, ServerHandshake
from nbd.notices import inform, log, warn
from nbd.tls import TlsSocket
from nbd.transmission import Transmission

HANDSHAKE_S_MAX = 30.0


class Connection:
    """A client's socket and what is served on it. `export` and `device` are set once the handshake is done."""

    def __init__(
        self,
        sock: socket.socket,
        exports: Exports,
        crowd: Crowd,
        ended: Callable[[Connection], None],
        *,
        refusal: str = "",
        tls: SSLContext | None = None,
    ) -> None:
        """Serve `sock`, which is now the connection's own, with `tls` over TLS only; `ended` is called last, on the connection's thread."""
        self._crowd = crowd
        self.export: str | None = None
        self._sock: socket.socket | TlsSocket = sock
        self._tls = tls
        self._exports = exports
        self._ended = ended
        self._refusal = refusal
        self._found: tuple[str, BlockDevice] | None = None
        self._transmission: Transmission | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="nbd-connection", daemon=True)
        self._peer = _name_peer(sock)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Let the connection end after the batch that it is serving."""
        self._stopping = True
        if self._transmission is not None:
            self._transmission.over = True
        self._shut(socket.SHUT_RD)

    def cut(self) -> None:
        """End the connection now, replies unsent."""
        self.stop()
        self._shut(socket.SHUT_RDWR)

    def _run(self) -> None:
        reason = "closed by the client"
        try:
            reason = self._serve() or reason
        except (ProtocolError, OSError) as error:
            reason = str(error)
            if not self._stopping:
                warn("connection_failed", peer=self._peer, export=self.export, reason=reason)
        except Exception:
            log.exception("connection_crashed peer=%s export=%s", self._peer, self.export)
        finally:
            self._sock.close()
            inform("connection_ended", peer=self._peer, export=self.export, reason=reason)
            self._ended(self)

    def _serve(self) -> str:
        """Negotiate and serve; return why it ended if the client did not end it."""
        if self._sock.family in (socket.AF_INET, socket.AF_INET6):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        negotiated = self._negotiate()
        if negotiated is None:
            return "the client took no export"
        terms, device, session = negotiated
        try:
            return self._transmit(terms, device, session)
        finally:
            _close(session)

    def _transmit(self, terms: wire.Terms, device: BlockDevice, session: Session) -> str:
        self._transmission = Transmission(self._sock, device, session, terms, self._crowd)
        self._crowd.enter()
        try:
            if self._stopping or not self._still_offered():
                return "the export is gone"
            inform("connection_serving", peer=self._peer, export=self.export)
            self._transmission.run()
        except BaseException:
            self._shut(socket.SHUT_RDWR)
            raise
        finally:
            self._transmission.finish()
            self._crowd.leave()
        return "the server is stopping" if self._stopping else ""

    def _negotiate(self) -> tuple[wire.Terms, BlockDevice, Session] | None:
        """Lead the client through the handshake; return what was agreed, or None if it only asked."""
        deadline = monotonic() + HANDSHAKE_S_MAX
        handshake = ServerHandshake(self._find, self._exports.names, refusal=self._refusal, tls=self._tls is not None)
        answer = handshake.greeting()
        session = None
        try:
            while True:
                self._sock.settimeout(max(0.001, deadline - monotonic()))
                with contextlib.suppress(OSError) if handshake.over else contextlib.nullcontext():
                    self._sock.sendall(answer)  # Who aborts need not wait for the answer.
                if session is not None:
                    self._sock.settimeout(None)
                    agreed, session = (handshake.terms, self._found[1], session), None
                    return agreed
                if handshake.over:
                    return None
                if handshake.starts_tls:
                    self._sock = TlsSocket(self._sock, self._tls)
                    handshake.secured()
                answer = handshake.feed(self._receive(handshake.wanted_bytes, deadline))
                if handshake.terms is not None:
                    session, answer = self._open(handshake, answer)
        finally:
            if session is not None:
                _close(session)

    def _open(self, handshake: ServerHandshake, answer: bytes) -> tuple[Session | None, bytes]:
        """Open the device that was agreed on; if it can't be opened, say so instead of `answer`."""
        name, device = self._found
        self.export = name
        try:
            return device.open_session(), answer
        except OSError as error:
            warn("session_refused", peer=self._peer, export=name, reason=error)
            self.export = None
            return None, handshake.retract(f"the export can't be used now: {error.strerror or error}")

    def _find(self, name: str) -> ExportInfo | None:
        self._found = resolve(self._exports, name)
        if self._found is None:
            return None
        device = self._found[1]
        return ExportInfo(device.size_bytes, device.read_only)

    def _still_offered(self) -> bool:
        """Whether the export was not removed while the client negotiated."""
        return self._exports.find(self.export) is self._found[1]

    def _receive(self, nbytes: int, deadline: float) -> bytes:
        """Receive exactly `nbytes`. Raises ProtocolError at the end of the stream or of the time."""
        parts = []
        while nbytes:
            self._sock.settimeout(max(0.001, deadline - monotonic()))
            try:
                part = self._sock.recv(nbytes)
            except TimeoutError as error:
                raise ProtocolError("the handshake took too long", limit_s=HANDSHAKE_S_MAX) from error
            if not part:
                raise ProtocolError("the client went away inside the handshake")
            parts.append(part)
            nbytes -= len(part)
        return b"".join(parts)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(how)


def _close(session: Session) -> None:
    """Close session and lane, the lane whatever happens."""
    try:
        session.close()
    finally:
        session.lane.close()


def _name_peer(sock: socket.socket) -> str:
    """Return what the log calls this client."""
    if sock.family == socket.AF_UNIX:
        return "unix"
    with contextlib.suppress(OSError):
        return "{}:{}".format(*sock.getpeername()[:2])
    return "gone"
