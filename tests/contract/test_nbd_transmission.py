"""The hot loop against the harshest device: every request in raw bytes, in every kind of pieces, kept memory never touched."""

from __future__ import annotations

import errno
import random
import struct
import threading
from collections.abc import Iterator

import pytest
from nbd_line import CACHE, DF, DISC, FAST, FLUSH, FUA, NO_HOLE, READ, REQ_ONE, SIZE_BYTES, STATUS, TRIM, WRITE, ZERO, Line, request
from nbd_memory_device import CHUNK_BYTES, MemoryDevice

from nbd import wire
from nbd.errors import ProtocolError


@pytest.fixture(params=["keeping", "not keeping"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    line = Line(MemoryDevice(SIZE_BYTES, keeping=request.param == "keeping"))
    yield line
    line.end()


@pytest.fixture
def simple_line() -> Iterator[Line]:
    line = Line(MemoryDevice(SIZE_BYTES), wire.Terms("x"))
    yield line
    line.end()


LENGTHS = [1, 511, 4096, 32767, 32768, 65535, CHUNK_BYTES - 28, CHUNK_BYTES - 27, CHUNK_BYTES, 300_000, 1 << 20, 32 << 20]


@pytest.mark.parametrize("length", LENGTHS)
def test_writes_and_reads(line: Line, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    assert line.ask(WRITE, 1000, length, data=payload) == (0, b"")
    assert line.device.data[1000 : 1000 + length] == payload
    assert line.ask(READ, 1000, length) == (0, payload)
    assert line.ask(READ, 1000, length, DF) == (0, payload)


@pytest.mark.parametrize("length", LENGTHS)
def test_writes_and_reads_in_simple_replies(simple_line: Line, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    line = simple_line
    assert line.ask(WRITE, 5, length, data=payload) == (0, b"")
    line.send(READ, 9, 5, length)
    assert line.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 9)
    assert line.receive(length) == payload


def test_serves_a_stream_cut_anywhere(line: Line) -> None:
    """Requests of all lengths, sent in pieces of all lengths, follow a bytearray; kept memory is checked at the end."""
    dice, model, stream, cookies = random.Random(11), bytearray(SIZE_BYTES), bytearray(), []
    for cookie in range(300):
        length = dice.choice([1, 28, 500, 4096, 4096, 20_000, 40_000, 66_000, 140_000])
        offset = dice.randrange(1 << 20)
        kind = dice.choice([WRITE, WRITE, WRITE, ZERO, FLUSH, CACHE])
        cookies.append(cookie)
        if kind == WRITE:
            payload = dice.randbytes(length)
            model[offset : offset + length] = payload
            stream += request(WRITE, cookie, offset, length, FUA if dice.random() < 0.1 else 0, payload)
        elif kind == ZERO:
            model[offset : offset + length] = bytes(length)
            stream += request(ZERO, cookie, offset, length)
        else:
            stream += request(kind, cookie, *((0, 0) if kind == FLUSH else (offset, length)))
    answered: list[tuple[int, int, bytes]] = []
    reader = threading.Thread(target=lambda: answered.extend(line.reply() for _ in cookies))
    reader.start()
    at = 0
    while at < len(stream):
        step = dice.choice([1, 7, 27, 28, 29, 1000, 5000, 70_000, 200_000])
        line.sock.sendall(stream[at : at + step])
        at += step
    reader.join(20)
    assert sorted(cookie for cookie, _, _ in answered) == cookies
    assert not any(error for _, error, _ in answered)
    assert line.device.data == model
    assert line.ask(READ, 0, 2 << 20) == (0, model[: 2 << 20])


@pytest.mark.parametrize("left", [0, 1, 27, 28, 29, 100])
def test_serves_a_long_write_whose_header_is_near_the_end_of_a_chunk(line: Line, left: int) -> None:
    first = random.Random(left).randbytes(CHUNK_BYTES - 28 - 28 - left)
    second = random.Random(left + 1).randbytes(100_000)
    line.sock.sendall(
        request(WRITE, 1, 0, len(first), 0, first) + request(WRITE, 2, 1 << 20, len(second), 0, second) + request(READ, 3, 0, 9)
    )
    assert [line.reply() for _ in range(3)] == [(1, 0, b""), (2, 0, b""), (3, 0, first[:9])]
    assert line.ask(READ, 1 << 20, len(second)) == (0, second)


def test_answers_a_batch_with_few_sends(line: Line) -> None:
    line.sock.sendall(b"".join(request(WRITE, n, n * 512, 512, 0, bytes([n]) * 512) for n in range(60)))
    assert [line.reply() for _ in range(60)] == [(n, 0, b"") for n in range(60)]
    line.sock.sendall(b"".join(request(READ, n, n * 512, 512) for n in range(60)))
    assert [line.reply() for _ in range(60)] == [(n, 0, bytes([n]) * 512) for n in range(60)]


def test_reads_more_than_a_batch_holds(line: Line) -> None:
    line.device.data[: 8 << 20] = data = random.Random(1).randbytes(8 << 20)
    line.sock.sendall(b"".join(request(READ, n, n * 300_000, 300_000) for n in range(20)))
    for n in range(20):
        assert line.reply() == (n, 0, data[n * 300_000 : (n + 1) * 300_000])


def test_announces_misses_and_reads_them_in_order(line: Line) -> None:
    line.device.misses = True
    line.device.data[:] = bytes(range(256)) * (SIZE_BYTES // 256)
    line.sock.sendall(b"".join(request(READ, n, n * 8192, 100 + n) for n in range(5)))
    assert sorted(line.reply() for _ in range(5)) == [(n, 0, bytes(line.device.data[n * 8192 : n * 8192 + 100 + n])) for n in range(5)]
    reads = [entry for entry in line.device.log if entry.startswith("read")]
    assert reads == [f"read {n * 8192} {100 + n}" for n in range(5)]


def test_does_not_announce_a_lone_read(line: Line) -> None:
    line.device.misses = True
    assert line.ask(READ, 0, 4096) == (0, bytes(4096))
    assert line.device.log == ["read 0 4096"]


@pytest.mark.parametrize("command", [READ, WRITE, ZERO, TRIM, STATUS, FLUSH])
@pytest.mark.parametrize(("code", "told"), [(errno.EIO, 5), (errno.ENOSPC, 28), (errno.EBADF, 5), (errno.EROFS, 1)])
def test_tells_a_failure_and_goes_on(line: Line, command: int, code: int, told: int) -> None:
    names = {READ: "read_cached", WRITE: "write", ZERO: "zero", TRIM: "trim", STATUS: "extents", FLUSH: "flush"}
    length = 0 if command == FLUSH else 4096
    for fua in (0, FUA):
        line.device.failures = {names[command]: code}
        assert line.ask(command, 0, length, fua, bytes(4096) if command == WRITE else b"") == (told, b"")
        line.device.failures = {}
        assert line.ask(WRITE, 0, 3, data=b"abc") == (0, b"")
        assert line.ask(READ, 0, 3) == (0, b"abc")


def test_tells_a_failed_long_write_and_goes_on(line: Line) -> None:
    line.device.failures = {"write": errno.ENOSPC}
    assert line.ask(WRITE, 0, 1 << 20, data=bytes(1 << 20))[0] == errno.ENOSPC
    line.device.failures = {}
    assert line.ask(WRITE, 0, 1 << 20, data=b"x" * (1 << 20))[0] == 0
    assert line.ask(READ, 0, 1 << 20) == (0, b"x" * (1 << 20))


def test_tells_a_miss_that_fails(line: Line) -> None:
    line.device.misses, line.device.failures = True, {"read": errno.EIO}
    line.sock.sendall(request(READ, 1, 0, 10) + request(WRITE, 2, 0, 3, 0, b"abc"))
    assert sorted(line.reply() for _ in range(2)) == [(1, errno.EIO, b""), (2, 0, b"")]


def test_tells_a_long_read_that_fails_in_the_middle(line: Line) -> None:
    line.device.failures = {f"read {2 << 20}": errno.EIO}
    error, data = line.ask(READ, 0, 4 << 20)
    assert error == errno.EIO
    assert len(data) == 2 << 20
    assert line.ask(READ, 0, 10) == (0, bytes(10))


@pytest.mark.parametrize(("at", "told"), [(0, True), (2 << 20, False)])
def test_never_lies_in_a_simple_reply(simple_line: Line, at: int, told: bool) -> None:
    """A failure before the head is told; one after it can't be, so the connection is closed."""
    line = simple_line
    line.device.failures = {f"read {at}": errno.EIO}
    line.send(READ, 1, 0, 4 << 20)
    if told:
        assert line.reply() == (1, errno.EIO, b"")
        return
    assert line.receive(16) == struct.pack(">IIQ", 0x67446698, 0, 1)
    assert line.receive(2 << 20) == bytes(2 << 20)
    assert line.closed()


REFUSED = [
    (READ, 0, SIZE_BYTES, 1, errno.EINVAL),
    (READ, 0, 0, (32 << 20) + 1, errno.EINVAL),
    (READ, 1 << 9, 0, 1, errno.EINVAL),
    (TRIM, 0, SIZE_BYTES - 1, 2, errno.EINVAL),
    (ZERO, 0, SIZE_BYTES - 1, 2, errno.ENOSPC),
    (ZERO, FAST, 0, 4096, errno.ENOTSUP),
    (STATUS, 0, SIZE_BYTES, 1, errno.EINVAL),
    (FLUSH, 0, 1, 0, errno.EINVAL),
    (8, 0, 0, 0, errno.EINVAL),
    (999, 0, 0, 0, errno.EINVAL),
]


@pytest.mark.parametrize(("command", "flags", "offset", "length", "error"), REFUSED)
def test_refuses_and_goes_on(line: Line, command: int, flags: int, offset: int, length: int, error: int) -> None:
    assert line.ask(command, offset, length, flags) == (error, b"")
    assert line.ask(READ, 0, 3) == (0, bytes(3))


@pytest.mark.parametrize("length", [1, 4096, 65536, 1 << 20, 33 << 20, 64 << 20])
@pytest.mark.parametrize(("flags", "offset", "error"), [(0, SIZE_BYTES, errno.ENOSPC), (DF, 0, errno.EINVAL)])
def test_throws_a_refused_payload_away(line: Line, length: int, flags: int, offset: int, error: int) -> None:
    junk = request(WRITE, 5, 0, 4, 0, b"evil") * (length // 32 + 1)
    if length > 32 << 20:
        error = errno.EINVAL
    assert line.ask(WRITE, offset, length, flags, junk[:length]) == (error, b"")
    assert line.ask(READ, 0, 4) == (0, bytes(4))
    assert "write" not in " ".join(line.device.log)


def test_closes_on_a_refused_payload_without_end(line: Line) -> None:
    line.send(WRITE, 1, 0, 0xFFFFFFFF)
    assert line.closed()
    line.thread.join(20)
    assert isinstance(line.error, ProtocolError)


def test_closes_on_garbage(line: Line) -> None:
    line.sock.sendall(request(WRITE, 1, 0, 3, 0, b"abc") + b"garbage" * 10)
    while not line.closed():
        pass
    line.thread.join(20)
    assert isinstance(line.error, ProtocolError)
    assert line.device.data[:3] == b"abc"


@pytest.mark.parametrize("length", [10, 4096, 40_000, 1 << 20])
@pytest.mark.parametrize("sent", [0, 1, 0.5, -1])
def test_nothing_of_a_cut_write_reaches_the_device(line: Line, length: int, sent: float) -> None:
    whole = request(WRITE, 1, 0, length, 0, b"x" * length)
    keep = 28 + (length - 1 if sent == -1 else int(sent * length) if sent < 1 else 1)
    line.sock.sendall(whole[:keep])
    line.sock.close()
    line.thread.join(20)
    assert isinstance(line.error, ProtocolError)
    assert line.device.log == []
    assert not any(line.device.data[:length])


def test_ends_with_a_farewell(line: Line) -> None:
    line.sock.sendall(request(WRITE, 1, 0, 3, 0, b"abc") + request(FLUSH, 2) + request(DISC, 3) + request(WRITE, 4, 0, 3, 0, b"xyz"))
    assert sorted([line.reply(), line.reply()]) == [(1, 0, b""), (2, 0, b"")]
    assert line.closed()
    assert line.device.data[:3] == b"abc"
    line.thread.join(20)
    assert line.error is None


def test_a_flush_lets_others_go_on_and_covers_them(line: Line) -> None:
    line.device.gate = threading.Event()
    line.sock.sendall(request(WRITE, 1, 0, 3, 0, b"abc") + request(FLUSH, 2))
    assert line.reply() == (1, 0, b"")
    assert line.ask(READ, 0, 3) == (0, b"abc")
    line.sock.sendall(request(WRITE, 3, 0, 3, FUA, b"xyz") + request(FLUSH, 4) + request(READ, 5, 0, 3))
    assert line.reply() == (5, 0, b"xyz")
    line.device.gate.set()
    assert sorted(line.reply() for _ in range(3)) == [(2, 0, b""), (3, 0, b""), (4, 0, b"")]
    assert line.device.log[-1] == "flush"
    assert line.device.log.index("flush") > 0


def test_a_lone_change_is_durable_by_itself(line: Line) -> None:
    line.ask(WRITE, 0, 3, FUA, b"abc")
    line.ask(ZERO, 0, 3, FUA | NO_HOLE)
    line.ask(TRIM, 0, 3, FUA)
    assert line.device.log == ["write 0 3 fua", "zero 0 3 punch=False fua=True", "trim 0 3 fua=True"]


def test_changes_together_share_a_flush(line: Line) -> None:
    line.device.gate = threading.Event()
    line.sock.sendall(request(FLUSH, 0) + b"".join(request(WRITE, n, 0, 3, FUA, b"abc") for n in range(1, 20)) + request(READ, 50, 0, 3))
    assert line.reply()[0] == 50
    line.device.gate.set()
    assert sorted(line.reply() for _ in range(20)) == [(n, 0, b"") for n in range(20)]
    assert line.device.log.count("flush") <= 2


def test_flushes_that_nobody_reads_the_answers_of_wait(line: Line) -> None:
    """More flushes than may wait are no loss: the server stops receiving until there is room."""
    full = threading.Event()

    class Room(threading.Semaphore):
        def acquire(self, *_: object) -> bool:
            if super().acquire(blocking=False):
                return True
            full.set()
            return super().acquire()

    line.device.gate = threading.Event()
    line.transmission._flusher._room = Room(100)
    sender = threading.Thread(target=lambda: line.sock.sendall(b"".join(request(FLUSH, n) for n in range(5000))))
    sender.start()
    assert full.wait(20)
    line.device.gate.set()
    assert sorted(line.reply()[:2] for _ in range(5000)) == [(n, 0) for n in range(5000)]
    sender.join(20)


def test_block_status(line: Line) -> None:
    error, data = line.ask(STATUS, 0, 4096)
    assert (error, data) == (0, struct.pack(">IIIII", 1, 2048, 0, 2048, 0))
    assert line.ask(STATUS, 0, 4096, REQ_ONE) == (0, struct.pack(">III", 1, 2048, 0))


def test_block_status_must_be_negotiated(simple_line: Line) -> None:
    assert simple_line.ask(STATUS, 0, 4096) == (errno.EINVAL, b"")


def test_follows_a_size_that_changes(line: Line) -> None:
    line.device.size_bytes = 4096
    assert line.ask(READ, 4096, 1)[0] == errno.EINVAL
    assert line.ask(WRITE, 4096, 1, data=b"x")[0] == errno.ENOSPC
    line.device.size_bytes = SIZE_BYTES
    assert line.ask(READ, 4096, 1) == (0, b"\0")


def test_refuses_changes_of_a_read_only_device() -> None:
    line = Line(MemoryDevice(SIZE_BYTES, read_only=True))
    assert line.ask(WRITE, 0, 65536, data=bytes(65536))[0] == errno.EPERM
    assert line.ask(ZERO, 0, 3)[0] == errno.EPERM
    assert line.ask(TRIM, 0, 3)[0] == errno.EPERM
    assert line.ask(READ, 0, 3) == (0, bytes(3))
    assert line.ask(FLUSH) == (0, b"")
    line.end()


def test_a_bug_of_the_device_ends_only_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    line = Line(MemoryDevice(SIZE_BYTES))
    line.device.gate = threading.Event()
    line.device.gate.wait = None  # type: ignore[method-assign]
    line.sock.sendall(request(READ, 1, 0, 1) + request(FLUSH, 2))
    assert sorted(line.reply()[:2] for _ in range(2)) == [(1, 0), (2, errno.EIO)]
    assert "device_crashed" in caplog.text
    line.end()
