"""The builder: where a segment may end, and what its header says to whoever resumes."""

from __future__ import annotations

from history.builder import SealedSegment, SegmentBuilder, Start
from history.chain import Chain
from history.container import SYNC_BYTES
from history.reader import SegmentReader
from history.store import open_store
from stream.journal import OpenGap
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, mark, seen, write


def build(maker: JournalMaker, through: int | None = None) -> SegmentBuilder:
    chain = Chain(maker.volume, ZERO, DIGEST_START)
    builder = SegmentBuilder(Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0))
    for message, entry in list(zip(maker.messages, maker.entries, strict=True))[:through]:
        kept = chain.accept(entry, message.kafka_offset)
        for one in kept:
            builder.append(one, message.kafka_offset, chain.fence, chain.open_gaps)
        if not kept:
            builder.skip(message.kafka_offset, chain.fence)
    return builder


def records_of(sealed: SealedSegment) -> list:
    store = open_store("memory:///")
    store.put(sealed.name, sealed.parts)
    reader = SegmentReader(store, sealed.header.name)
    reader.check()
    return [one for batch in reader.batches() for one in seen(batch.unpack())]


def test_nothing_but_half_a_write_can_not_be_sealed() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"half", more=True))
    builder = build(maker)
    assert not builder.is_empty
    assert not builder.sealable
    assert not SegmentBuilder(Start("v1", ZERO, DIGEST_START, "", 0)).sealable


def test_half_a_write_stays_behind_and_its_message_is_read_again() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"a"))
    maker.fence("w2")
    maker.batch(write(8, b"b"), write(16, b"half-", more=True))
    maker.batch(write(21, b"and-", more=True))
    sealed, following = build(maker).seal()
    header = sealed.header
    assert header.name.last == Position(1, 2)
    assert records_of(sealed) == maker.records[:2]
    assert header.origin.next_kafka_offset == 3, "the message that holds the first fragment"
    assert header.origin.fence == 2
    assert not following.sealable
    maker.batch(write(25, b"whole"))
    entry = maker.entries[-1]
    following.append(entry, 5, 2, ())
    rest, _ = following.seal()
    assert records_of(rest) == maker.records[2:]
    assert rest.header.coverage.follows == Position(1, 2)
    assert rest.header.coverage.digest_before == header.coverage.digest_after
    assert rest.header.origin.next_kafka_offset == 6


def test_a_split_write_that_was_given_up_is_kept_and_not_indexed() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"never", more=True))
    maker.epoch = 2
    maker.batch(mark(Kind.EPOCH_START, clean="false"), write(100, b"x"))
    sealed, _ = build(maker).seal()
    assert records_of(sealed) == maker.records
    assert list(sealed.header.extents.offsets) == [100]
    assert sealed.header.extents.find(0, 50, 9) == []


def test_a_split_write_is_given_up_within_an_epoch_too() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"never", more=True))
    maker.batch(mark(Kind.GAP_BEGIN, reason="buffer_full"), write(100, b"x"))
    assert list(build(maker).seal()[0].header.extents.offsets) == [100]


def test_a_split_write_whose_end_was_lost_is_given_up() -> None:
    """Behind a gap of the journal the sequence goes on higher, with another write."""
    maker = JournalMaker()
    maker.batch(write(0, b"never", more=True))
    maker.gap("broker_lost_data")
    maker.sequence += 5
    maker.batch(write(100, b"x"))
    assert list(build(maker).seal()[0].header.extents.offsets) == [100]


def test_gaps_and_their_state_are_in_the_header() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"a"))
    maker.gap("broker_lost_data")
    maker.batch(write(0, b"b"))
    header = build(maker).seal()[0].header
    assert [(gap.position, gap.reason, gap.missing) for gap in header.gaps] == [(Position(1, 1), "broker_lost_data", "messages 7 to 9")]
    assert [(gap.position, gap.reason) for gap in header.coverage.open_gaps] == [(Position(1, 1), "broker_lost_data")]
    assert header.coverage.open_gaps_before == ()


def test_the_next_segment_begins_with_the_gaps_that_are_open() -> None:
    gap = OpenGap(Position(1, 3), "buffer_full", 7)
    maker = JournalMaker(open_gaps=(gap,))
    maker.batch(write(0, b"a"))
    _, following = build(maker).seal()
    maker.open_gaps = ()
    maker.batch(write(0, b"b"))
    following.append(maker.entries[-1], 2, 0, ())
    coverage = following.seal()[0].header.coverage
    assert (coverage.open_gaps_before, coverage.open_gaps) == ((gap,), ())


def test_a_gap_at_the_end_is_in_the_segment_before_it() -> None:
    maker = JournalMaker()
    maker.batch(write(0, b"a"))
    maker.gap()
    header = build(maker).seal()[0].header
    assert [gap.position for gap in header.gaps] == [header.name.last]
    assert header.origin.next_kafka_offset == 3


def test_blocks_are_where_the_header_says() -> None:
    maker = JournalMaker(codec="none")
    for number in range(5):
        maker.batch(write(number, bytes([number]) * 100))
    sealed, _ = build(maker).seal()
    head, index, sync = sealed.parts[:3]
    assert (len(sync), head[-SYNC_BYTES:]) == (SYNC_BYTES, sync)
    whole, begin = b"".join(sealed.parts), len(head) + len(index) + len(sync)
    for number, block in enumerate(sealed.header.blocks):
        data = whole[begin + block.offset_bytes : begin + block.end_bytes]
        assert data.endswith(block.checksum + sync)
        assert bytes([number]) * 100 in data


def test_the_same_history_gives_the_same_bytes() -> None:
    first, second = JournalMaker(), JournalMaker()
    for maker in (first, second):
        maker.batch(mark(Kind.EPOCH_START, clean="true"), write(0, b"a"), mark(Kind.BOOKMARK, label="l", group="g"))
    assert build(first).seal()[0].parts == build(second).seal()[0].parts
