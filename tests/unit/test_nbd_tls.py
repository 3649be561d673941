"""NBD inside TLS: the negotiation's rules, and a socket that behaves as a plain one under two threads."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.listener_tls import listener_tls
from nbd import wire
from nbd.errors import ProtocolError
from nbd.handshake import ExportInfo, ServerHandshake
from nbd.tls import TlsSocket, server_context
from stream.config import AgentConfig
from stream.errors import ConfigError
from tests.certificates import Authority

EXPORTS = {"vol": ExportInfo(1 << 30, False)}
REPLY = struct.Struct(">QIII")
WAIT_S = 60


class Talk:
    """A client's raw options to a server that wants TLS."""

    def __init__(self, *, tls: bool = True) -> None:
        self.server = ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS), tls=tls)
        self.server.feed(struct.pack(">I", 3))

    def option(self, option: int, data: bytes = b"") -> int:
        """Send an option; return the kind of the last reply."""
        answer = self.server.feed(b"IHAVEOPT" + struct.pack(">II", option, len(data)))
        answer = self.server.feed(data) if data else answer
        kind = 0
        while answer:
            _, _, kind, length = REPLY.unpack_from(answer)
            answer = answer[REPLY.size + length :]
        return kind


def _go() -> bytes:
    return struct.pack(">I", 3) + b"vol" + b"\0\0"


@pytest.mark.parametrize("option", [wire.OPT_LIST, wire.OPT_INFO, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, wire.OPT_SET_META_CONTEXT, 77])
def test_nothing_is_told_before_tls(option: int) -> None:
    talk = Talk()
    assert talk.option(option, _go() if option in (wire.OPT_INFO, wire.OPT_GO) else b"") == wire.REP_ERR_TLS_REQD
    assert talk.server.terms is None and not talk.server.over


def test_an_export_name_before_tls_ends_the_connection() -> None:
    with pytest.raises(ProtocolError):
        Talk().option(wire.OPT_EXPORT_NAME, b"vol")


def test_abort_before_tls_is_taken() -> None:
    talk = Talk()
    assert talk.option(wire.OPT_ABORT) == wire.REP_ACK and talk.server.over


def test_tls_begins_once_and_without_data() -> None:
    talk = Talk()
    assert talk.option(wire.OPT_STARTTLS, b"x") == wire.REP_ERR_INVALID and not talk.server.starts_tls
    assert talk.option(wire.OPT_STARTTLS) == wire.REP_ACK and talk.server.starts_tls
    talk.server.secured()
    assert not talk.server.starts_tls
    assert talk.option(wire.OPT_STARTTLS) == wire.REP_ERR_INVALID
    assert talk.option(wire.OPT_GO, _go()) == wire.REP_ACK
    assert talk.server.terms is not None and not talk.server.terms.structured


def test_tls_is_refused_where_it_is_not_offered() -> None:
    talk = Talk(tls=False)
    assert talk.option(wire.OPT_STARTTLS) == wire.REP_ERR_POLICY and not talk.server.starts_tls


class Pair:
    """A `TlsSocket` and the client that it serves."""

    def __init__(self, authority: Authority) -> None:
        self.context = server_context(*authority.sign("server", ("127.0.0.1",)), authority.ca)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            plain = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        for one in (plain, accepted):
            one.settimeout(WAIT_S)
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        trusting.load_cert_chain(*authority.sign("client"))
        made: list[ssl.SSLSocket] = []
        client = threading.Thread(target=lambda: made.append(trusting.wrap_socket(plain, server_hostname="127.0.0.1")))
        client.start()
        self.server = TlsSocket(accepted, self.context)
        client.join()
        self.client = made[0]

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(Authority(tmp_path))
    yield made
    made.close()


def test_what_is_there_is_received_at_once_over_several_views(pair: Pair) -> None:
    data = os.urandom(100_000)
    pair.client.sendall(data)
    got = b""
    while len(got) < len(data):
        first, second = bytearray(7), bytearray(40_000)
        count = pair.server.recvmsg_into([memoryview(first), memoryview(second)])[0]
        assert count
        got += (bytes(first) + bytes(second))[:count]
    assert got == data


def test_waitall_fills_everything(pair: Pair) -> None:
    data = os.urandom(300_000)
    sender = _thread(lambda: [pair.client.sendall(data[at : at + 1000]) for at in range(0, len(data), 1000)])
    views = [bytearray(100_000), bytearray(200_000)]
    assert pair.server.recvmsg_into([memoryview(one) for one in views], 0, socket.MSG_WAITALL)[0] == len(data)
    sender.join()
    assert views[0] + views[1] == data


@pytest.mark.parametrize("farewell", [True, False])
def test_the_end_is_no_bytes_with_a_farewell_and_without(pair: Pair, farewell: bool) -> None:
    pair.client.sendall(b"last")
    assert pair.server.recv(100) == b"last"
    if farewell:
        client = _thread(lambda: pair.client.unwrap())
        assert pair.server.recv(100) == b""
        pair.server.close()
        client.join()
    else:
        pair.client.close()
        assert pair.server.recv(100) == b""


def test_a_stalled_client_is_noticed_as_on_a_plain_socket(pair: Pair) -> None:
    pair.server.settimeout(None)
    pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    with pytest.raises(BlockingIOError):
        pair.server.recvmsg_into([memoryview(bytearray(10))], 0, socket.MSG_WAITALL)


def test_threads_send_while_one_waits_to_receive(pair: Pair) -> None:
    size, senders = 3_000_000, 4
    received: list[bytes] = []
    receiver = _thread(lambda: received.append(pair.server.recv(4)))
    threads = [_thread(lambda number=number: pair.server.sendall(bytes([number]) * size)) for number in range(senders)]
    got = bytearray()
    while len(got) < senders * size:
        got += pair.client.recv(1 << 20)
    pair.client.sendall(b"done")
    for thread in (*threads, receiver):
        thread.join(WAIT_S)
    assert received == [b"done"]
    for at in range(0, len(got), size):
        assert got[at : at + size] == bytes([got[at]]) * size, "one reply is in the middle of another"


def test_both_ways_at_once(pair: Pair) -> None:
    up, down = os.urandom(4_000_000), os.urandom(4_000_000)
    views = bytearray(len(up))
    threads = [
        _thread(lambda: pair.client.sendall(up)),
        _thread(lambda: pair.server.sendall(down)),
        _thread(lambda: pair.server.recvmsg_into([memoryview(views)], 0, socket.MSG_WAITALL)),
    ]
    got = bytearray()
    while len(got) < len(down):
        got += pair.client.recv(1 << 20)
    for thread in threads:
        thread.join(WAIT_S)
    assert views == up and got == down


@pytest.mark.parametrize("shown", ["none", "foreign", "plain text"])
def test_who_shows_no_good_certificate_is_told_off(tmp_path: Path, shown: str) -> None:
    authority = Authority(tmp_path)
    context = server_context(*authority.sign("server", ("127.0.0.1",)), authority.ca)
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.settimeout(WAIT_S)

    def come() -> None:
        if shown == "plain text":
            theirs.sendall(b"GET / HTTP/1.0\r\n\r\n" * 20)
            return
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        if shown == "foreign":
            trusting.load_cert_chain(*Authority(tmp_path / "other", "other").sign("client"))
        with contextlib.suppress(OSError):
            trusting.wrap_socket(theirs, server_hostname="127.0.0.1").recv(1)

    client = _thread(come)
    with pytest.raises(ConnectionError, match="no TLS with this client"):
        TlsSocket(ours, context)
    ours.close()
    client.join(WAIT_S)
    theirs.close()


def test_old_protocols_are_not_spoken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(*authority.sign("server"), authority.ca)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2 and context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_the_three_keys_come_together_and_name_files(tmp_path: Path, missing: str) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    told = {"tls_certificate": str(certificate), "tls_key": str(key), "tls_client_ca": str(authority.ca)}
    assert listener_tls(AgentConfig()) is None
    assert listener_tls(AgentConfig(**told)) is not None
    with pytest.raises(ConfigError, match=f"agent.{missing} is not set"):
        listener_tls(AgentConfig(**told | {missing: ""}))
    with pytest.raises(ConfigError, match="The NBD server can't have TLS") as caught:
        listener_tls(AgentConfig(**told | {missing: str(tmp_path / "none")}))
    assert caught.value.hint


def _thread(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread
