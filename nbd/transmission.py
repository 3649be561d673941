"""`Transmission`: the hot loop. Serves one connection's requests after the handshake, on the connection's own thread.

One receive brings in many requests, one send answers them; payloads are never copied (see `device.Lane`). What is guaranteed:

1. Requests are judged by `wire.refusal` before anything else happens to them.
2. A write reaches the device only when its payload has arrived whole.
3. Writes, zeroes and trims of a connection are done in the order in which they stand in the stream, unless the device is slow: then
   they run side by side (`apart`), and the session orders those that overlap.
4. A flush, and FUA, covers everything answered before it on any connection.
5. Reads that the page cache can serve never wait for those that it can't (`reads`).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from functools import partial
from time import perf_counter

from nbd import wire
from nbd.apart import Apart, Crowd, Gauge, count_waits
from nbd.device import BlockDevice, Session
from nbd.errors import ProtocolError, attempt, wire_errno
from nbd.flusher import Flusher
from nbd.outbox import DATA_BYTES_MAX, Outbox
from nbd.placement import Placement, place
from nbd.reads import Reads

MOVED_BYTES_MAX = 32 << 10
"""A write that goes on past the end of the chunk is moved to a new one below this length, and continued elsewhere from it on."""

ROOM_BYTES_MIN = 16 << 10
"""Less room than this in a chunk is not worth a receive."""

DISCARD_BYTES_MAX = 128 << 20
"""A refused write's payload is read and thrown away up to this length; above it the connection is closed."""

STALL_S_MAX = 60
"""A client that sends nothing for so long inside a write that holds reserved memory is given up."""

HEADER_BYTES = wire.REQUEST.size

_STALL = struct.pack("ll", STALL_S_MAX, 0)
_FOR_EVER = struct.pack("ll", 0, 0)
_unpack = wire.REQUEST.unpack_from
_refusal = wire.refusal


class Transmission:
    """The requests of one connection, from the end of the handshake to the end of the connection."""

    def __init__(self, sock: socket.socket, device: BlockDevice, session: Session, terms: wire.Terms, crowd: Crowd) -> None:
        self._sock = sock
        self._device = device
        self._session = session
        self._lane = session.lane
        self._terms = terms
        self._receive_bytes_max = len(session.lane.chunk)  # later chunks may be longer; the outbox has room for the replies of this much
        self._outbox = Outbox(sock, structured=terms.structured, requests_max=self._receive_bytes_max // HEADER_BYTES)
        self._reads = Reads(session, self._outbox)
        self._flusher = Flusher(session.flush, self._outbox)
        self._placement = Placement(self._receive_bytes_max)
        self._gauge = Gauge(crowd)
        self._apart = Apart(crowd)
        self._concurrent = getattr(session, "concurrent", False)
        self._concurrent_reads = getattr(session, "concurrent_reads", self._concurrent)
        self._handing_over = False
        self._requests = 0
        self._discard_bytes = 0
        self.over = False
        """Set by the client's farewell, or by another thread: `run` returns after the present batch."""

    def run(self) -> None:
        """Serve until the client ends the connection. Raises ProtocolError, or OSError if the socket fails."""
        lane, apart, send, receive = self._lane, self._apart, self._outbox.send, self._sock.recv_into
        chunk, most, placement = lane.chunk, self._receive_bytes_max, self._placement
        start = end = place(lane.tail)
        while True:
            if placement.length_bytes:
                received = placement.receive(self._sock, chunk, start, end)
            else:
                got = receive(chunk[end : end + most])
                received = end + got if got else 0
            if not received:
                if start != end:
                    raise ProtocolError("the client went away inside a request")
                return
            start, end = self._serve_batch(chunk, start, received)
            send()
            if self.over:
                return
            if start == end and not apart.in_flight:
                start = end = place(lane.tail)
            if start != end or len(chunk) - end < ROOM_BYTES_MIN:
                chunk, start, end = self._make_room(chunk, start, end)
            if self._discard_bytes:
                self._discard(chunk[end:])

    def finish(self) -> None:
        """Wait until everything that was begun is answered."""
        self._apart.close()
        self._flusher.close()

    def _serve_batch(self, chunk: memoryview, start: int, end: int) -> tuple[int, int]:
        """Serve what was received: in line, or apart if that was seen to be slow. Return the part of the chunk that is left unserved."""
        gauge, apart, reads, began = self._gauge, self._apart, self._reads, perf_counter()
        if gauge.slow and self._concurrent_reads and self._is_crowded(chunk, start, end) and apart.available():
            self._handing_over = not gauge.probe_due(began)
        else:
            self._handing_over = False
        self._requests = 0
        waits = count_waits() if gauge.suspect else 0
        stop, end = self._serve(chunk, start, end)
        if reads.misses:
            reads.finish()
        if not self._handing_over and self._requests:
            now = perf_counter()
            waits = count_waits() - waits if gauge.suspect else 0
            gauge.note(now - began, self._requests, stop - start + self._outbox.fill, now, waits)
        return stop, end

    def _is_crowded(self, chunk: memoryview, start: int, end: int) -> bool:
        """Whether there is more than one request to serve, so that a hand-over pays."""
        if self._apart.in_flight:
            return True
        _, _, command, _, _, length_bytes = _unpack(chunk, start) if end - start >= HEADER_BYTES else (0,) * 6
        stop = start + HEADER_BYTES + (length_bytes if command == wire.CMD_WRITE else 0)
        return end > (place(stop) if self._placement.length_bytes else stop)

    def _serve(self, chunk: memoryview, at: int, end: int) -> tuple[int, int]:
        """Serve all whole requests in `chunk[at:end]`; return where the first incomplete one begins, and where that ends."""
        terms, size_bytes, reply = self._terms, self._device.size_bytes, self._outbox.add_simple
        begin, write, handing_over = at, self._session.write, self._handing_over and self._concurrent
        unanswered, answer_every = 0, self._gauge.answer_every
        foretold, command, length_bytes = self._placement.length_bytes, -1, 0
        while end - at >= HEADER_BYTES:
            magic, flags, command, cookie, offset_bytes, length_bytes = _unpack(chunk, at)
            if magic != wire.REQUEST_MAGIC:
                raise ProtocolError("a request does not begin with its magic number", got=hex(magic))
            error = _refusal(terms, size_bytes, command, flags, offset_bytes, length_bytes)
            body = at + HEADER_BYTES
            if foretold and (length_bytes != foretold or command != wire.CMD_WRITE or error):
                end, foretold = self._placement.close(chunk, at, end), 0
            if command == wire.CMD_WRITE and not error:
                stop = body + length_bytes
                if stop > end:
                    break
                following = place(stop) if foretold else stop
                if flags or handing_over:
                    job = partial(write, offset_bytes, chunk[body:stop], length_bytes)
                    self._change(job, flags, cookie, at == begin and following == end)
                else:
                    try:
                        write(offset_bytes, chunk[body:stop], length_bytes, False)
                    except OSError as failure:
                        error = wire_errno(failure)
                    reply(cookie, error)
                    unanswered += 1
                    if unanswered == answer_every:
                        self._outbox.send()
                        unanswered = 0
                at = following
            elif error:
                at = self._refuse(command, cookie, length_bytes, error, body, end)
            else:
                self._serve_other(command, flags, cookie, offset_bytes, length_bytes, at == begin and body == end)
                at = body
            self._requests += 1
        self._placement.saw(command, length_bytes)
        return at, end

    def _refuse(self, command: int, cookie: int, length_bytes: int, error: int, body: int, end: int) -> int:
        """Answer a request that is not served; return where the next one begins in what was received, its end if there is none."""
        if command == wire.CMD_DISC:
            self.over = True
            return end
        self._outbox.add_error(command, cookie, error)
        if command != wire.CMD_WRITE:
            return body
        if length_bytes > DISCARD_BYTES_MAX:
            raise ProtocolError("a refused write is too long to be thrown away", length_bytes=length_bytes)
        self._discard_bytes = max(0, body + length_bytes - end)
        return min(body + length_bytes, end)

    def _serve_other(self, command: int, flags: int, cookie: int, offset_bytes: int, length_bytes: int, alone: bool) -> None:
        """Serve a good request that is no write; `alone` if nothing else was received with it."""
        if command == wire.CMD_READ:
            if self._handing_over and length_bytes <= DATA_BYTES_MAX:
                self._apart.submit(partial(self._reads.serve_apart, cookie, offset_bytes, length_bytes))
            else:
                self._reads.serve(flags, cookie, offset_bytes, length_bytes, alone)
        elif command == wire.CMD_BLOCK_STATUS:
            self._block_status(flags, cookie, offset_bytes, length_bytes)
        elif command == wire.CMD_FLUSH:
            self._flush(cookie, alone)
        elif command == wire.CMD_CACHE:
            self._outbox.add_simple(cookie, 0)
        elif command == wire.CMD_TRIM:
            self._change(lambda durable: self._session.trim(offset_bytes, length_bytes, fua=durable), flags, cookie, alone)
        else:
            punch, fast = not flags & wire.CMD_FLAG_NO_HOLE, bool(flags & wire.CMD_FLAG_FAST_ZERO)
            zero = partial(self._session.zero, offset_bytes, length_bytes, punch=punch, fast=fast)
            self._change(lambda durable: zero(fua=durable), flags, cookie, alone)

    def _flush(self, cookie: int, alone: bool) -> None:
        """Flush in line if nothing else has to wait for it."""
        if alone and self._flusher.quick and not self._apart.in_flight:
            self._outbox.add_simple(cookie, self._flusher.flush())
        else:
            self._flusher.submit(cookie)

    def _change(self, job: Callable[[bool], None], flags: int, cookie: int, alone: bool) -> bool:
        """Do a change that is durable at once if it is told so, and answer it; return False if it failed.

        With FUA it is durable in line only if it is `alone`; several share one flush, which answers them. Handed over to another
        thread, its outcome is not known here: True.
        """
        fua = bool(flags & wire.CMD_FLAG_FUA)
        if self._handing_over and self._concurrent:
            self._apart.submit(partial(self._change_apart, job, fua, cookie))
            return True
        durable = fua and alone and self._flusher.quick
        try:
            job(durable)
        except OSError as failure:
            self._outbox.add_simple(cookie, wire_errno(failure))
            return False
        if fua and not durable:
            self._flusher.submit(cookie)
        else:
            self._outbox.add_simple(cookie, 0)
        return True

    def _change_apart(self, job: Callable[[bool], None], fua: bool, cookie: int) -> None:
        error = attempt(partial(job, False))
        if fua and not error:
            self._flusher.submit(cookie)
        else:
            self._outbox.send_apart(wire.pack_simple_reply(cookie, error))

    def _block_status(self, flags: int, cookie: int, offset_bytes: int, length_bytes: int) -> None:
        limit = 1 if flags & wire.CMD_FLAG_REQ_ONE else wire.EXTENTS_MAX
        try:
            extents = self._session.extents(offset_bytes, length_bytes, limit)
        except OSError as failure:
            self._outbox.add_error(wire.CMD_BLOCK_STATUS, cookie, wire_errno(failure))
        else:
            self._outbox.add(wire.pack_block_status(cookie, extents))

    def _make_room(self, chunk: memoryview, start: int, end: int) -> tuple[memoryview, int, int]:
        """Find room for the request that begins at `start`; return the chunk, and what of it is received and unserved."""
        lane, length_bytes = self._lane, 0
        if end - start >= HEADER_BYTES:
            length_bytes = _unpack(chunk, start)[5]
            if start + HEADER_BYTES + length_bytes <= len(chunk):
                return chunk, start, end
        elif len(chunk) - start >= ROOM_BYTES_MIN:
            return chunk, start, end
        self._apart.drain()
        if start == end and len(chunk) - lane.tail >= ROOM_BYTES_MIN:
            return chunk, place(lane.tail), place(lane.tail)
        if length_bytes < MOVED_BYTES_MAX:
            lane.turn(chunk[start:end])
            return lane.chunk, lane.tail, lane.tail + end - start
        self._write_long(chunk, start, end)
        if len(lane.chunk) - lane.tail < ROOM_BYTES_MIN:
            lane.turn(lane.chunk[:0])
        return lane.chunk, place(lane.tail), place(lane.tail)

    def _write_long(self, chunk: memoryview, start: int, end: int) -> None:
        """Receive the rest of a write into reserved chunks, then serve it: a payload is never moved, however long."""
        lane = self._lane
        _, flags, _, cookie, offset_bytes, length_bytes = _unpack(chunk, start)
        first = chunk[start + HEADER_BYTES :]
        reserved = lane.reserve(length_bytes - len(first))
        written = self._handing_over = False
        try:
            pieces, used = _cut(reserved, length_bytes - len(first))
            self._receive_exactly([chunk[end:], *pieces] if end < len(chunk) else list(pieces))
            pieces.insert(0, first)
            job = partial(self._session.write, offset_bytes, pieces, length_bytes)
            written = self._change(job, flags, cookie, True)
        finally:
            if written:
                lane.adopt(reserved, used)
            else:
                lane.abandon(reserved)
        self._outbox.send()

    def _receive_exactly(self, views: list[memoryview]) -> None:
        """Fill all of `views`, and use the list up. Raises ProtocolError if the client goes away or stalls before."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _STALL)
        while views:
            try:
                got = self._sock.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
            except BlockingIOError as error:
                raise ProtocolError("the client stalled inside a write", limit_s=STALL_S_MAX) from error
            if not got:
                raise ProtocolError("the client went away inside a write")
            while views and got >= len(views[0]):
                got -= len(views.pop(0))
            if got:
                views[0] = views[0][got:]
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FOR_EVER)

    def _discard(self, waste: memoryview) -> None:
        """Read the rest of a refused write's payload and throw it away; `waste` is memory that nobody needs."""
        while self._discard_bytes:
            got = self._sock.recv_into(waste[: self._discard_bytes])
            if not got:
                raise ProtocolError("the client went away inside a write")
            self._discard_bytes -= got


def _cut(chunks: list[memoryview], nbytes: int) -> tuple[list[memoryview], int]:
    """Return the first `nbytes` of `chunks` as pieces, and how much of the last chunk they use."""
    pieces, left = [], nbytes
    for chunk in chunks:
        pieces.append(chunk[:left])
        left -= len(pieces[-1])
    return pieces, len(pieces[-1])
