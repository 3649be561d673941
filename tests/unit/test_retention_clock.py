"""A record with a false capture time, as a stolen agent may publish it, makes no history old before its time."""

from __future__ import annotations

import pytest

from history.catalog import Catalog
from history.retention_table import RetentionTable, Step
from history.store import open_store
from history.upkeep import Policy, Upkeep
from stream.record import Kind
from tests.history_maker import stored
from tests.journal_maker import STEP_NS, JournalMaker, mark, write

TABLE = RetentionTable(50 * STEP_NS, (Step(10 * STEP_NS, 60 * STEP_NS), Step(20 * STEP_NS, 80 * STEP_NS)))
WRITES = 30


@pytest.mark.parametrize("believed", [True, False])
def test_a_time_from_the_future_ages_nothing_where_a_clock_is_at_hand(believed: bool) -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(WRITES):
        maker.batch(write(number * 64, bytes([number + 1]) * 64))
    now_ns = maker.time_ns
    maker.time_ns += 10**18  # thirty years
    maker.batch(write(0, b"false" * 8))
    store = open_store("memory:///")
    count = len(maker.messages)
    stored(maker.messages, [*range(5, count, 5), count], store=store)
    before = len(Catalog(store, "v1").levels()[0])
    upkeep = Upkeep(store, "v1", Policy(TABLE), clock_ns=None if believed else lambda: now_ns)
    for _ in range(5):
        upkeep.run_once()
    left = len(Catalog(store, "v1").levels()[0])
    assert (left < before) is believed
    assert bool(upkeep.deleted) is believed
