"""The wire format against bytes written down from the protocol's text, and the judgement of requests."""

from __future__ import annotations

import errno

import pytest

from nbd import wire
from nbd.errors import ProtocolError, wire_errno

MIB = 1 << 20
PLAIN = wire.Terms("x")
READ_ONLY = wire.Terms("x", read_only=True)
RICH = wire.Terms("x", structured=True, block_status=True)


def test_packs_a_request() -> None:
    packed = wire.pack_request(wire.CMD_WRITE, 0x1122334455667788, 0x1000, 0x200, wire.CMD_FLAG_FUA)
    assert packed.hex() == "25609513000100011122334455667788000000000000100000000200"
    assert wire.unpack_request(packed) == (0x25609513, 1, 1, 0x1122334455667788, 0x1000, 0x200)


def test_refuses_a_request_without_its_magic() -> None:
    with pytest.raises(ProtocolError, match="magic"):
        wire.unpack_request(bytes(28))


def test_packs_replies() -> None:
    assert wire.pack_simple_reply(1, 5).hex() == "67446698000000050000000000000001"
    assert wire.pack_error_chunk(2, 22).hex() == "668e33ef00018001000000000000000200000006000000160000"
    status = wire.pack_block_status(3, [(4096, 0), (512, 3)])
    assert status.hex() == ("668e33ef000100050000000000000003000000140000000100001000000000000000020000000003")
    assert wire.unpack_block_status(status[20:]) == (1, [(4096, 0), (512, 3)])


def test_packs_options() -> None:
    assert wire.pack_option(7, b"ab").hex() == "49484156454f505400000007000000026162"
    assert wire.pack_option_reply(7, wire.REP_ERR_UNSUP).hex() == "0003e889045565a9000000078000000100000000"


@pytest.mark.parametrize("payload", [b"", bytes(8), bytes(13)])
def test_refuses_impossible_block_status(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_block_status(payload)


@pytest.mark.parametrize("raw", [b"", b"\0\0\0\5abc", b"\0\0\x20\0" + b"x" * 8192, b"\0\0\0\1\xff"])
def test_refuses_bad_names(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_name(raw, 0)


def test_reads_a_name_where_it_stands() -> None:
    assert wire.unpack_name(b"??" + wire.pack_name("grün") + b"!", 2) == ("grün", 11)


@pytest.mark.parametrize(
    ("terms", "command", "flags", "offset", "length", "expected"),
    [
        (PLAIN, wire.CMD_READ, 0, 0, 1, 0),
        (PLAIN, wire.CMD_READ, wire.CMD_FLAG_FUA, 0, 1, 0),
        (PLAIN, wire.CMD_READ, wire.CMD_FLAG_DF, 0, 1, errno.EINVAL),
        (RICH, wire.CMD_READ, wire.CMD_FLAG_DF, 0, 1, 0),
        (PLAIN, wire.CMD_READ, 0, MIB - 1, 1, 0),
        (PLAIN, wire.CMD_READ, 0, MIB, 1, errno.EINVAL),
        (PLAIN, wire.CMD_READ, 0, 1, MIB, errno.EINVAL),
        (PLAIN, wire.CMD_READ, 0, (1 << 64) - 1, 1, errno.EINVAL),
        (PLAIN, wire.CMD_READ, 0, 0, 0, errno.EINVAL),
        (READ_ONLY, wire.CMD_READ, 0, 0, 1, 0),
        (PLAIN, wire.CMD_WRITE, wire.CMD_FLAG_FUA, 0, MIB, 0),
        (PLAIN, wire.CMD_WRITE, wire.CMD_FLAG_DF, 0, 1, errno.EINVAL),
        (PLAIN, wire.CMD_WRITE, 1 << 5, 0, 1, errno.EINVAL),
        (PLAIN, wire.CMD_WRITE, 0, MIB, 1, errno.ENOSPC),
        (PLAIN, wire.CMD_WRITE, 0, 0, MIB + 1, errno.ENOSPC),
        (PLAIN, wire.CMD_WRITE, 0, 0, 0, errno.EINVAL),
        (READ_ONLY, wire.CMD_WRITE, 0, 0, 1, errno.EPERM),
        (READ_ONLY, wire.CMD_TRIM, 0, 0, 1, errno.EPERM),
        (READ_ONLY, wire.CMD_WRITE_ZEROES, 0, 0, 1, errno.EPERM),
        (READ_ONLY, wire.CMD_FLUSH, 0, 0, 0, 0),
        (PLAIN, wire.CMD_FLUSH, 0, 1, 0, errno.EINVAL),
        (PLAIN, wire.CMD_FLUSH, 0, 0, 1, errno.EINVAL),
        (PLAIN, wire.CMD_TRIM, 0, MIB, 1, errno.EINVAL),
        (PLAIN, wire.CMD_WRITE_ZEROES, 0, MIB, 1, errno.ENOSPC),
        (PLAIN, wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO | wire.CMD_FLAG_FUA, 0, MIB, 0),
        (PLAIN, wire.CMD_CACHE, 0, 0, MIB, 0),
        (PLAIN, wire.CMD_CACHE, 0, 1, MIB, errno.EINVAL),
        (PLAIN, wire.CMD_BLOCK_STATUS, 0, 0, MIB, errno.EINVAL),
        (RICH, wire.CMD_BLOCK_STATUS, wire.CMD_FLAG_REQ_ONE, 0, MIB, 0),
        (RICH, wire.CMD_BLOCK_STATUS, 0, 0, 0, errno.EINVAL),
        (PLAIN, wire.CMD_DISC, 0, 0, 0, errno.EINVAL),
        (PLAIN, 8, 0, 0, 1, errno.EINVAL),
        (PLAIN, 65535, 0, 0, 1, errno.EINVAL),
    ],
)
def test_judges_requests(terms: wire.Terms, command: int, flags: int, offset: int, length: int, expected: int) -> None:
    assert wire.refusal(terms, MIB, command, flags, offset, length) == expected


def test_limits_the_length_of_data_only() -> None:
    huge, most = 1 << 40, wire.REQUEST_BYTES_MAX
    for command in (wire.CMD_READ, wire.CMD_WRITE):
        assert wire.refusal(RICH, huge, command, 0, 0, most) == 0
        assert wire.refusal(RICH, huge, command, 0, 0, most + 1) == errno.EINVAL
    for command in (wire.CMD_TRIM, wire.CMD_WRITE_ZEROES, wire.CMD_CACHE, wire.CMD_BLOCK_STATUS):
        assert wire.refusal(RICH, huge, command, 0, 0, (1 << 32) - 1) == 0


def test_offers_changes_only_where_they_are_allowed() -> None:
    changes = wire.TRANSMIT_TRIM | wire.TRANSMIT_WRITE_ZEROES | wire.TRANSMIT_FAST_ZERO
    writable, fixed = wire.transmission_flags(read_only=False), wire.transmission_flags(read_only=True)
    assert writable & changes == changes
    assert not writable & wire.TRANSMIT_READ_ONLY
    assert not fixed & changes
    assert fixed & wire.TRANSMIT_READ_ONLY
    assert writable & fixed & wire.TRANSMIT_MULTI_CONN
    assert writable & wire.TRANSMIT_FLUSH
    assert writable & wire.TRANSMIT_FUA


def test_terms_with_block_status_need_structured_replies() -> None:
    with pytest.raises(ValueError, match="structured"):
        wire.Terms("x", block_status=True)


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, 28), (errno.EIO, 5), (errno.ENOTSUP, 95), (errno.ESHUTDOWN, 108), (errno.EROFS, 1), (errno.EACCES, 1),
     (errno.EDQUOT, 28), (errno.EFBIG, 28), (errno.ENOSYS, 95), (errno.EBADF, 5), (errno.ETIMEDOUT, 5), (None, 5)],
)  # fmt: skip
def test_tells_errors_in_the_protocol_s_words(code: int | None, expected: int) -> None:
    assert wire_errno(OSError(code, "x") if code is not None else OSError("x")) == expected


def test_an_error_tells_its_facts() -> None:
    assert str(ProtocolError("it went wrong", got=5, unknown=None)) == "it went wrong [got=5]"
