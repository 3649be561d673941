"""Folds against the oracle: whatever is folded from what, and whatever is deleted afterwards, the image at a fold's end is the volume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history import fold as fold_module
from history import fold_page, fold_writer
from history.catalog import Catalog
from history.fold import FoldTask, fold
from history.image import Image
from history.levels import SNAPSHOT
from history.segment import SegmentName
from history.store import Store, open_store
from stream.position import Position
from stream.record import Kind
from tests.history_story import ListLayer, journals, moments, oracle, store_all
from tests.journal_maker import JournalMaker
from tests.property.test_image_history import whole


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks, pages and runs of a few extents, so that small histories have many."""
    for module, name, value in (
        (fold_writer, "FOLD_BLOCK_BYTES", 200),
        (fold_writer, "BLOCK_EXTENTS_MAX", 4),
        (fold_writer, "PAGE_EXTENTS_MAX", 6),
        (fold_module, "RUN_BYTES", 400),
        (fold_module, "RUNS_MAX", 3),
    ):
        monkeypatch.setattr(module, name, value)
    assert fold_page.PAGE_EXTENTS_MAX > 6
    yield


def folded(store: Store, catalog: Catalog, task: FoldTask) -> SegmentName:
    name = fold(catalog, task, codec="snappy")
    catalog.refresh()
    assert name in catalog.levels()[task.level]
    return name


def fold_level(store: Store, catalog: Catalog, level: int, ends: list[Position]) -> list[SegmentName]:
    """Fold all of the level below, up to these ends, one fold after the other; a snapshot from the one before on."""
    made: list[SegmentName] = []
    for end in ends:
        after = made[-1] if made else None
        begin = after.last if after else None
        below = catalog.levels()[level - 1]
        sources = [name for name in below if (begin is None or name.last > begin) and name.first <= end]
        if level == SNAPSHOT and after is not None:
            sources, after = [after, *sources], None
        made.append(folded(store, catalog, FoldTask("v1", level, tuple(sources), end, after)))
    return made


@settings(max_examples=120, deadline=None)
@given(journals(steps_max=50), st.sets(st.integers(0, 80), max_size=12), st.data())
def test_every_end_of_a_fold_is_what_the_oracle_says(maker: JournalMaker, seal_at: set[int], data) -> None:
    """Level upon level, each made from the one below alone; at the end a snapshot of everything."""
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    catalog = Catalog(store, "v1")
    ends = moments(maker, reached)
    for level in (1, 2, 3, 4):
        ends = sorted(data.draw(st.sets(st.sampled_from(ends), min_size=1, max_size=6))) if ends else []
        made = fold_level(store, catalog, level, ends)
        for name in catalog.levels().get(level - 1, []):
            if data.draw(st.booleans()) and made and name.last <= made[-1].last:
                store.delete(str(name))
        catalog.refresh()
        for name in made:
            stacked = [name] if level == SNAPSHOT else [one for one in made if one.last <= name.last]
            layers = [catalog.layer(one, name.last) for one in stacked]
            expected = oracle(maker, name.last)
            assert whole(Image("v1", name.last, len(expected), layers)) == expected
            assert whole(catalog.image(name.last)) == expected


@settings(max_examples=80, deadline=None)
@given(journals(steps_max=50), st.sets(st.integers(0, 80), max_size=12), st.data())
def test_any_position_behind_a_fold_and_a_tail_on_top(maker: JournalMaker, seal_at: set[int], data) -> None:
    """Level 0 goes on behind a fold, also inside a segment; what no segment holds goes on behind that."""
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    catalog = Catalog(store, "v1")
    ends = moments(maker, reached)
    if not ends:
        return
    (made,) = fold_level(store, catalog, 1, [data.draw(st.sampled_from(ends))])
    for name in catalog.levels()[0]:
        if name.last <= made.last:
            store.delete(str(name))
    catalog.refresh()
    for position in data.draw(st.lists(st.sampled_from(moments(maker)), min_size=1, max_size=4)):
        if position < made.last:
            continue
        names, at = catalog.cover(min(position, reached))
        assert at == min(position, reached)
        layers = [catalog.layer(name, at) for name in names]
        if position > at:
            layers.append(ListLayer([one for one in maker.records if at < one[0] <= position]))
        expected = oracle(maker, position)
        assert whole(Image("v1", position, len(expected), layers)) == expected


@settings(max_examples=60, deadline=None)
@given(journals(steps_max=50), st.sets(st.integers(0, 80), max_size=12), st.data())
def test_folds_that_overlap_give_the_same_bytes(maker: JournalMaker, seal_at: set[int], data) -> None:
    """Two that fold a volume at once choose other ends: whichever folds are stacked, the newest wins (design rule 27)."""
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    catalog = Catalog(store, "v1")
    ends = moments(maker, reached)
    if not ends:
        return
    made = []
    for _ in range(2):
        made += fold_level(store, catalog, 1, sorted(data.draw(st.sets(st.sampled_from(ends), min_size=1, max_size=5))))
    for end in sorted({name.last for name in made}):
        stacked = sorted((name for name in made if name.last <= end), key=lambda name: (name.last, name.first))
        expected = oracle(maker, end)
        assert whole(Image("v1", end, len(expected), [catalog.layer(name, end) for name in stacked])) == expected
    for name in catalog.levels()[0]:
        store.delete(str(name))
    catalog.refresh()
    for end in {name.last for name in made}:
        assert whole(catalog.image(end)) == oracle(maker, end)


@settings(max_examples=60, deadline=None)
@given(journals(steps_max=50), st.sets(st.integers(0, 80), max_size=12), st.data())
def test_marks_and_facts_survive(maker: JournalMaker, seal_at: set[int], data) -> None:
    store = open_store("memory:///")
    reached = store_all(maker, store, seal_at)
    catalog = Catalog(store, "v1")
    ends = moments(maker, reached)
    if not ends:
        return
    kept = [
        (position, time_ns, told.attributes)
        for position, time_ns, told in maker.records
        if told.kind >= Kind.EPOCH_START and told.kind != Kind.HEARTBEAT
    ]
    times = {position: time_ns for position, time_ns, _ in maker.records}
    chosen = sorted(data.draw(st.sets(st.sampled_from(ends), min_size=1, max_size=5)))
    found = []
    before = None
    for name in fold_level(store, catalog, 1, chosen):
        header = catalog.header(name)
        found += [(mark.position, mark.capture_time_ns, dict(mark.attributes)) for mark in header.marks]
        assert header.coverage.last_capture_time_ns == times[name.last]
        assert header.coverage.open_gaps == ()
        if before is not None:
            assert header.coverage.digest_before == before.digest_after
        before = header.coverage
    assert found == [one for one in kept if one[0] <= chosen[-1]]
