"""The negotiation's two state machines by plain calls: each option, each way to be wrong."""

from __future__ import annotations

import struct

import pytest

from nbd import wire
from nbd.client_handshake import ClientHandshake
from nbd.errors import ProtocolError, RefusedError
from nbd.handshake import OPTIONS_MAX, ExportInfo, ServerHandshake

EXPORTS = {"vol": ExportInfo(1 << 30, False), "fixed": ExportInfo(4096, True)}
NONE_WANTED = b"\0\0"


class Talk:
    """A client that sends raw options and splits the replies."""

    def __init__(self, flags: int = 3, **more: str) -> None:
        self.server = ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS), **more)
        self.answer = self.send(struct.pack(">I", flags))

    def send(self, data: bytes) -> bytes:
        answer = b""
        while data:
            piece, data = data[: self.server.wanted_bytes], data[self.server.wanted_bytes :]
            answer += self.server.feed(piece)
        return answer

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; return (kind, data) of the replies."""
        return self.split(option, self.send(b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data))

    @staticmethod
    def split(option: int, answer: bytes) -> list[tuple[int, bytes]]:
        replies = []
        while answer:
            magic, echoed, kind, length = struct.unpack_from(">QIII", answer)
            assert magic == 0x3E889045565A9
            assert echoed == option
            replies.append((kind, answer[20 : 20 + length]))
            assert len(replies[-1][1]) == length
            answer = answer[20 + length :]
        return replies


def name(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def queries(export: str, *wanted: str) -> bytes:
    return name(export) + struct.pack(">I", len(wanted)) + b"".join(map(name, wanted))


def test_greets() -> None:
    assert ServerHandshake.greeting() == b"NBDMAGICIHAVEOPT\0\3"


def test_goes() -> None:
    talk = Talk()
    replies = talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)
    assert [kind for kind, _ in replies] == [wire.REP_INFO, wire.REP_INFO, wire.REP_ACK]
    kind, size, flags = struct.unpack(">HQH", replies[0][1])
    assert (kind, size) == (wire.INFO_EXPORT, 1 << 30)
    assert flags == wire.transmission_flags(read_only=False)
    assert struct.unpack(">HIII", replies[1][1]) == (wire.INFO_BLOCK_SIZE, 1, 4096, 32 << 20)
    assert talk.server.terms == wire.Terms("vol")


def test_tells_a_read_only_export() -> None:
    replies = Talk().option(wire.OPT_GO, name("fixed") + NONE_WANTED)
    assert struct.unpack(">HQH", replies[0][1])[2] & wire.TRANSMIT_READ_ONLY


def test_informs_and_goes_on() -> None:
    talk = Talk()
    replies = talk.option(wire.OPT_INFO, name("vol") + struct.pack(">HH", 1, wire.INFO_NAME))
    assert (wire.REP_INFO, b"\0\1vol") in replies
    assert talk.server.terms is None
    assert talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)[-1] == (wire.REP_ACK, b"")


@pytest.mark.parametrize("option", [wire.OPT_INFO, wire.OPT_GO])
def test_knows_no_other_export(option: int) -> None:
    talk = Talk()
    assert talk.option(option, name("other") + NONE_WANTED)[0][0] == wire.REP_ERR_UNKNOWN
    assert talk.server.terms is None


@pytest.mark.parametrize("data", [b"", b"\0\0", name("vol"), name("vol") + b"\0\1", name("vol") + NONE_WANTED + b"x",
                                  b"\0\0\0\xffvol\0\0", b"\0\0\0\1\xff\0\0"])  # fmt: skip
def test_answers_a_malformed_go(data: bytes) -> None:
    talk = Talk()
    assert talk.option(wire.OPT_GO, data)[0][0] == wire.REP_ERR_INVALID
    assert talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)[-1][0] == wire.REP_ACK


@pytest.mark.parametrize("flags", [1, 3])
def test_takes_an_export_name(flags: int) -> None:
    talk = Talk(flags)
    answer = talk.send(b"IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, 3) + b"vol")
    assert len(answer) == (10 if flags & wire.FLAG_NO_ZEROES else 134)
    assert struct.unpack_from(">Q", answer)[0] == 1 << 30
    assert talk.server.terms == wire.Terms("vol")


def test_closes_on_an_unknown_export_name() -> None:
    with pytest.raises(ProtocolError, match="no such export"):
        Talk().send(b"IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, 5) + b"other")


def test_serves_a_client_of_the_first_newstyle() -> None:
    talk = Talk(0)
    talk.send(b"IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, 3) + b"vol")
    assert talk.server.terms
    with pytest.raises(ProtocolError, match="fixed newstyle"):
        Talk(0).option(wire.OPT_LIST)


def test_lists() -> None:
    talk = Talk()
    assert talk.option(wire.OPT_LIST) == [
        (wire.REP_SERVER, name("fixed")), (wire.REP_SERVER, name("vol")), (wire.REP_ACK, b"")]  # fmt: skip
    assert talk.option(wire.OPT_LIST, b"x")[0][0] == wire.REP_ERR_INVALID


def test_aborts() -> None:
    talk = Talk()
    assert talk.option(wire.OPT_ABORT) == [(wire.REP_ACK, b"")]
    assert talk.server.over


@pytest.mark.parametrize(("option", "kind"), [(wire.OPT_STARTTLS, wire.REP_ERR_POLICY), (4, wire.REP_ERR_UNSUP),
                                              (11, wire.REP_ERR_UNSUP), (0xFFFFFFFF, wire.REP_ERR_UNSUP)])  # fmt: skip
def test_refuses_what_it_does_not_offer(option: int, kind: int) -> None:
    talk = Talk()
    assert talk.option(option, b"data")[0][0] == kind
    assert talk.option(wire.OPT_LIST)[-1][0] == wire.REP_ACK


def test_negotiates_block_status() -> None:
    talk = Talk()
    assert talk.option(wire.OPT_STRUCTURED_REPLY) == [(wire.REP_ACK, b"")]
    replies = talk.option(wire.OPT_SET_META_CONTEXT, queries("vol", "x:y", "base:allocation"))
    assert replies == [(wire.REP_META_CONTEXT, b"\0\0\0\1base:allocation"), (wire.REP_ACK, b"")]
    talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)
    assert talk.server.terms == wire.Terms("vol", structured=True, block_status=True)


def test_forgets_a_context_of_another_export() -> None:
    talk = Talk()
    talk.option(wire.OPT_STRUCTURED_REPLY)
    talk.option(wire.OPT_SET_META_CONTEXT, queries("vol", "base:allocation"))
    talk.option(wire.OPT_GO, name("fixed") + NONE_WANTED)
    assert talk.server.terms == wire.Terms("fixed", read_only=True, structured=True)


def test_a_later_choice_of_contexts_replaces_the_earlier() -> None:
    talk = Talk()
    talk.option(wire.OPT_STRUCTURED_REPLY)
    talk.option(wire.OPT_SET_META_CONTEXT, queries("vol", "base:allocation"))
    assert talk.option(wire.OPT_SET_META_CONTEXT, queries("vol", "base:")) == [(wire.REP_ACK, b"")]
    talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)
    assert talk.server.terms == wire.Terms("vol", structured=True)


@pytest.mark.parametrize("wanted", [(), ("base:",), ("base:allocation",), ("q", "base:")])
def test_lists_contexts(wanted: tuple[str, ...]) -> None:
    talk = Talk()
    talk.option(wire.OPT_STRUCTURED_REPLY)
    replies = talk.option(wire.OPT_LIST_META_CONTEXT, queries("vol", *wanted))
    assert replies == [(wire.REP_META_CONTEXT, b"\0\0\0\0base:allocation"), (wire.REP_ACK, b"")]
    talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)
    assert not talk.server.terms.block_status


def test_lists_no_context_that_was_not_asked_for() -> None:
    talk = Talk()
    talk.option(wire.OPT_STRUCTURED_REPLY)
    assert talk.option(wire.OPT_LIST_META_CONTEXT, queries("vol", "qemu:")) == [(wire.REP_ACK, b"")]
    assert talk.option(wire.OPT_LIST_META_CONTEXT, queries("other"))[0][0] == wire.REP_ERR_UNKNOWN


@pytest.mark.parametrize("data", [b"", name("vol"), name("vol") + b"\0\0\0\1", name("vol") + b"\xff\xff\xff\xff", queries("vol") + b"x"])
def test_answers_malformed_queries(data: bytes) -> None:
    talk = Talk()
    talk.option(wire.OPT_STRUCTURED_REPLY)
    assert talk.option(wire.OPT_SET_META_CONTEXT, data)[0][0] == wire.REP_ERR_INVALID


def test_wants_structured_replies_before_contexts() -> None:
    assert Talk().option(wire.OPT_SET_META_CONTEXT, queries("vol", "base:allocation"))[0][0] == wire.REP_ERR_INVALID


def test_refuses_with_the_reason_given() -> None:
    talk = Talk(refusal="too many connections")
    assert talk.option(wire.OPT_GO, name("vol") + NONE_WANTED) == [(wire.REP_ERR_POLICY, b"too many connections")]
    with pytest.raises(ProtocolError, match="too many connections"):
        talk.send(b"IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, 3) + b"vol")


def test_retracts_terms() -> None:
    talk = Talk()
    talk.option(wire.OPT_GO, name("vol") + NONE_WANTED)
    assert talk.split(wire.OPT_GO, talk.server.retract("in use")) == [(wire.REP_ERR_POLICY, b"in use")]
    assert talk.server.terms is None
    assert talk.option(wire.OPT_LIST)[-1][0] == wire.REP_ACK


@pytest.mark.parametrize("data", [b"IHAVEOPX" + bytes(8), b"IHAVEOPT\0\0\0\7\0\1\0\1", b"IHAVEOPT\0\0\0\1\xff\xff\xff\xff"])
def test_gives_up_on(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Talk().send(data)


def test_gives_up_on_strange_flags() -> None:
    with pytest.raises(ProtocolError, match="flags"):
        Talk(0x80000000)


def test_gives_up_on_endless_options() -> None:
    talk = Talk()
    for _ in range(OPTIONS_MAX):
        talk.option(wire.OPT_LIST)
    with pytest.raises(ProtocolError, match="too many options"):
        talk.option(wire.OPT_LIST)


def test_an_export_has_a_possible_size() -> None:
    with pytest.raises(ValueError, match="bytes"):
        ExportInfo(-1, False)


# The client's side


def negotiate(client: ClientHandshake, server: ServerHandshake) -> None:
    """Let both machines talk until one of them ends."""
    incoming = server.greeting()
    while not client.over:
        data, incoming = incoming[: client.wanted_bytes], incoming[client.wanted_bytes :]
        outgoing = client.feed(data)
        while outgoing:
            data, outgoing = outgoing[: server.wanted_bytes], outgoing[server.wanted_bytes :]
            incoming += server.feed(data)


def test_both_sides_agree() -> None:
    server, client = ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS)), ClientHandshake("vol")
    negotiate(client, server)
    assert server.terms == wire.Terms("vol", structured=True, block_status=True)
    assert (client.agreed.size_bytes, client.agreed.structured, client.agreed.status_id) == (1 << 30, True, 1)
    assert client.agreed.request_bytes_max == 32 << 20
    assert not client.agreed.read_only


def test_both_sides_agree_on_less() -> None:
    server, client = ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS)), ClientHandshake("fixed", structured=False)
    negotiate(client, server)
    assert server.terms == wire.Terms("fixed", read_only=True)
    assert (client.agreed.structured, client.agreed.status_id, client.agreed.read_only) == (False, None, True)


def test_the_client_lists() -> None:
    client = ClientHandshake(listing=True)
    negotiate(client, ServerHandshake(EXPORTS.get, lambda: sorted(EXPORTS)))
    assert client.names == ["fixed", "vol"]


def test_the_client_hears_a_refusal() -> None:
    with pytest.raises(RefusedError, match="too many"):
        negotiate(ClientHandshake("vol"), ServerHandshake(EXPORTS.get, list, refusal="too many"))
    with pytest.raises(RefusedError, match="no such export"):
        negotiate(ClientHandshake("other"), ServerHandshake(EXPORTS.get, list))


def test_the_client_goes_without_extras() -> None:
    client = ClientHandshake("vol")
    client.feed(b"NBDMAGICIHAVEOPT\0\3")
    asked = reply_to(client, wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_UNSUP)
    assert struct.unpack_from(">QI", asked) == (wire.OPTION_MAGIC, wire.OPT_GO)
    reply_to(client, wire.OPT_GO, wire.REP_INFO, struct.pack(">HQH", 0, 4096, 1))
    reply_to(client, wire.OPT_GO, wire.REP_INFO, b"\0\x09unasked")
    reply_to(client, wire.OPT_GO, wire.REP_ACK)
    assert client.agreed.size_bytes == 4096
    assert not client.agreed.structured


def reply_to(client: ClientHandshake, option: int, kind: int, data: bytes = b"") -> bytes:
    asked = client.feed(wire.pack_option_reply(option, kind, data)[:20])
    return client.feed(data) if data else asked


@pytest.mark.parametrize("greeting", [bytes(18), b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", b"NBDMAGICIHAVEOPT\0\0"])
def test_the_client_talks_to_no_stranger(greeting: bytes) -> None:
    with pytest.raises(ProtocolError):
        ClientHandshake().feed(greeting)


@pytest.mark.parametrize(
    ("option", "kind", "data"),
    [(wire.OPT_LIST, wire.REP_ACK, b""), (wire.OPT_GO, 77, b""), (wire.OPT_GO, wire.REP_INFO, b"\0"), (wire.OPT_GO, wire.REP_ACK, b""),
     (wire.OPT_GO, wire.REP_INFO, b"\0\0tooshort"), (wire.OPT_GO, wire.REP_INFO, b"\0\3short"),
     (wire.OPT_GO, wire.REP_META_CONTEXT, b"\0")],
)  # fmt: skip
def test_the_client_gives_up_on(option: int, kind: int, data: bytes) -> None:
    client = ClientHandshake("vol", structured=False)
    client.feed(b"NBDMAGICIHAVEOPT\0\3")
    with pytest.raises(ProtocolError):
        reply_to(client, option, kind, data)


def test_the_client_gives_up_on_an_endless_answer() -> None:
    client = ClientHandshake("vol", structured=False)
    client.feed(b"NBDMAGICIHAVEOPT\0\3")
    with pytest.raises(ProtocolError, match="too long"):
        client.feed(struct.pack(">QIII", wire.OPTION_REPLY_MAGIC, wire.OPT_GO, wire.REP_INFO, 1 << 30))


def test_the_client_wants_a_usable_server() -> None:
    for info in (struct.pack(">HQH", 0, 4096, 0), None):
        client = ClientHandshake("vol", structured=False)
        client.feed(b"NBDMAGICIHAVEOPT\0\3")
        reply_to(client, wire.OPT_GO, wire.REP_INFO, info or struct.pack(">HQH", 0, 4096, 1))
        if info is None:
            reply_to(client, wire.OPT_GO, wire.REP_INFO, struct.pack(">HIII", 3, 1, 1, 1))
        with pytest.raises(ProtocolError):
            reply_to(client, wire.OPT_GO, wire.REP_ACK)
