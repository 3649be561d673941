"""A segment with one byte changed, missing or added is an IntegrityError that names the file, whichever byte it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history.builder import SealedSegment, SegmentBuilder, Start
from history.chain import Chain
from history.reader import SegmentReader
from history.segment import SegmentName
from history.store import StoredObject
from stream.errors import IntegrityError
from stream.position import ZERO
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, flush, mark, write, zero


class OneFile:
    """A store that holds one file, whatever it is asked for."""

    url = "one-file"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get_range(self, name: str, start: int, end: int) -> bytes:
        return self.data[start:end]

    def list(self, prefix: str = "") -> list[StoredObject]:
        raise AssertionError("not asked for here")


def segment() -> SealedSegment:
    """A small segment with something of everything."""
    maker = JournalMaker(codec="snappy")
    maker.batch(mark(Kind.EPOCH_START, clean="true", first="true"), write(0, b"a" * 200), zero(100, 50))
    maker.gap()
    maker.batch(write(50, b"split-", more=True), write(56, b"write"), flush(), mark(Kind.BOOKMARK, label="b"), write(9, bytes(range(90))))
    chain = Chain(maker.volume, ZERO, DIGEST_START)
    builder = SegmentBuilder(Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0))
    for message, entry in zip(maker.messages, maker.entries, strict=True):
        for one in chain.accept(entry, message.kafka_offset):
            builder.append(one, message.kafka_offset, chain.fence, chain.open_gaps)
    return builder.seal()[0]


SEALED = segment()
WHOLE = b"".join(SEALED.parts)


def read(data: bytes, name: SegmentName = SEALED.header.name) -> None:
    SegmentReader(OneFile(data), name).check()


def assert_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(data)
    assert caught.value.facts["path"] == SEALED.name
    assert caught.value.hint


def test_the_whole_file_is_read() -> None:
    read(WHOLE)
    assert SegmentReader(OneFile(WHOLE), SEALED.header.name).size_bytes == len(WHOLE)


def test_every_byte_flipped_is_found() -> None:
    for at in range(len(WHOLE)):
        assert_refused(WHOLE[:at] + bytes([WHOLE[at] ^ 0xFF]) + WHOLE[at + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_other_value_of_a_byte_is_found(at: int, change: int) -> None:
    assert_refused(WHOLE[:at] + bytes([WHOLE[at] ^ change]) + WHOLE[at + 1 :])


def test_a_truncation_anywhere_is_found() -> None:
    for size in range(len(WHOLE)):
        assert_refused(WHOLE[:size])


def test_bytes_after_the_end_are_found() -> None:
    assert_refused(WHOLE + b"\0")


def test_the_blocks_of_another_segment_are_found() -> None:
    """Two good files, mixed: the head and index of one, the records of another with the same layout."""
    files = []
    for data in (b"x", b"y"):
        maker = JournalMaker(codec="none")
        maker.batch(write(0, data * 100))
        chain = Chain(maker.volume, ZERO, DIGEST_START)
        builder = SegmentBuilder(Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0))
        chain.accept(maker.entries[0], 0)
        for one in chain.accept(maker.entries[1], 1):
            builder.append(one, 1, chain.fence, ())
        files.append(builder.seal()[0])
    ours, theirs = files
    assert [len(part) for part in ours.parts] == [len(part) for part in theirs.parts]
    mixed = b"".join((*ours.parts[:3], theirs.parts[3], ours.parts[4]))
    with pytest.raises(IntegrityError, match="does not match its checksum"):
        SegmentReader(OneFile(mixed), ours.header.name).batch(0)


def test_a_file_under_another_name_is_refused() -> None:
    name = SEALED.header.name
    other = SegmentName("v2", 0, name.first, name.last)
    with pytest.raises(IntegrityError, match="not what its name says"):
        read(WHOLE, other)
