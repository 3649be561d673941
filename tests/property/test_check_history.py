"""The checker: nothing to say about a good store, and every flipped byte of it named, with the bytes of the volume where they are known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history import fold as fold_module
from history import fold_writer
from history.catalog import Catalog
from history.checker import Checked, Finding, check_volume
from history.fold import SOURCES_MAX, FoldTask, fold
from history.pins import pin
from history.retention_table import RetentionTable, Step
from history.segment import SegmentName
from history.store import Store, open_store
from history.upkeep import Policy, Upkeep
from stream.record import Kind
from tests.history_maker import damage
from tests.history_story import long_journal, moments, store_all
from tests.journal_maker import STEP_NS, JournalMaker, mark, write

TABLE = RetentionTable(
    60 * STEP_NS, (Step(10 * STEP_NS, 90 * STEP_NS), Step(30 * STEP_NS, 130 * STEP_NS), Step(60 * STEP_NS, 150 * STEP_NS))
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fold_writer, "FOLD_BLOCK_BYTES", 200)
    monkeypatch.setattr(fold_writer, "PAGE_EXTENTS_MAX", 6)
    monkeypatch.setattr(fold_module, "RUN_BYTES", 400)
    yield


def findings(store: Store) -> list[Finding]:
    return list(check_volume(store, "v1", Checked()))


def filled(seed: int, *, expire: bool) -> Store:
    """Return a store with a history in all levels, folded further or expired too."""
    store = open_store("memory:///")
    for name, data in _filled(seed, expire).items():
        store.put(name, [data])
    return store


@cache
def _filled(seed: int, expire: bool) -> dict[str, bytes]:
    maker = long_journal(seed, 200)
    store = open_store("memory:///")
    reached = store_all(maker, store, {number for number in range(len(maker.messages)) if number % 7 == 0})
    if good := moments(maker, reached):
        pin(store, "v1", good[-1], "good")
    table = TABLE if expire else RetentionTable(1 << 62, tuple(Step(step.span_ns, 1 << 62) for step in TABLE.steps))
    Upkeep(store, "v1", Policy(table, codec="snappy")).run_once()
    return {one.name: store.get(one.name) for one in store.list("v1/")}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_a_good_store_has_nothing_wrong(seed: int, expire: bool) -> None:
    store = filled(seed, expire=expire)
    checked = Checked()
    assert list(check_volume(store, "v1", checked)) == []
    assert checked.segments == len([one for one in store.list("v1/") if SegmentName.parse(one.name)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.booleans(), st.data())
def test_a_flipped_byte_anywhere_is_named(seed: int, expire: bool, data) -> None:
    store = filled(seed, expire=expire)
    one = data.draw(st.sampled_from(store.list("v1/")))
    at = data.draw(st.integers(0, one.size_bytes - 1))
    damage(store, one.name, at)
    found = findings(store)
    assert [finding for finding in found if finding.path == one.name], f"byte {at} of {one.name}"
    blamed = {finding.path for finding in found if "goes on from" not in finding.sentence and "pinned" not in finding.sentence}
    assert blamed == {one.name}, "others are blamed for it"


def test_the_bytes_of_the_volume_are_named_where_they_are_known() -> None:
    store = filled(3, expire=False)
    for level, names in Catalog(store, "v1").levels().items():
        header = Catalog(store, "v1").header(names[-1])
        size = len(store.get(str(names[-1])))
        damage(store, str(names[-1]), size - 60)  # the last block, or the last page
        (found,) = [one for one in findings(store) if one.path == str(names[-1])]
        assert found.concerned_bytes > 0 and found.at_bytes is not None, level
        ends = [entry.end_bytes for entry in header.pages] or [
            offset + length for offset, length in zip(header.extents.offsets, header.extents.lengths, strict=True)
        ]
        assert found.extents[-1].end_bytes <= max(ends)
        assert str(names[-1]) in str(found) and "of the volume" in str(found)
        damage(store, str(names[-1]), size - 60)


def test_a_segment_that_is_gone_is_missed() -> None:
    store = filled(3, expire=False)
    names = Catalog(store, "v1").levels()[0]
    store.delete(str(names[len(names) // 2]))
    assert findings(store) == [], "folds hold its range"
    store = open_store("memory:///")
    store_all(long_journal(3, 60), store, set(range(0, 200, 5)))
    names = Catalog(store, "v1").levels()[0]
    store.delete(str(names[3]))
    assert [one.path for one in findings(store)][:1] == [str(names[4])]


def test_what_does_not_belong_there_is_named() -> None:
    store = filled(3, expire=False)
    store.put("v1/L0/notes.txt", [b"x"])
    name = Catalog(store, "v1").levels()[0][1]
    store.put(f"v1/L1/{name.first}_{name.last}.avro", [store.get(str(name))])
    found = {one.path for one in findings(store)}
    assert found == {"v1/L0/notes.txt", f"v1/L1/{name.first}_{name.last}.avro"}


def test_a_fold_that_is_whole_and_wrong_is_found() -> None:
    """All its checksums fit: whoever made it wrote zeroes."""
    store = open_store("memory:///")
    maker = long_journal(5, 40)
    end = moments(maker, store_all(maker, store, set(range(0, 200, 5))))[-1]
    catalog = Catalog(store, "v1")
    names = tuple(name for name in catalog.levels()[0] if name.first <= end)
    write = fold_writer.FoldWriter.write
    try:
        fold_writer.FoldWriter.write = lambda self, start, data: write(self, start, memoryview(bytes(len(data))))
        made = fold(catalog, FoldTask("v1", 1, names, end), codec="none")
    finally:
        fold_writer.FoldWriter.write = write
    (found,) = findings(store)
    assert found.path == str(made) and "other bytes" in found.sentence and found.concerned_bytes > 0


def test_a_fold_of_more_than_may_be_folded_at_once_is_compared_with_the_level_between() -> None:
    """As a day is, whose five minutes are all there still, and whose single writes are not."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(500):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    store_all(maker, store, {number for number in range(502) if number % 2 == 0})
    table = RetentionTable(10 * STEP_NS, (Step(2 * STEP_NS, 1 << 62), Step(20 * STEP_NS, 1 << 62), Step(200 * STEP_NS, 1 << 62)))
    for _ in range(3):
        Upkeep(store, "v1", Policy(table, codec="snappy")).run_once()
    levels = Catalog(store, "v1").levels()
    assert levels[3] and len([name for name in levels[1] if name.last <= levels[3][0].last]) > SOURCES_MAX
    assert findings(store) == []


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_what_retention_removes_meanwhile_is_not_blamed(at: int, folded: bool) -> None:
    store = filled(3, expire=False)
    if not folded:
        for one in store.list("v1/"):
            if (name := SegmentName.parse(one.name)) is not None and name.level:
                store.delete(one.name)
    upkeep = Upkeep(store, "v1", Policy(TABLE, codec="snappy"))
    listed = iter(range(100))

    class Restless:
        """Retention goes by between two listings."""

        url = store.url

        def list(self, prefix: str = "") -> list:
            found = store.list(prefix)
            if next(listed) == at:
                upkeep.run_once()
            return found

        def __getattr__(self, name: str):
            return getattr(store, name)

    assert findings(Restless()) == []
    assert next(listed) > at, "retention never went by"
