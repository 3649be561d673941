"""The clean-stop marker as it is stored: believed only if it is whole."""

from __future__ import annotations

import pytest

from agent import clean_stop
from agent.clean_stop import CleanStop
from agent.source import SourceIdentity

MARKER = CleanStop("topic", "00000001-0000000000000042", SourceIdentity(12, 1 << 40, 1_700_000_000_123_456_789))


def test_says_what_was_written() -> None:
    raw = clean_stop.encode(MARKER)
    assert clean_stop.decode(raw) == clean_stop.decode(raw + bytes(500)) == MARKER


def test_no_damaged_marker_is_believed() -> None:
    whole = clean_stop.encode(MARKER)
    for at in range(len(whole)):
        for change in (1, 0x10, 0x80):
            damaged = whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
            assert clean_stop.decode(damaged) in (None, MARKER), f"byte {at}"


def test_no_cut_marker_is_believed() -> None:
    whole = clean_stop.encode(MARKER)
    for length in range(len(whole)):
        assert clean_stop.decode(whole[:length]) is None


@pytest.mark.parametrize("raw", [b"", bytes(4096), b"null", b"[]", b"7", b'"x"', b"{}", b'{"body": 5, "checksum": "x"}', b"\xff\xfe{"])
def test_nonsense_is_no_marker(raw: bytes) -> None:
    assert clean_stop.decode(raw) is None


@pytest.mark.parametrize("body", ["{}", "[]", "null", '{"topic_id": "t", "position": "p", "source": {"inode": 1}}', "{"])
def test_a_whole_text_that_is_no_marker(body: str) -> None:
    assert clean_stop.decode(clean_stop.seal(body)) is None
