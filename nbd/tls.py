"""TLS under NBD: a socket with the few calls that a connection makes, encrypted; for clients over TCP that began TLS by STARTTLS.

Python's own `SSLSocket` lacks `recvmsg_into`, and OpenSSL allows no two threads in one session, while here one thread receives as others
send. So the session works on memory, under a lock that nobody holds while waiting for the network. Plain connections never come here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Any

RECEIVE_BYTES = 256 << 10
SEND_BYTES = 256 << 10

Path = str | os.PathLike[str]


def server_context(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    """Return a context that shows a certificate and asks clients for one that `client_ca` signed: TLS 1.2 at least, no renegotiation.

    Raises OSError (ssl.SSLError is one) for files that are not there or don't fit, ValueError for a key with a passphrase.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0  # nobody resumes, and a client that leaves them unread would seem to break off
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key, password=_no_passphrase)
    context.load_verify_locations(client_ca)
    return context


class TlsSocket:
    """A connected socket inside TLS, as its server. One thread receives, any send."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Shake hands on a socket that now belongs to this one, within its timeout. Raises OSError that says what the client lacks."""
        self.family = sock.family
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        try:
            self._shake_hands()
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                self._send_pending()  # the alert that says why
            raise ConnectionError(f"no TLS with this client: {error.reason or error}") from error

    def recv(self, nbytes: int) -> bytes:
        """Return up to `nbytes`, at least one, or nothing at the end."""
        data = bytearray(nbytes)
        return bytes(memoryview(data)[: self.recv_into(data)])

    def recv_into(self, into: memoryview | bytearray) -> int:
        """Receive what is there, at least a byte; 0 at the end. Raises OSError."""
        return self.recvmsg_into([memoryview(into)])[0]

    def recvmsg_into(self, views: Sequence[memoryview], _: int = 0, flags: int = 0) -> tuple[int, list[Any], int, None]:
        """Fill views one after the other, as a socket does; with MSG_WAITALL all of them, unless the end comes first. Raises OSError."""
        total = 0
        for view in views:
            at = 0
            while at < len(view):
                got = self._take(view[at:])
                if got is None:
                    if total and not flags & socket.MSG_WAITALL:
                        return total, [], 0, None
                    if not self._receive():
                        return total, [], 0, None
                elif not got:
                    return total, [], 0, None
                else:
                    at += got
                    total += got
        return total, [], 0, None

    def sendall(self, data: bytes | memoryview) -> None:
        """Send all of it, in one piece among what other threads send. Raises OSError."""
        view = memoryview(data)
        with self._sending:
            for at in range(0, len(view), SEND_BYTES):
                piece = view[at : at + SEND_BYTES]
                with self._lock:
                    while piece:
                        piece = piece[self._session.write(piece) :]
                    sealed = self._outgoing.read()
                self._sock.sendall(sealed)

    def settimeout(self, timeout_s: float | None) -> None:
        self._sock.settimeout(timeout_s)

    def setsockopt(self, *option: Any) -> None:
        self._sock.setsockopt(*option)

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        """Say farewell, if that can be done at once, and close."""
        with contextlib.suppress(OSError):
            self._sock.setblocking(False)
            with self._lock, contextlib.suppress(ssl.SSLError):
                self._session.unwrap()
            self._sock.send(self._outgoing.read())
        self._sock.close()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._session.do_handshake()
                return self._send_pending()
            except ssl.SSLWantReadError:
                self._send_pending()
                if not self._receive():
                    raise ConnectionError("the client went away inside the TLS handshake") from None

    def _take(self, into: memoryview) -> int | None:
        """Return how much was decrypted into `into`, 0 at the end, None if more must be received first."""
        try:
            with self._lock:
                got = self._session.read(len(into), into)
        except ssl.SSLWantReadError:
            got = None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0
        if self._outgoing.pending:  # the session itself had something to say, as a new key
            self._send_pending()
        return got

    def _receive(self) -> bool:
        """Wait for more from the network; False at its end. Raises OSError."""
        got = self._sock.recv_into(self._buffer)
        if not got:
            return False
        with self._lock:
            self._incoming.write(self._buffer[:got])
        return True

    def _send_pending(self) -> None:
        with self._sending:
            with self._lock:
                sealed = self._outgoing.read()
            if sealed:
                self._sock.sendall(sealed)


def _no_passphrase() -> str:
    """Take the place of OpenSSL's question at the terminal."""
    raise ValueError("the key has a passphrase")
