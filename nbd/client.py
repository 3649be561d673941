"""`Client`: a small synchronous NBD client, for the demo, the tests and whoever must fill or read an export.

One thread at a time. A request that the server refuses raises OSError with the server's errno, and the client stays usable; a broken
connection raises ConnectionError, a server that breaks the protocol ProtocolError, and the client is of no use afterwards.
Requests longer than the server takes are split, so such a read or write is not one step for the server.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from io import BufferedReader
from typing import Self

from nbd import wire
from nbd.client_handshake import Agreed, ClientHandshake
from nbd.errors import ProtocolError
from nbd.uri import parse_uri

Data = bytes | bytearray | memoryview

TIMEOUT_S = 60.0
PIPELINE_DEPTH = 32
RECEIVE_BYTES = 64 << 10


class Client:
    """A connection to one export; a context manager that says farewell."""

    def __init__(self, uri: str, *, timeout_s: float | None = TIMEOUT_S, structured: bool = True) -> None:
        """Connect to an NBD URI and negotiate. `timeout_s` bounds every single wait for the server.

        Raises ValueError (no NBD URI), OSError (nobody there), RefusedError, ProtocolError.
        """
        target = parse_uri(uri)
        self._sock, self._in = _dial(target.address, timeout_s)
        self._cookie = 0
        try:
            handshake = ClientHandshake(target.export, structured=structured)
            _negotiate(handshake, self._sock, self._in)
        except BaseException:
            self._drop()
            raise
        self.agreed: Agreed = handshake.agreed

    @property
    def size_bytes(self) -> int:
        """The export's size, as told when connecting."""
        return self.agreed.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether the server refuses changes."""
        return self.agreed.read_only

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return the bytes of an extent. Raises OSError."""
        data = bytearray(length_bytes)
        self.read_into(offset_bytes, data)
        return bytes(data)

    def read_into(self, offset_bytes: int, into: Data) -> None:
        """Fill `into` from `offset_bytes` on. Raises OSError; what `into` holds is then undefined."""
        view = memoryview(into).cast("B")
        for at in range(0, len(view), self.agreed.request_bytes_max):
            piece = view[at : at + self.agreed.request_bytes_max]
            cookie = self._send(wire.CMD_READ, offset_bytes + at, len(piece))
            self._finish(cookie, piece, offset_bytes + at)

    def write(self, offset_bytes: int, data: Data, *, fua: bool = False) -> None:
        """Write `data`; with `fua` it is durable on return. Raises OSError."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), self.agreed.request_bytes_max):
            piece = view[at : at + self.agreed.request_bytes_max]
            self._finish(self._send(wire.CMD_WRITE, offset_bytes + at, len(piece), _fua(fua), piece))

    def write_all(self, writes: Iterable[tuple[int, Data]], *, fua: bool = False, depth: int = PIPELINE_DEPTH) -> int:
        """Write (offset, data) pairs with up to `depth` of them in flight; return how many bytes.

        Order among those in flight is the server's: extents that overlap don't belong into one call. Each pair must fit a request.
        Raises OSError if one failed, after all that were in flight are answered; none is sent after the failure was seen.
        """
        waiting, total, failure = 0, 0, 0
        for offset_bytes, data in writes:
            while waiting >= depth:
                failure, waiting = self._receive_any() or failure, waiting - 1
            if failure:
                break
            self._send(wire.CMD_WRITE, offset_bytes, len(data), _fua(fua), data)
            waiting, total = waiting + 1, total + len(data)
        for _ in range(waiting):
            failure = self._receive_any() or failure
        _raise_for(failure)
        return total

    def flush(self) -> None:
        """Make all answered writes durable. Raises OSError."""
        self._finish(self._send(wire.CMD_FLUSH))

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool = False) -> None:
        """Tell the server that the extent is not needed. Raises OSError."""
        self._finish(self._send(wire.CMD_TRIM, offset_bytes, length_bytes, _fua(fua)))

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool = True, fast: bool = False, fua: bool = False) -> None:
        """Make the extent read as zero; `fast`: only if that is quicker than writing, else OSError(ENOTSUP)."""
        flags = _fua(fua) | (0 if punch else wire.CMD_FLAG_NO_HOLE) | (wire.CMD_FLAG_FAST_ZERO if fast else 0)
        self._finish(self._send(wire.CMD_WRITE_ZEROES, offset_bytes, length_bytes, flags))

    def cache(self, offset_bytes: int, length_bytes: int) -> None:
        """Tell the server that the extent is read soon. Raises OSError."""
        self._finish(self._send(wire.CMD_CACHE, offset_bytes, length_bytes))

    def block_status(self, offset_bytes: int, length_bytes: int, *, one: bool = False) -> list[tuple[int, int]]:
        """Return (length, wire.STATE_* flags) pairs from the extent's start; they may cover less or more than asked.

        Raises OSError(ENOTSUP) if it was not negotiated.
        """
        if self.agreed.status_id is None:
            raise OSError(errno.ENOTSUP, "the server tells no block status")
        cookie = self._send(wire.CMD_BLOCK_STATUS, offset_bytes, length_bytes, wire.CMD_FLAG_REQ_ONE if one else 0)
        found: list[tuple[int, int]] = []
        self._finish(cookie, found=found)
        return found

    def close(self) -> None:
        """Say farewell and close; may be called twice. The server finishes what it has begun."""
        if self._sock.fileno() >= 0:
            try:
                self._send(wire.CMD_DISC)
                self._sock.shutdown(socket.SHUT_WR)
                self._sock.recv(1)  # Closed by the server: its session has ended.
            except OSError:
                pass  # It was closed before us; nothing waits for an answer.
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        self._in.close()
        self._sock.close()

    def _send(self, command: int, offset_bytes: int = 0, length_bytes: int = 0, flags: int = 0, payload: Data = b"") -> int:
        """Send a request; return its cookie."""
        self._cookie += 1
        header = wire.pack_request(command, self._cookie, offset_bytes, length_bytes, flags)
        sent = self._sock.sendmsg([header, payload])
        if sent < len(header) + length_bytes and command == wire.CMD_WRITE:
            self._sock.sendall(memoryview(payload).cast("B")[sent - len(header) :])
        return self._cookie

    def _finish(self, cookie: int, into: memoryview | None = None, at: int = 0, found: list[tuple[int, int]] | None = None) -> None:
        """Receive the whole reply to the only request in flight. Raises OSError with its errno."""
        done, failure, missing = False, 0, len(into) if into is not None else 0
        while not done:
            kind, flags, got, length_bytes = self._receive_head()
            if got != cookie:
                raise ProtocolError("a reply to a request that is not in flight", cookie=got)
            done = bool(flags & wire.CHUNK_FLAG_DONE)
            if kind is None:
                failure = length_bytes
                if not failure and into is not None:
                    self._receive(into)
                    missing = 0
            elif kind in (wire.CHUNK_OFFSET_DATA, wire.CHUNK_OFFSET_HOLE) and into is not None:
                missing -= self._receive_data(kind, length_bytes, into, at)
            else:
                failure = self._receive_chunk(kind, length_bytes, found) or failure
        _raise_for(failure)
        if missing:
            raise ProtocolError("a read was answered in part", missing_bytes=missing)

    def _receive_any(self) -> int:
        """Receive the reply to some write in flight; return its errno."""
        kind, flags, _, length_bytes = self._receive_head()
        if kind is None:
            return length_bytes
        failure = self._receive_chunk(kind, length_bytes, None)
        return failure if flags & wire.CHUNK_FLAG_DONE else failure or self._receive_any()

    def _receive_head(self) -> tuple[int | None, int, int, int]:
        """Return kind (None: a simple reply), flags, cookie, and payload length (the errno of a simple reply)."""
        head = self._receive_bytes(wire.SIMPLE_REPLY.size)
        magic, word, cookie = wire.SIMPLE_REPLY.unpack(head)
        if magic == wire.SIMPLE_REPLY_MAGIC:
            return None, wire.CHUNK_FLAG_DONE, cookie, word
        if magic != wire.STRUCTURED_REPLY_MAGIC:
            raise ProtocolError("a reply does not begin with its magic number", got=hex(magic))
        _, flags, kind, cookie, length_bytes = wire.CHUNK.unpack(head + self._receive_bytes(4))
        return kind, flags, cookie, length_bytes

    def _receive_data(self, kind: int, length_bytes: int, into: memoryview, at: int) -> int:
        """Receive a piece of a read to its place; return its length."""
        offset_bytes = wire.U64.unpack(self._receive_bytes(8))[0]
        hole = kind == wire.CHUNK_OFFSET_HOLE
        piece_bytes = wire.U32.unpack(self._receive_bytes(4))[0] if hole else length_bytes - 8
        begin = offset_bytes - at
        if begin < 0 or piece_bytes <= 0 or begin + piece_bytes > len(into) or (hole and length_bytes != 12):
            raise ProtocolError("data outside of the read", offset_bytes=offset_bytes, length_bytes=piece_bytes)
        if hole:
            into[begin : begin + piece_bytes] = bytes(piece_bytes)
        else:
            self._receive(into[begin : begin + piece_bytes])
        return piece_bytes

    def _receive_chunk(self, kind: int, length_bytes: int, found: list[tuple[int, int]] | None) -> int:
        """Receive a chunk without data; return its errno, 0 if it is no failure."""
        if length_bytes > wire.EXTENTS_MAX * 64:
            raise ProtocolError("a chunk is too long", length_bytes=length_bytes)
        payload = self._receive_bytes(length_bytes)
        if kind & (1 << 15):
            return wire.unpack_error_chunk(payload) or errno.EIO
        if kind == wire.CHUNK_BLOCK_STATUS and found is not None:
            context, extents = wire.unpack_block_status(payload)
            if context == self.agreed.status_id:
                found += extents
        elif kind != wire.CHUNK_NONE:
            raise ProtocolError("a chunk of a kind that was not asked for", got=kind)
        return 0

    def _receive_bytes(self, nbytes: int) -> bytes:
        data = self._in.read(nbytes)
        if len(data) != nbytes:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        return data

    def _receive(self, into: memoryview) -> None:
        while into:
            got = self._in.readinto(into)
            if not got:
                raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
            into = into[got:]


def list_exports(uri: str, *, timeout_s: float | None = TIMEOUT_S) -> list[str]:
    """Return the names that the server at `uri` offers; its export is ignored. Raises as `Client` does."""
    sock, incoming = _dial(parse_uri(uri).address, timeout_s)
    with sock, incoming:
        handshake = ClientHandshake(listing=True)
        _negotiate(handshake, sock, incoming)
        sock.sendall(wire.pack_option(wire.OPT_ABORT))
        return handshake.names


def _dial(address: str | tuple[str, int], timeout_s: float | None) -> tuple[socket.socket, BufferedReader]:
    """Connect; return the socket and its buffered incoming side."""
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
    return sock, sock.makefile("rb", buffering=RECEIVE_BYTES)


def _negotiate(handshake: ClientHandshake, sock: socket.socket, incoming: BufferedReader) -> None:
    while not handshake.over:
        data = incoming.read(handshake.wanted_bytes)
        if len(data) != handshake.wanted_bytes:
            raise ProtocolError("the server closed the connection inside the handshake")
        answer = handshake.feed(data)
        if answer:
            sock.sendall(answer)


def _fua(wanted: bool) -> int:
    return wire.CMD_FLAG_FUA if wanted else 0


def _raise_for(failure: int) -> None:
    if failure:
        raise OSError(failure, os.strerror(failure))
