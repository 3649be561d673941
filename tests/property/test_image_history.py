"""The image at any position against an oracle that applies the records one by one; with and without a tail that no segment holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from history.builder import Start
from history.catalog import Catalog
from history.image import Image, SegmentLayer
from history.reader import SegmentReader
from history.store import open_store
from tests.history_story import ListLayer, journals, moments, oracle, store_all
from tests.journal_maker import JournalMaker


def whole(image: Image) -> bytes:
    """Return all bytes of an image, read in uneven parts; check its sweep and its extents on the way."""
    out = bytearray(image.size_bytes)
    for at in range(0, len(out), 1000):
        image.read(at, memoryview(out)[at : at + 1000])
    swept = bytearray(image.size_bytes)
    for offset, data in image.sweep():
        swept[offset : offset + len(data)] = data
    assert swept == out
    at, before = 0, None
    for length, is_zero in image.extents(0, image.size_bytes):
        assert is_zero != before, "neighbours of one kind"
        assert not (is_zero and any(out[at : at + length])), "told as zero, and is not"
        at, before = at + length, is_zero
    assert at == image.size_bytes
    return bytes(out)


@settings(max_examples=150, deadline=None)
@given(journals(), st.sets(st.integers(0, 80)), st.data())
def test_every_position_is_what_the_oracle_says(maker: JournalMaker, seal_at: set[int], data) -> None:
    """At every position, those inside split writes too: there the write is not shown."""
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    catalog = Catalog(store, maker.volume)
    positions = [position for position, _, _ in maker.records if position <= reached]
    for position in data.draw(st.lists(st.sampled_from(positions), min_size=1, max_size=6)):
        assert whole(catalog.image(position)) == oracle(maker, position)


@settings(max_examples=100, deadline=None)
@given(journals(), st.sets(st.integers(0, 80)), st.data())
def test_a_tail_goes_on_where_the_segments_end(maker: JournalMaker, seal_at: set[int], data) -> None:
    store = open_store("memory:///")
    store_all(maker, store, seal_at)
    catalog = Catalog(store, maker.volume)
    position = data.draw(st.sampled_from(moments(maker) or [maker.records[0][0]]))
    ends = [name.last for name in catalog.levels()[0] if name.last <= position]
    stored = data.draw(st.sampled_from(ends)) if ends else None
    names = catalog.cover(stored)[0] if stored else []
    layers = [catalog.layer(name, stored) for name in names]
    layers.append(ListLayer([one for one in maker.records if (stored is None or one[0] > stored) and one[0] <= position]))
    expected = oracle(maker, position)
    assert whole(Image("v1", position, len(expected), layers)) == expected


@settings(max_examples=100, deadline=None)
@given(journals(), st.sets(st.integers(0, 80)), st.sets(st.integers(0, 80)), st.data())
def test_segments_that_overlap_give_the_same_bytes(maker: JournalMaker, seal_at: set[int], again: set[int], data) -> None:
    """A second persister resumed anywhere; whichever of the segments are stacked, the newest wins (design rule 27)."""
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    header = SegmentReader(store, data.draw(st.sampled_from(Catalog(store, "v1").levels()[0]))).header
    coverage, origin = header.coverage, header.origin
    start = Start("v1", header.name.last, coverage.digest_after, "journal-id", origin.next_kafka_offset, origin.fence, coverage.open_gaps)
    store_all(maker, store, again, from_message=origin.next_kafka_offset, start=start)
    catalog = Catalog(store, "v1")
    positions = [position for position, _, _ in maker.records if position <= reached]
    for position in data.draw(st.lists(st.sampled_from(positions), min_size=1, max_size=4)):
        expected = oracle(maker, position)
        assert whole(catalog.image(position)) == expected
        names = [name for name in catalog.levels()[0] if name.first <= position]
        stacked = [SegmentLayer(SegmentReader(store, name), position) for name in names]
        assert whole(Image("v1", position, len(expected), stacked)) == expected


