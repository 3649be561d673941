"""`Outbox`: the replies of one connection, collected so that one send carries many of them.

Filled by the connection's own thread; other threads (a finished flush, a slow read) send theirs apart. A lock keeps replies whole.
"""

from __future__ import annotations

import socket
import threading
from collections import deque

from nbd import wire

DATA_BYTES_MAX = 1 << 20
"""Data of reads, and other long replies, collected before they are sent."""

SHARED_BYTES_MAX = 64 << 10
"""A longer reply from another thread is sent by that thread, uncopied."""

WAITING_MAX = 64
"""Replies that may wait for a thread that is sending; above it their threads wait too."""

_HEAD_BYTES_MAX = wire.CHUNK_DATA.size
_STRUCTURED = frozenset((wire.CMD_READ, wire.CMD_BLOCK_STATUS))
_pack_simple = wire.SIMPLE_REPLY.pack_into


class Outbox:
    """A reply buffer in front of a blocking socket.

    `buffer` and `fill` are open to `Reads`, which reads data to where it is sent from.
    """

    def __init__(self, sock: socket.socket, *, structured: bool, requests_max: int) -> None:
        """Collect replies for `sock`; `requests_max` is how many requests one receive can bring in."""
        self.sock = sock
        self.lock = threading.Lock()
        """Held while something is sent. Who releases it looks for replies that wait."""
        self._waiting: deque[bytes | memoryview] = deque()
        self.structured = structured
        room = DATA_BYTES_MAX + _HEAD_BYTES_MAX + (requests_max + 1) * wire.SIMPLE_REPLY.size
        self.buffer = memoryview(bytearray(room))
        self.fill = 0

    def add_simple(self, cookie: int, error: int) -> None:
        """Collect a reply without data. There is always room for those of one receive."""
        fill = self.fill
        _pack_simple(self.buffer, fill, wire.SIMPLE_REPLY_MAGIC, error, cookie)
        self.fill = fill + 16

    def add_error(self, command: int, cookie: int, error: int) -> None:
        """Collect the refusal or failure of a request."""
        self.add(self.pack_error(command, cookie, error))

    def pack_error(self, command: int, cookie: int, error: int) -> bytes:
        """Return the refusal or failure of a request, in the form that its command asks for."""
        if self.structured and command in _STRUCTURED:
            return wire.pack_error_chunk(cookie, error)
        return wire.pack_simple_reply(cookie, error)

    def add(self, reply: bytes) -> None:
        """Collect a reply of at most DATA_BYTES_MAX, sending first if it would not fit."""
        self.make_room(len(reply))
        end = self.fill + len(reply)
        self.buffer[self.fill : end] = reply
        self.fill = end

    def make_room(self, nbytes: int) -> None:
        """Send what was collected if `nbytes` of data (at most DATA_BYTES_MAX) would not fit behind it."""
        if self.fill + nbytes > DATA_BYTES_MAX:
            self.send()

    def send(self) -> None:
        """Send what was collected; blocks while the client does not read. Raises OSError if the client is gone."""
        fill = self.fill
        if fill:
            self.fill = 0
            with self.lock:
                self.sock.sendall(self.buffer[:fill])
            if self._waiting:
                self._send_waiting()

    def send_apart(self, reply: bytes | memoryview) -> None:
        """Send a whole reply, from any thread. Raises OSError if the client is gone.

        A short one is left to the thread that is sending just now, if there is one, so that replies that come together leave together.
        """
        if len(reply) > SHARED_BYTES_MAX:
            with self.lock:
                self.sock.sendall(reply)
        else:
            self._waiting.append(reply)
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send the replies of other threads, unless the one that holds the lock will; block if too many wait already."""
        waiting = self._waiting
        while waiting and self.lock.acquire(len(waiting) > WAITING_MAX):
            try:
                replies = [waiting.popleft() for _ in range(len(waiting))]
                self.sock.sendall(b"".join(replies))
            finally:
                self.lock.release()
