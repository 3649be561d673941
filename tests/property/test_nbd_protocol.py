"""Any bytes from a peer end in an answer or a ProtocolError, never in anything else; what is packed is unpacked."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd import wire
from nbd.apart import Crowd
from nbd.client_handshake import ClientHandshake
from nbd.errors import ProtocolError
from nbd.handshake import ExportInfo, ServerHandshake
from nbd.transmission import Transmission
from nbd.uri import Target, format_uri, parse_uri

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
SIZE_BYTES = 200_000
EXPORTS = {"": ExportInfo(SIZE_BYTES, False), "fixed": ExportInfo(1, True)}


def feed_all(machine: ServerHandshake | ClientHandshake, data: bytes, ended: object) -> bytes:
    """Feed until the machine ends or the bytes do; return what it answered."""
    answer = b""
    while not ended() and len(data) >= machine.wanted_bytes:
        assert machine.wanted_bytes > 0
        piece, data = data[: machine.wanted_bytes], data[machine.wanted_bytes :]
        answer += machine.feed(piece)
    return answer


OPTION = st.builds(
    lambda option, data: b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data,
    st.integers(0, 12) | U32,
    st.binary(max_size=60)
    | st.builds(lambda name, rest: wire.pack_name(name) + rest, st.sampled_from(["", "fixed", "x"]), st.binary(max_size=40)),
)


@given(
    st.binary(max_size=300)
    | st.builds(lambda flags, options: bytes([0, 0, 0, flags]) + b"".join(options), st.integers(0, 4), st.lists(OPTION))
)
def test_the_server_s_handshake_takes_any_bytes(data: bytes) -> None:
    server = ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS))
    with contextlib.suppress(ProtocolError):
        feed_all(server, data, lambda: server.over or server.terms is not None)
    if server.terms:
        assert server.terms.export in EXPORTS


REPLY = st.builds(
    lambda option, kind, data: struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data,
    st.sampled_from([3, 7, 8, 10]),
    st.integers(1, 4) | U32,
    st.binary(max_size=40)
    | st.builds(lambda kind, rest: struct.pack(">H", kind) + rest, st.integers(0, 3), st.binary(min_size=10, max_size=12)),
)


@given(st.binary(max_size=300) | st.lists(REPLY).map(lambda replies: b"NBDMAGICIHAVEOPT\0\3" + b"".join(replies)), st.booleans())
def test_the_client_s_handshake_takes_any_bytes(data: bytes, listing: bool) -> None:
    client = ClientHandshake("x", listing=listing)
    with contextlib.suppress(ProtocolError):
        feed_all(client, data, lambda: client.over)


@given(U16, U64, U64, U32, U16)
def test_requests_round_trip(command: int, cookie: int, offset: int, length: int, flags: int) -> None:
    packed = wire.pack_request(command, cookie, offset, length, flags)
    assert len(packed) == 28
    assert wire.unpack_request(packed) == (wire.REQUEST_MAGIC, flags, command, cookie, offset, length)


@given(st.lists(st.tuples(U32, U32), min_size=1))
def test_block_status_round_trips(extents: list[tuple[int, int]]) -> None:
    packed = wire.pack_block_status(1, extents)
    assert wire.unpack_block_status(packed[wire.CHUNK.size :]) == (1, extents)


@given(st.text(max_size=200), st.binary(max_size=20))
def test_names_round_trip(name: str, rest: bytes) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        packed = wire.pack_name(name)
        assert wire.unpack_name(rest + packed + rest, len(rest)) == (name, len(rest) + len(packed))


@given(st.binary(max_size=50), st.integers(0, 10))
def test_any_bytes_are_a_name_or_an_error(data: bytes, at: int) -> None:
    with contextlib.suppress(ProtocolError):
        wire.unpack_name(data, at)


@given(st.booleans(), st.booleans(), U64, U16, U16, U64, U32)
def test_any_request_is_judged(read_only: bool, rich: bool, size: int, command: int, flags: int, offset: int, length: int) -> None:
    """What is let through is inside the device, and no change of a read-only one."""
    terms = wire.Terms("", read_only=read_only, structured=rich, block_status=rich)
    error = wire.refusal(terms, size, command, flags, offset, length)
    assert error in (0, 1, 22, 28)
    if not error:
        assert command in (0, 1, 3, 4, 5, 6, 7)
        assert offset + length <= size
        assert not (read_only and command in (1, 4, 6))
        assert rich or command != 7
        assert command > 1 or 0 < length <= 32 << 20


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50),
)
def test_unix_uris_round_trip(export: str, name: str) -> None:
    path = "/run/" + name.replace("/", "_").replace(".", "_")
    assert parse_uri(format_uri(export, path)) == Target(export, path)


@given(st.text(max_size=60) | st.text(max_size=60).map("nbd://".__add__) | st.text(max_size=60).map("nbd+unix:///".__add__))
def test_any_text_is_a_uri_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_uri(text)


class ArrayDevice:
    """The least device: an array of bytes, a lane of one chunk."""

    size_bytes = SIZE_BYTES
    read_only = False

    def __init__(self) -> None:
        self.data = bytearray(SIZE_BYTES)
        self.chunk = memoryview(bytearray(65536))
        self.tail = 0
        self.lane = self

    def turn(self, keep: memoryview) -> None:
        self.chunk[: len(keep)] = keep

    def reserve(self, nbytes: int) -> list[memoryview]:
        return [memoryview(bytearray(65536)) for _ in range(-(-nbytes // 65536))]

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        pass

    abandon = announce = adopt

    def write(self, offset: int, pieces: memoryview | list[memoryview], length: int, fua: bool) -> None:
        payload = b"".join(pieces) if isinstance(pieces, list) else bytes(pieces)
        assert len(payload) == length
        assert 0 <= offset <= offset + length <= SIZE_BYTES
        self.data[offset : offset + length] = payload

    def read_cached(self, offset: int, into: memoryview) -> bool:
        self.read(offset, into)
        return True

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = self.data[offset : offset + len(into)]

    def zero(self, offset: int, length: int, **_: bool) -> None:
        assert 0 <= offset <= offset + length <= SIZE_BYTES
        self.data[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int, *, fua: bool) -> None:
        assert 0 <= offset <= offset + length <= SIZE_BYTES

    def flush(self) -> None:
        pass

    def extents(self, offset: int, length: int, limit: int) -> list[tuple[int, int]]:
        return [(length, 0)]


def near(value: int) -> st.SearchStrategy[int]:
    return st.integers(max(0, value - 3), value + 3)


LENGTHS = st.integers(0, 5000) | near(32768) | near(65536) | near(150_000) | U32
REQUESTS = st.builds(
    lambda magic, flags, command, cookie, offset, length, data: (
        struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length)
        + (data * (length // 3 + 1))[: min(length, 300_000)] * (command == 1)
    ),
    st.sampled_from([0x25609513] * 40 + [0]),
    st.sampled_from([0] * 8 + [1, 2, 4, 8, 16, 32768]),
    st.sampled_from([0, 1, 1, 1, 3, 4, 5, 6, 7, 8]),
    U64,
    st.integers(0, SIZE_BYTES + 10) | U64,
    LENGTHS,
    st.sampled_from([b"abc", b"\x25\x60\x95"]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=500) | st.lists(REQUESTS, max_size=12).map(b"".join), st.integers(1, 100_000), st.booleans())
def test_any_bytes_after_the_handshake(data: bytes, step: int, rich: bool) -> None:
    """Whatever comes, in whatever pieces, the connection ends by itself when the client does, and only by a ProtocolError."""
    mine, theirs = socket.socketpair()
    device = ArrayDevice()
    transmission = Transmission(theirs, device, device, wire.Terms("", structured=rich, block_status=rich), Crowd())
    reader = threading.Thread(target=_swallow, args=(mine,))
    writer = threading.Thread(target=_send, args=(mine, data, step))
    reader.start()
    writer.start()
    with contextlib.suppress(ProtocolError):
        transmission.run()
    transmission.finish()
    theirs.close()
    writer.join(20)
    reader.join(20)
    assert not writer.is_alive()
    assert not reader.is_alive()
    mine.close()


def _send(sock: socket.socket, data: bytes, step: int) -> None:
    with contextlib.suppress(OSError):
        for at in range(0, len(data), step):
            sock.sendall(data[at : at + step])
        sock.shutdown(socket.SHUT_WR)


def _swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass
