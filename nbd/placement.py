"""`Placement`: where in a chunk requests are received, so that payloads lie on a boundary of the processor's cache lines.

Copying 64 KiB out of a socket takes 8.8 us to such a boundary and 11 us beside one (docs/decisions.md 32), and a payload behind a header of
28 bytes is never on one by itself. A batch therefore begins where its first payload is aligned; and when a client sends one long write like
the other, each is received as if the next were of that length too, with room left in between. If it is not, what was received
behind the room is moved up to it.
"""

from __future__ import annotations

import socket

from nbd import wire

ALIGNMENT = 64
EQUAL_BYTES_MIN = 32 << 10
"""Below this length, the parts of a receive cost more than what an aligned copy saves."""

EQUAL_BATCHES_MIN = 4
"""So many batches in a row must end in a write of one length before the next is foretold."""

_HEADER_BYTES = wire.REQUEST.size


def place(at: int) -> int:
    """Return the first place from `at` on where a request's header leaves its payload aligned, in a chunk that is itself aligned."""
    return (at + _HEADER_BYTES + ALIGNMENT - 1 & -ALIGNMENT) - _HEADER_BYTES


class Placement:
    """Foretell the lengths of one connection's writes. Used by its thread alone."""

    def __init__(self, receive_bytes_max: int) -> None:
        self.length_bytes = 0
        """The payload of every request that is received next, each header at a `place`; 0: nothing is foretold, all lies side by side."""
        self._receive_bytes_max = receive_bytes_max
        self._last_bytes = 0
        self._equal = 0

    def saw(self, command: int, length_bytes: int) -> None:
        """Learn from the last request of a batch, of which its header may be all that is there; a negative command: there is none."""
        if command < 0:
            return
        if command != wire.CMD_WRITE or length_bytes != self._last_bytes:
            self._equal = 0  # what was foretold wrongly, `close` has ended
            self._last_bytes = length_bytes if command == wire.CMD_WRITE else 0
            return
        self._equal += 1
        if self._equal >= EQUAL_BATCHES_MIN and EQUAL_BYTES_MIN <= length_bytes < self._receive_bytes_max:
            self.length_bytes = length_bytes

    def receive(self, sock: socket.socket, chunk: memoryview, start: int, end: int) -> int:
        """Receive behind `chunk[start:end]`, the beginning of a request, as foretold; return the new end, 0 if there is no more to come.

        Where a request has arrived whole, that is the place of the next one's header. Raises OSError.
        """
        request_bytes = _HEADER_BYTES + self.length_bytes
        stop = start + request_bytes
        views, left = [chunk[end:stop]], self._receive_bytes_max - (stop - end)
        while left > 0 and (at := place(stop)) < len(chunk):
            stop = at + request_bytes
            views.append(chunk[at:stop])
            left -= request_bytes
        got = sock.recvmsg_into(views)[0]
        if not got:
            return 0
        stop = start + request_bytes
        while got >= stop - end:
            got -= stop - end
            end = place(stop)
            stop = end + request_bytes
        return end + got

    def close(self, chunk: memoryview, at: int, end: int) -> int:
        """Foretell nothing any more: move all that was received behind the request at `at` up to it, and return the new end."""
        request_bytes = _HEADER_BYTES + self.length_bytes
        self.length_bytes = self._equal = 0
        stop = at + request_bytes
        if end <= stop:
            return end
        source, end_of_all = place(stop), stop
        while source < end:
            part = chunk[source : min(source + request_bytes, end)]
            chunk[end_of_all : end_of_all + len(part)] = part
            end_of_all += len(part)
            source = place(source + request_bytes)
        return end_of_all
