"""Segments against the list of records that went in: whatever the batches, the seals and the splits, the same records come out, and the
index gives the same bytes as applying them one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from history.builder import SegmentBuilder, Start
from history.chain import Chain
from history.reader import SegmentReader, list_segments
from history.store import open_store
from stream.position import ZERO
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, Told, flush, image, mark, seen, write, zero

VOLUME_BYTES = 4096

_data = st.binary(min_size=1, max_size=64)
_offset = st.integers(0, VOLUME_BYTES - 64)


@st.composite
def _step(draw) -> list[Told]:
    """One step of a volume: a write, a split write, one that is given up, a zero, a flush, a mark."""
    kind = draw(st.sampled_from(["write", "write", "split", "given_up", "zero", "flush", "mark", "epoch"]))
    if kind == "write":
        return [write(draw(_offset), draw(_data))]
    if kind in ("split", "given_up"):
        count = draw(st.integers(2, 4))
        pieces = [draw(_data) for _ in range(count)]
        at, told = draw(st.integers(0, VOLUME_BYTES - 256)), []
        for piece in pieces:
            told.append(write(at, piece, more=True))
            at += len(piece)
        if kind == "split":
            told[-1] = write(told[-1].offset, told[-1].data)
            return told
        return [*told, mark(Kind.EPOCH_START, clean="false")]
    if kind == "zero":
        return [zero(draw(_offset), draw(st.integers(1, 64)))]
    if kind == "flush":
        return [flush()]
    if kind == "mark":
        return [mark(draw(st.sampled_from([Kind.BOOKMARK, Kind.HEARTBEAT, Kind.VERIFY])), label=draw(st.text(max_size=5)))]
    return [mark(Kind.EPOCH_START, clean="true")]


@st.composite
def journals(draw) -> JournalMaker:
    """A journal of random steps in random batches; a batch never holds two epochs."""
    maker = JournalMaker(codec=draw(st.sampled_from(["none", "snappy", "zstd", "lz4"])))
    told = [one for step in draw(st.lists(_step(), min_size=1, max_size=20)) for one in step]
    waiting: list[Told] = []
    for one in told:
        if one.kind == Kind.EPOCH_START:
            if waiting:
                maker.batch(*waiting)
            waiting = [one]
            maker.epoch += 1
            continue
        waiting.append(one)
        if draw(st.booleans()):
            maker.batch(*waiting)
            waiting = []
    if waiting:
        maker.batch(*waiting)
    return maker


def store_all(maker: JournalMaker, store, seal_at: set[int]) -> SegmentBuilder:
    """Send the journal through chain and builder, sealing after the messages named if that is possible, and at the end."""
    chain = Chain(maker.volume, ZERO, DIGEST_START)
    builder = SegmentBuilder(Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0))
    for message, entry in zip(maker.messages, maker.entries, strict=True):
        kept = chain.accept(entry, message.kafka_offset)
        for one in kept:
            builder.append(one, message.kafka_offset, chain.fence, chain.open_gaps)
        if not kept:
            builder.skip(message.kafka_offset, chain.fence)
        if (message.kafka_offset in seal_at or message is maker.messages[-1]) and builder.sealable:
            expected = builder.position
            sealed, builder = builder.seal()
            assert sealed.header.name.last == expected
            assert store.put(sealed.name, sealed.parts)
    return builder


@settings(max_examples=150, deadline=None)
@given(journals(), st.sets(st.integers(0, 60)))
def test_records_and_bytes_come_back(maker: JournalMaker, seal_at: set[int]) -> None:
    store = open_store("memory:///")
    store_all(maker, store, seal_at)
    found = []
    covered = ZERO
    digest = DIGEST_START
    for name in list_segments(store, maker.volume):
        reader = SegmentReader(store, name)
        reader.check()
        header = reader.header
        assert header.coverage.digest_before == digest
        assert header.coverage.follows == covered
        inside = [one for batch in reader.batches() for one in seen(batch.unpack())]
        assert (header.name.first, header.name.last) == (inside[0][0], inside[-1][0])
        assert not inside[-1][2].more, "a segment ends inside a split write"
        assert header.coverage.last_capture_time_ns == inside[-1][1]
        assert [mark.position for mark in header.marks] == [p for p, _, t in inside if t.kind >= 16 and t.kind != Kind.HEARTBEAT]
        assert [inside[number][2].kind for number in header.flushes] == [t.kind for _, _, t in inside if t.kind == Kind.FLUSH]
        assert_index_gives_image(reader, inside)
        found += inside
        covered, digest = header.name.last, header.coverage.digest_after
    expected = [one for one in maker.records if one[0] <= covered]
    assert found == expected
    assert all(one[2].more for one in maker.records[len(expected) :]), "whole writes were left behind"


def assert_index_gives_image(reader: SegmentReader, inside: list) -> None:
    """Compare the bytes that the index finds at every recovery point with applying the records."""
    header = reader.header
    blobs = [batch.unpack().payload for batch in reader.batches()]
    points = [number for number, (_, _, told) in enumerate(inside) if not told.more]
    for number in points[:: max(1, len(points) // 4)]:
        count = header.records_through(inside[number][0])
        assert count == number + 1
        shown = bytearray(VOLUME_BYTES)
        end = 0
        for piece in header.extents.find(0, VOLUME_BYTES, count):
            assert piece.start_bytes >= end, "pieces overlap"
            end = piece.end_bytes
            if piece.payload_bytes is not None:
                block, _ = header.block_of(piece.record)
                size = piece.end_bytes - piece.start_bytes
                data = bytes(blobs[block][piece.payload_bytes : piece.payload_bytes + size])
                shown[piece.start_bytes : piece.end_bytes] = data
        assert shown == image(inside[:count], VOLUME_BYTES)


@settings(max_examples=60, deadline=None)
@given(journals(), st.sets(st.integers(0, 60)), st.data())
def test_resuming_anywhere_gives_the_same_history(maker: JournalMaker, seal_at: set[int], data) -> None:
    """Resume from the header of any segment alone: what is stored after it joins on, and overlapping segments count once."""
    store = open_store("memory:///")
    store_all(maker, store, seal_at)
    names = list_segments(store, maker.volume)
    if not names:
        return
    header = SegmentReader(store, data.draw(st.sampled_from(names))).header
    coverage, origin = header.coverage, header.origin
    chain = Chain(maker.volume, header.name.last, coverage.digest_after, fence=origin.fence, open_gaps=coverage.open_gaps)
    builder = SegmentBuilder(
        Start(maker.volume, header.name.last, coverage.digest_after, "journal-id", origin.next_kafka_offset, origin.fence)
    )
    for offset in range(origin.next_kafka_offset, len(maker.messages)):
        for one in chain.accept(maker.entries[offset], offset):
            builder.append(one, offset, chain.fence, chain.open_gaps)
    if builder.sealable:
        sealed, _ = builder.seal()
        store.put(sealed.name, sealed.parts)
    found, covered = [], ZERO
    for name in list_segments(store, maker.volume):
        for batch in SegmentReader(store, name).batches(after=covered):
            found += [one for one in seen(batch.unpack()) if one[0] > covered]
        covered = name.last
    assert found == [one for one in maker.records if one[0] <= covered]
