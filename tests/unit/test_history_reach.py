"""How far back the upkeep says that history goes: what it really holds, whatever was folded, deleted or kept by a lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from history.catalog import Catalog
from history.leases import Lease
from history.retention_table import parse_table
from history.store import Store, open_store
from history.upkeep import Policy, Reach, Upkeep
from stream.record import Kind
from tests.history_story import store_all
from tests.journal_maker import JournalMaker, mark, write

SECOND_NS = 10**9
STEP_NS = SECOND_NS // 10
FIVE_A_SEGMENT = set(range(0, 200, 5))
KEEP_ALL = parse_table("any write ever, 1 s for ever")
KEEP_2_S = parse_table("any write 2 s, 1 s for 1 d")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def fill(store: Store, batches: int) -> JournalMaker:
    """Store a history of so many batches, a tenth of a second apart."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(batches):
        maker.time_ns += STEP_NS
        maker.batch(write(number * 8 % 8192, b"x" * 8))
    store_all(maker, store, FIVE_A_SEGMENT)
    return maker


def reach(store: Store, table=KEEP_ALL) -> Reach | None:
    upkeep = Upkeep(store, "v1", Policy(table, codec="none"))
    upkeep.run_once()
    return upkeep.reach


def times(store: Store) -> tuple[int, int]:
    """Return the first and the last capture time of level 0, from its headers alone."""
    catalog = Catalog(store, "v1")
    coverages = [catalog.header(name).coverage for name in catalog.levels()[0]]
    return min(one.first_capture_time_ns for one in coverages), max(one.last_capture_time_ns for one in coverages)


def test_nothing_is_stored_yet(store: Store) -> None:
    assert reach(store) is None


def test_as_long_as_nothing_is_deleted_every_write_is_there(store: Store) -> None:
    fill(store, 50)
    first_ns, last_ns = times(store)
    assert reach(store) == Reach(last_ns - first_ns, last_ns - first_ns)
    assert last_ns - first_ns >= 49 * STEP_NS


def test_what_was_deleted_is_not_told(store: Store) -> None:
    fill(store, 100)
    whole = reach(store)
    assert whole is not None
    left = reach(store, KEEP_2_S)
    first_ns, last_ns = times(store)
    assert left is not None and left.every_write_ns == last_ns - first_ns
    assert 2 * SECOND_NS <= left.every_write_ns < 4 * SECOND_NS < left.oldest_ns < whole.oldest_ns


def test_what_a_lease_alone_keeps_is_no_reach(store: Store) -> None:
    """An export of the oldest moment holds its segment, the ones after it are gone: not every write since is there."""
    fill(store, 100)
    oldest = Catalog(store, "v1").levels()[0][0]
    with Lease(store, "v1", [oldest], "export"):
        left = reach(store, KEEP_2_S)
        assert oldest in Catalog(store, "v1").levels()[0]
    assert left is not None and left.every_write_ns < 4 * SECOND_NS


def test_an_epoch_that_goes_on_where_the_one_before_ended_breaks_nothing(store: Store) -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for epoch in (1, 2):
        maker.epoch = epoch
        if epoch == 2:
            maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
        for number in range(20):
            maker.time_ns += STEP_NS
            maker.batch(write(number * 8, b"x" * 8))
    store_all(maker, store, FIVE_A_SEGMENT | {21})  # one ends where the epoch does
    first_ns, last_ns = times(store)
    assert {name.first.epoch for name in Catalog(store, "v1").levels()[0]} == {1, 2}
    assert reach(store) == Reach(last_ns - first_ns, last_ns - first_ns)
