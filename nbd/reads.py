"""`Reads`: how one connection's reads are served. Called by `transmission` on the connection's thread.

Page-cache hits are read straight into the outbox, in line. Misses of a received batch are announced to the device as they are met and
read in order at the end of the batch, after the replies to everything else went out. Long reads go out in pieces, so a connection's
memory does not depend on the length of its requests.
"""

from __future__ import annotations

from nbd import wire
from nbd.device import Session
from nbd.errors import ProtocolError, attempt, wire_errno
from nbd.outbox import DATA_BYTES_MAX, Outbox


class Reads:
    """The reads of one connection."""

    def __init__(self, session: Session, outbox: Outbox) -> None:
        self._session = session
        self._outbox = outbox
        self._head_bytes = wire.CHUNK_DATA.size if outbox.structured else wire.SIMPLE_REPLY.size
        self.misses: list[tuple[int, int, int, int]] = []

    def serve(self, flags: int, cookie: int, offset_bytes: int, length_bytes: int, alone: bool) -> None:
        """Answer a read from the page cache, or put it off to `finish`; `alone` if nothing else was received with it."""
        if length_bytes > DATA_BYTES_MAX:
            self.misses.append((flags, cookie, offset_bytes, length_bytes))
            return
        outbox = self._outbox
        outbox.make_room(length_bytes)
        begin = outbox.fill + self._head_bytes
        try:
            hit = self._session.read_cached(offset_bytes, outbox.buffer[begin : begin + length_bytes])
        except OSError as failure:
            outbox.add_error(wire.CMD_READ, cookie, wire_errno(failure))
            return
        if hit:
            self._add_head(cookie, offset_bytes, length_bytes)
            return
        if not alone:
            self._session.announce(offset_bytes, length_bytes)
        self.misses.append((flags, cookie, offset_bytes, length_bytes))

    def serve_apart(self, cookie: int, offset_bytes: int, length_bytes: int) -> None:
        """Answer a read on another thread, apart from the outbox. Raises OSError if the client is gone."""
        outbox = self._outbox
        reply = memoryview(bytearray(self._head_bytes + length_bytes))
        error = attempt(lambda: self._session.read(offset_bytes, reply[self._head_bytes :]))
        if error:
            outbox.send_apart(outbox.pack_error(wire.CMD_READ, cookie, error))
        else:
            _pack_head(reply, 0, outbox.structured, cookie, offset_bytes, length_bytes)
            outbox.send_apart(reply)

    def finish(self) -> None:
        """Read in order what was put off."""
        outbox = self._outbox
        outbox.send()
        for flags, cookie, offset_bytes, length_bytes in self.misses:
            if length_bytes > DATA_BYTES_MAX:
                self._read_long(flags, cookie, offset_bytes, length_bytes)
                continue
            outbox.make_room(length_bytes)
            begin = outbox.fill + self._head_bytes
            try:
                self._session.read(offset_bytes, outbox.buffer[begin : begin + length_bytes])
            except OSError as failure:
                outbox.add_error(wire.CMD_READ, cookie, wire_errno(failure))
            else:
                self._add_head(cookie, offset_bytes, length_bytes)
        self.misses.clear()

    def _add_head(self, cookie: int, offset_bytes: int, length_bytes: int, flags: int = wire.CHUNK_FLAG_DONE) -> None:
        """Put the head before data that stands where it belongs in the outbox."""
        outbox = self._outbox
        _pack_head(outbox.buffer, outbox.fill, outbox.structured, cookie, offset_bytes, length_bytes, flags)
        outbox.fill += self._head_bytes + length_bytes

    def _read_long(self, flags: int, cookie: int, offset_bytes: int, length_bytes: int) -> None:
        if self._outbox.structured and not flags & wire.CMD_FLAG_DF:
            self._read_in_chunks(cookie, offset_bytes, length_bytes)
        else:
            self._read_in_pieces(cookie, offset_bytes, length_bytes)

    def _read_in_chunks(self, cookie: int, offset_bytes: int, length_bytes: int) -> None:
        """Answer by a chunk for each piece; a failure is told in its place."""
        outbox, end = self._outbox, offset_bytes + length_bytes
        for at in range(offset_bytes, end, DATA_BYTES_MAX):
            outbox.send()
            piece_bytes = min(DATA_BYTES_MAX, end - at)
            try:
                self._session.read(at, outbox.buffer[self._head_bytes : self._head_bytes + piece_bytes])
            except OSError as failure:
                outbox.add_error(wire.CMD_READ, cookie, wire_errno(failure))
                return
            self._add_head(cookie, at, piece_bytes, wire.CHUNK_FLAG_DONE if at + piece_bytes == end else 0)

    def _read_in_pieces(self, cookie: int, offset_bytes: int, length_bytes: int) -> None:
        """Answer by one head and data in pieces. A failure after the first can't be told: the connection must end."""
        outbox, head_bytes = self._outbox, self._head_bytes
        outbox.send()
        first = outbox.buffer[: head_bytes + DATA_BYTES_MAX]
        try:
            self._session.read(offset_bytes, first[head_bytes:])
        except OSError as failure:
            outbox.add_error(wire.CMD_READ, cookie, wire_errno(failure))
            return
        _pack_head(outbox.buffer, 0, outbox.structured, cookie, offset_bytes, length_bytes)
        end = offset_bytes + length_bytes
        with outbox.lock:
            outbox.sock.sendall(first)
            for at in range(offset_bytes + DATA_BYTES_MAX, end, DATA_BYTES_MAX):
                piece = outbox.buffer[: min(DATA_BYTES_MAX, end - at)]
                try:
                    self._session.read(at, piece)
                except OSError as failure:
                    raise ProtocolError("a read failed in the middle of its reply", errno=failure.errno) from failure
                outbox.sock.sendall(piece)


def _pack_head(
    buffer: memoryview,
    at: int,
    structured: bool,
    cookie: int,
    offset_bytes: int,
    length_bytes: int,
    flags: int = wire.CHUNK_FLAG_DONE,
) -> None:
    """Write the head of a read's data to `buffer`."""
    if structured:
        magic, kind = wire.STRUCTURED_REPLY_MAGIC, wire.CHUNK_OFFSET_DATA
        wire.CHUNK_DATA.pack_into(buffer, at, magic, flags, kind, cookie, length_bytes + 8, offset_bytes)
    else:
        wire.SIMPLE_REPLY.pack_into(buffer, at, wire.SIMPLE_REPLY_MAGIC, 0, cookie)
