"""`Line`: a raw NBD client that talks to a `Transmission` over a socket pair, byte by byte, for tests of the hot loop."""

from __future__ import annotations

import socket
import struct
import threading

from nbd_memory_device import MemoryDevice

from nbd import wire
from nbd.apart import Crowd
from nbd.errors import ProtocolError
from nbd.transmission import Transmission

SIZE_BYTES = 36 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST = 1, 2, 4, 8, 16


class Line:
    """A raw client on one end of a socket pair, a Transmission on the other."""

    def __init__(self, device: MemoryDevice, terms: wire.Terms | None = None) -> None:
        self.device = device
        self.sock, self.server_sock = socket.socketpair()
        self.sock.settimeout(20)
        self.session = device.open_session()
        terms = terms or wire.Terms("x", read_only=device.read_only, structured=True, block_status=True)
        self.transmission = Transmission(self.server_sock, device, self.session, terms, Crowd())
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.transmission.run()
        except (ProtocolError, OSError) as error:
            self.error = error
        finally:
            if self.error:
                self.server_sock.shutdown(socket.SHUT_RDWR)
            self.transmission.finish()
            self.session.close()
            self.session.lane.close()
            self.server_sock.close()

    def send(self, command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> None:
        self.sock.sendall(request(command, cookie, offset, length, flags, data))

    def receive(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            part = self.sock.recv(nbytes - len(data))
            assert part, "the server closed the connection"
            data += part
        return data

    def reply(self) -> tuple[int, int, bytes]:
        """Return cookie, errno and data of the next reply; data chunks of one reply are joined."""
        data, error = b"", 0
        while True:
            magic, word, cookie = struct.unpack(">IIQ", self.receive(16))
            if magic == 0x67446698:
                return cookie, word, data
            assert magic == 0x668E33EF
            flags, kind = word >> 16, word & 0xFFFF
            payload = self.receive(struct.unpack(">I", self.receive(4))[0])
            if kind == 32769:
                error = struct.unpack_from(">I", payload)[0]
            elif kind == 1:
                data += payload[8:]
            else:
                assert kind == 5
                data += payload
            if flags & 1:
                return cookie, error, data

    def ask(self, command: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> tuple[int, bytes]:
        """Send one request alone; return errno and data of its reply."""
        self.send(command, 77, offset, length, flags, data)
        cookie, error, answer = self.reply()
        assert cookie == 77
        return error, answer

    def closed(self) -> bool:
        """Whether the server closes the connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def end(self) -> None:
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        assert self.device.open_sessions == 0
        assert self.device.reserved_chunks == 0
        self.device.check_kept()


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + data
