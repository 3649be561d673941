"""Where long writes are received: aligned when one is like the other, and right whatever comes instead, in whatever pieces."""

from __future__ import annotations

import errno
import mmap
import random
import struct
from collections import deque
from ctypes import addressof, c_char

import pytest

from nbd import wire
from nbd.apart import Crowd
from nbd.placement import ALIGNMENT, EQUAL_BATCHES_MIN, Placement, place
from nbd.transmission import Transmission

FIRST_BYTES = 256 << 10  # of the first chunk: what a receive brings at most
CHUNK_BYTES = 2 << 20
SIZE_BYTES = 8 << 20
LONG = 64 << 10
READ, WRITE, DISC, FLUSH, ZERO = 0, 1, 2, 3, 6


class Scripted:
    """The server's end of a connection on which `data` arrives in pieces of these lengths, over and over."""

    def __init__(self, data: bytes, steps: list[int]) -> None:
        self._data = memoryview(data)
        self._steps = deque(steps)
        self.sent = bytearray()

    def recv_into(self, into: memoryview) -> int:
        return self._give([into], self._step())

    def recvmsg_into(self, views: list[memoryview], _: int = 0, flags: int = 0) -> tuple[int]:
        return (self._give(views, 1 << 30 if flags else self._step()),)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    def sendmsg(self, parts: list[bytes]) -> int:
        return sum(self.send(part) for part in parts)

    def setsockopt(self, *_: object) -> None:
        pass

    def _step(self) -> int:
        self._steps.rotate(-1)
        return self._steps[-1]

    def _give(self, views: list[memoryview], most: int) -> int:
        given = 0
        for view in views:
            part = self._data[: min(len(view), most - given)]
            view[: len(part)] = part
            self._data = self._data[len(part) :]
            given += len(part)
        return given


class Device:
    """A device that keeps every payload where it was received, in page-aligned chunks that are used once."""

    size_bytes = SIZE_BYTES
    read_only = False
    concurrent = False

    def __init__(self) -> None:
        self.lane = self
        self.data = bytearray(SIZE_BYTES)
        self.kept: list[tuple[memoryview, bytes]] = []
        self.aligned: list[bool] = []
        self.durable: list[bool] = []
        self.chunk, self.tail = memoryview(mmap.mmap(-1, FIRST_BYTES)), 0

    def turn(self, keep: memoryview) -> None:
        self.chunk, self.tail = memoryview(mmap.mmap(-1, CHUNK_BYTES)), 0
        self.chunk[: len(keep)] = keep

    def reserve(self, nbytes: int) -> list[memoryview]:
        return [memoryview(mmap.mmap(-1, CHUNK_BYTES)) for _ in range(-(-nbytes // CHUNK_BYTES))]

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        self.chunk, self.tail = chunks[-1], used

    def abandon(self, chunks: list[memoryview]) -> None:
        chunks.clear()

    def write(self, offset_bytes: int, pieces: memoryview | list[memoryview], length_bytes: int, fua: bool) -> None:
        views = pieces if isinstance(pieces, list) else [pieces]
        payload = b"".join(views)
        self.durable.append(fua)
        assert len(payload) == length_bytes
        self.data[offset_bytes : offset_bytes + length_bytes] = payload
        self.kept += [(view, bytes(view)) for view in views]
        self.aligned.append(addressof(c_char.from_buffer(views[0])) % ALIGNMENT == 0 if views[0] else False)
        if views is not pieces:
            self.tail = addressof(c_char.from_buffer(pieces)) - addressof(c_char.from_buffer(self.chunk)) + length_bytes

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        into[:] = self.data[offset_bytes : offset_bytes + len(into)]
        return True

    def zero(self, offset_bytes: int, length_bytes: int, **_: bool) -> None:
        self.data[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def flush(self) -> None:
        pass


def serve(stream: bytes, steps: list[int]) -> tuple[Device, list[tuple[int, int]]]:
    """Serve the stream; return the device and `(cookie, errno)` of each answer. Nothing that was kept may have been touched."""
    device, sock = Device(), Scripted(stream, steps)
    transmission = Transmission(sock, device, device, wire.Terms("x"), Crowd())
    transmission.run()
    transmission.finish()
    assert all(bytes(view) == copy for view, copy in device.kept), "a payload was touched after it was written"
    return device, [(cookie, error) for _, error, cookie in struct.iter_unpack(">IIQ", bytes(sock.sent))]


def request(command: int, cookie: int, offset_bytes: int, length_bytes: int, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", wire.REQUEST_MAGIC, flags, command, cookie, offset_bytes, length_bytes) + data


class Stream:
    """Requests in a row, and the image that they leave."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.data = bytearray()
        self.image = bytearray(SIZE_BYTES)
        self.errors: list[int] = []

    def write(self, length_bytes: int, flags: int = 0) -> None:
        offset_bytes, payload = self.dice.randrange(SIZE_BYTES - length_bytes), self.dice.randbytes(length_bytes)
        self.image[offset_bytes : offset_bytes + length_bytes] = payload
        self._add(request(WRITE, len(self.errors), offset_bytes, length_bytes, payload, flags), 0)

    def refused(self, length_bytes: int) -> None:
        self._add(request(WRITE, len(self.errors), SIZE_BYTES - 1, length_bytes, bytes(length_bytes)), errno.ENOSPC)

    def zero(self, length_bytes: int) -> None:
        self.image[4096 : 4096 + length_bytes] = bytes(length_bytes)
        self._add(request(ZERO, len(self.errors), 4096, length_bytes), 0)

    def flush(self) -> None:
        self._add(request(FLUSH, len(self.errors), 0, 0), 0)

    def _add(self, data: bytes, error: int) -> None:
        self.data += data
        self.errors.append(error)

    def check(self, steps: list[int]) -> Device:
        device, answers = serve(bytes(self.data), steps)
        assert device.data == self.image
        assert dict(answers) == dict(enumerate(self.errors))
        return device


STEPS = [[1 << 20], [200_000], [LONG + 28], [LONG + 27, 1], [28, LONG], [3 * LONG, 17, 5000], [70_000, 131_129, 1, 27, 28, 29]]


@pytest.mark.parametrize("steps", STEPS)
def test_equal_long_writes_come_to_lie_aligned(steps: list[int]) -> None:
    stream = Stream(1)
    for _ in range(120):
        stream.write(LONG)
    device = stream.check(steps)
    assert device.aligned[24:].count(False) <= 120 * LONG // CHUNK_BYTES + 1, "only the first write of a chunk may lie beside a boundary"


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("odd", ["short", "longer", "shorter", "very long", "refused", "refused short", "zero", "flush", "fua"])
def test_what_was_foretold_wrongly_is_served_all_the_same(odd: str, steps: list[int]) -> None:
    stream = Stream(2)
    for turn in range(12):
        for _ in range(EQUAL_BATCHES_MIN * 4 + turn):
            stream.write(LONG)
        for _ in range(1 + turn % 3):
            {
                "short": lambda: stream.write(512),
                "longer": lambda: stream.write(LONG + 4096),
                "shorter": lambda: stream.write(LONG - 4096),
                "very long": lambda: stream.write(3 << 20),
                "refused": lambda: stream.refused(LONG),
                "refused short": lambda: stream.refused(4096),
                "zero": lambda: stream.zero(LONG),
                "flush": stream.flush,
                "fua": lambda: stream.write(LONG, wire.CMD_FLAG_FUA),
            }[odd]()
    stream.check(steps)


@pytest.mark.parametrize("seed", range(40))
def test_any_stream_in_any_pieces(seed: int) -> None:
    stream, dice = Stream(seed), random.Random(seed)
    for _ in range(12):
        length_bytes = dice.choice([4096, 32 << 10, 33_000, LONG, LONG, LONG + 1, 100_000, 200_000])
        for _ in range(dice.randrange(1, 14)):
            stream.write(length_bytes)
        dice.choice([stream.flush, lambda: stream.zero(512), lambda: stream.refused(LONG), lambda: stream.write(1 << 20), lambda: None])()
    stream.check([dice.choice([1, 27, 28, 29, 1000, LONG - 1, LONG, LONG + 28, 150_000, 1 << 20]) for _ in range(9)])


def test_a_farewell_behind_a_foretold_write_ends_the_connection() -> None:
    stream = Stream(3)
    for _ in range(40):
        stream.write(LONG)
    stream.data += request(DISC, 99, 0, 0) + b"rubbish"
    stream.check([1 << 20])


def test_a_foretold_write_that_comes_alone_is_made_durable_in_line() -> None:
    stream = Stream(4)
    for _ in range(20):
        stream.write(LONG)
    stream.write(LONG, wire.CMD_FLAG_FUA)
    device = stream.check([LONG + 28])
    assert device.durable == [False] * 20 + [True]


def test_a_place_leaves_the_payload_aligned() -> None:
    for at in range(300):
        assert at <= place(at) < at + ALIGNMENT
        assert (place(at) + 28) % ALIGNMENT == 0


@pytest.mark.parametrize("length_bytes", [4096, (32 << 10) - 1, 256 << 10])
def test_nothing_is_foretold_that_does_not_pay(length_bytes: int) -> None:
    placement = Placement(256 << 10)
    for _ in range(20):
        placement.saw(WRITE, length_bytes)
    assert placement.length_bytes == 0
