"""A client's side of an NBD connection, written from the protocol's text: handshake, requests, simple replies."""

from __future__ import annotations

import struct

from tests.simulation.sockets import Socket

WRITE, FLUSH, TRIM, ZEROES, READ = 1, 3, 4, 6, 0
FUA, NO_HOLE = 1, 2
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")


class LostError(Exception):
    """The connection ended; what became of the requests under way is not known."""


class Line:
    """One connection. One thread uses it."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._cookie = 0
        self.size_bytes = 0

    def negotiate(self, export: str) -> None:
        """Take an export. Raises LostError when the server has none of that name now."""
        greeting = self._exactly(18)
        assert greeting[:8] == b"NBDMAGIC" and greeting[8:16] == b"IHAVEOPT"
        name = export.encode()
        self._send(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
        self.size_bytes, _ = struct.unpack(">QH", self._exactly(10))

    def request(self, command: int, offset_bytes: int = 0, length_bytes: int = 0, flags: int = 0, payload: bytes = b"") -> int:
        """Send a request; return its cookie."""
        self._cookie += 1
        self._send(_REQUEST.pack(0x25609513, flags, command, self._cookie, offset_bytes, length_bytes) + payload)
        return self._cookie

    def reply(self, reads: dict[int, int]) -> tuple[int, int, bytes]:
        """Return cookie, errno and data of the next reply; `reads` tells how much data the reply to a cookie carries."""
        magic, error, cookie = _REPLY.unpack(self._exactly(16))
        assert magic == 0x67446698, hex(magic)
        return cookie, error, self._exactly(reads[cookie]) if cookie in reads and not error else b""

    def leave(self) -> None:
        self._sock.close()

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise LostError from error

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._sock.recv(size)
            if not part:
                raise LostError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
