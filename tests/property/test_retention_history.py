"""Retention against the oracle: whatever was stored, folded and deleted, by whom, and wherever they were killed, what is promised can be
restored and is what the oracle says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history import fold as fold_module
from history import fold_writer, retention
from history.builder import SegmentBuilder, Start
from history.catalog import Catalog
from history.chain import Chain
from history.leases import Lease
from history.pins import pin, pins
from history.reader import SegmentReader, list_segments
from history.retention_table import RetentionTable, Step
from history.segment import SegmentName
from history.store import Store, StoredObject, open_store
from history.upkeep import Policy, Upkeep
from stream.errors import RecoveryError
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Kind
from tests.history_story import long_journal, moments, oracle
from tests.journal_maker import STEP_NS, JournalMaker, mark, write
from tests.property.test_image_history import whole

TABLE = RetentionTable(
    20 * STEP_NS, (Step(5 * STEP_NS, 40 * STEP_NS), Step(12 * STEP_NS, 70 * STEP_NS), Step(25 * STEP_NS, 100 * STEP_NS))
)
BOOKMARKS_NS = 90 * STEP_NS


class KilledError(Exception):
    """The process ends here."""


class MortalStore:
    """A store whose user dies at one of its calls: before it, or when it is done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        self.calls_left: int | None = None
        self.after = False

    def _step(self, act):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                if self.after:
                    act()
                raise KilledError
        return act()

    def put(self, name: str, parts) -> bool:
        return self._step(lambda: self._store.put(name, parts))

    def get(self, name: str) -> bytes:
        return self._store.get(name)

    def get_range(self, name: str, start: int, end: int) -> bytes:
        return self._store.get_range(name, start, end)

    def list(self, prefix: str = "") -> list[StoredObject]:
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        self._step(lambda: self._store.delete(name))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name, value in (
        (fold_writer, "FOLD_BLOCK_BYTES", 200),
        (fold_writer, "PAGE_EXTENTS_MAX", 6),
        (fold_module, "RUN_BYTES", 400),
        (retention, "SNAPSHOT_AFTER", 2),
        (retention, "SNAPSHOT_EVERY", 4),
    ):
        monkeypatch.setattr(module, name, value)
    yield


@dataclass
class Persisting:
    """A persister by hand: stores the journal up to a message, in segments, from where the listing ends."""

    maker: JournalMaker
    store: Store

    def store_until(self, count: int, seal_every: int) -> None:
        names = list_segments(self.store, "v1")
        start = Start("v1", ZERO, DIGEST_START, "journal-id", 0)
        if names:
            header = SegmentReader(self.store, names[-1]).header
            coverage, origin = header.coverage, header.origin
            start = Start(
                "v1", header.name.last, coverage.digest_after, "journal-id", origin.next_kafka_offset, origin.fence, coverage.open_gaps
            )
        chain = Chain("v1", start.position, start.digest, fence=start.fence, open_gaps=start.open_gaps)
        builder = SegmentBuilder(start)
        for offset in range(start.next_kafka_offset, count):
            kept = chain.accept(self.maker.entries[offset], offset)
            for one in kept:
                builder.append(one, offset, chain.fence, chain.open_gaps)
            if not kept:
                builder.skip(offset, chain.fence)
            if (offset % seal_every == 0 or offset == count - 1) and builder.sealable:
                sealed, builder = builder.seal()
                self.store.put(sealed.name, sealed.parts)


def promised(maker: JournalMaker, store: Store) -> list[Position]:
    """Return what can be gone back to by the table's word, from the records and the listing of names alone."""
    catalog = Catalog(store, "v1")
    levels = catalog.levels()
    if 0 not in levels:
        return []
    stored = levels[0][-1].last
    times = {position: time_ns for position, time_ns, _ in maker.records}
    now_ns = times[stored]
    good = moments(maker, stored)
    kept = {position for position in good if now_ns - times[position] <= TABLE.any_write_ns}
    kept |= {
        position
        for position, time_ns, told in maker.records
        if told.kind == Kind.BOOKMARK and position in set(good) and now_ns - time_ns <= BOOKMARKS_NS
    }
    for level in (1, 2, 3):
        kept |= {name.last for name in levels.get(level, []) if now_ns - times[name.last] <= TABLE.steps[level - 1].keep_ns}
    kept |= {one.position for one in pins(store, "v1")}
    return sorted(kept)


def check(maker: JournalMaker, store: Store, data) -> None:
    """Restore what is promised, a part of it chosen at random, and compare."""
    wanted = promised(maker, store)
    catalog = Catalog(store, "v1")
    for position in wanted:
        assert catalog.cover(position)[1] == position, f"{position} is promised and can't be restored"
    for position in data.draw(st.sets(st.sampled_from(wanted), max_size=4)) if wanted else ():
        assert whole(catalog.image(position)) == oracle(maker, position)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32), st.data())
def test_nothing_that_is_promised_is_ever_lost(seed: int, data) -> None:
    """Store, pin, fold and expire in turns, each of two workers killed anywhere."""
    maker = long_journal(seed, 300)
    store = open_store("memory:///")
    mortal = MortalStore(store)
    workers = [Upkeep(mortal, "v1", Policy(TABLE, BOOKMARKS_NS, codec="snappy")) for _ in range(2)]
    stored = 0
    while stored < len(maker.messages):
        stored = min(len(maker.messages), stored + data.draw(st.integers(1, 40)))
        Persisting(maker, store).store_until(stored, data.draw(st.integers(1, 6)))
        wanted = promised(maker, store)
        if wanted and data.draw(st.integers(0, 3)) == 0:
            pin(store, "v1", data.draw(st.sampled_from(wanted)), "kept")
        number = data.draw(st.integers(0, 1))
        mortal.calls_left, mortal.after = data.draw(st.one_of(st.none(), st.integers(0, 12))), data.draw(st.booleans())
        try:
            workers[number].run_once()
        except KilledError:
            workers[number] = Upkeep(mortal, "v1", Policy(TABLE, BOOKMARKS_NS, codec="snappy"))
        mortal.calls_left = None
        for one in [one for one in store.list("v1/leases/") if "condemned" in one.name]:
            store.delete(one.name)  # as the next one would, in time
        check(maker, store, data)
    workers[0].run_once()
    check(maker, store, data)


def test_history_becomes_coarser_and_ends() -> None:
    """Long after: no more segments than the table has steps, the snapshot holds what is older, and the newest segment stays."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(600):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    upkeep = Upkeep(store, "v1", Policy(TABLE))
    for count in range(50, 602, 50):
        Persisting(maker, store).store_until(count, 2)
        upkeep.run_once()
    levels = Catalog(store, "v1").levels()
    assert 1 <= len(levels[4]) <= 3
    assert len(levels[0]) <= 20 / 2 + 5
    assert [len(levels[level]) <= limit for level, limit in ((1, 40 / 5 + 4), (2, 70 / 12 + 4), (3, 100 / 25 + 4))] == [True] * 3
    first = min(name.last for names in levels.values() for name in names)
    catalog = Catalog(store, "v1")
    assert whole(catalog.image(first)) == oracle(maker, first)
    assert not store.list("v1/leases/")


def test_what_is_leased_stays_until_it_is_let_go() -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(200):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    upkeep = Upkeep(store, "v1", Policy(TABLE))
    Persisting(maker, store).store_until(20, 2)
    catalog = Catalog(store, "v1")
    position = catalog.levels()[0][-1].last
    names, _ = catalog.cover(position)
    image = catalog.image(position)
    with Lease(store, "v1", names, "a test"):
        Persisting(maker, store).store_until(200, 2)
        upkeep.run_once()
        assert set(names) <= set(Catalog(store, "v1").levels()[0])
        assert whole(image) == oracle(maker, position)
    upkeep.run_once()
    assert not set(names) & set(Catalog(store, "v1").levels()[0])
    with pytest.raises(RecoveryError), Lease(store, "v1", names, "too late"):
        pass
    assert not store.list("v1/leases/")


def test_a_table_with_fewer_steps_ends_what_the_former_one_made() -> None:
    """Levels that the new table does not name are folded into its snapshots, and go."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(900):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    upkeep = Upkeep(store, "v1", Policy(TABLE))
    for count in range(50, 302, 50):
        Persisting(maker, store).store_until(count, 2)
        upkeep.run_once()
    assert Catalog(store, "v1").levels().keys() > {2, 3}
    upkeep = Upkeep(store, "v1", Policy(RetentionTable(20 * STEP_NS, (Step(5 * STEP_NS, 40 * STEP_NS),))))
    for count in range(320, 902, 20):
        Persisting(maker, store).store_until(count, 2)
        for _ in range(3):
            upkeep.run_once()
        levels = Catalog(store, "v1").levels()
        last = levels[0][-1].last
        assert whole(Catalog(store, "v1").image(last)) == oracle(maker, last)
    assert set(levels) == {0, 1, 4}
    assert len(levels[1]) <= 40 / 5 + 8


def test_a_bookmark_inside_a_gap_becomes_no_end_of_a_fold() -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"), write(0, b"a" * 64))
    gap = maker.last.next()
    maker.batch(mark(Kind.GAP_BEGIN, reason="overflow"))
    maker.batch(mark(Kind.BOOKMARK, label="inside"))
    inside = maker.last
    maker.batch(write(64, b"b" * 64))
    maker.batch(mark(Kind.SYNC_END, closes=str(gap)))
    maker.batch(mark(Kind.BOOKMARK, label="behind"))
    behind = maker.last
    for number in range(200):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    upkeep = Upkeep(store, "v1", Policy(TABLE, 10**15))
    Persisting(maker, store).store_until(len(maker.messages), 2)
    for _ in range(4):
        upkeep.run_once()
    ends = {name.last for level, names in Catalog(store, "v1").levels().items() if level for name in names}
    assert behind in ends and inside not in ends


def test_bookmarks_go_when_their_time_is_over() -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"), write(0, b"a" * 64))
    maker.batch(mark(Kind.BOOKMARK, label="x"))
    bookmarked = maker.last
    for number in range(400):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    upkeep = Upkeep(store, "v1", Policy(TABLE, BOOKMARKS_NS))
    for count in range(20, 404, 20):
        Persisting(maker, store).store_until(min(count, len(maker.messages)), 2)
        upkeep.run_once()
        kept = Catalog(store, "v1").cover(bookmarked)[1] == bookmarked
        if count * STEP_NS < BOOKMARKS_NS:
            assert kept
    assert not kept


def test_what_goes_goes_from_its_end() -> None:
    """A kill in the middle leaves only what can be reached."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(300):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    deleted: list[Position] = []
    watched = MortalStore(store)
    watched.delete = lambda name: (deleted.append(found.last) if (found := SegmentName.parse(name)) else None, store.delete(name))[1]
    upkeep = Upkeep(watched, "v1", Policy(TABLE))
    Persisting(maker, store).store_until(len(maker.messages), 2)
    catalog = Catalog(store, "v1")
    steps = 0
    plain = watched.delete

    def delete(name: str) -> None:
        nonlocal steps
        plain(name)
        if SegmentName.parse(name) is not None:
            catalog.refresh()
            for one in catalog.levels().get(0, []):
                assert catalog.cover(one.last)[1] == one.last, f"{one} stays and can't be reached"
            steps += 1

    watched.delete = delete
    upkeep.run_once()
    assert steps > 10


def test_beyond_the_limit_the_finest_and_oldest_goes_first() -> None:
    maker = JournalMaker(codec="none")
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(300):
        maker.batch(write(number % 64 * 64, bytes([number % 250 + 1]) * 64))
    store = open_store("memory:///")
    table = RetentionTable(10**15, (Step(5 * STEP_NS, 10**15), Step(50 * STEP_NS, 10**15)))
    Persisting(maker, store).store_until(300, 4)
    Upkeep(store, "v1", Policy(table)).run_once()
    before = sum(one.size_bytes for one in store.list("v1/"))
    position = Catalog(store, "v1").levels()[0][-1].last
    for limit in (before // 2, before // 4, before // 8, 1):
        upkeep = Upkeep(store, "v1", Policy(table, bytes_max=limit))
        for _ in range(8):
            upkeep.run_once()
        levels = Catalog(store, "v1").levels()
        held = sum(len(names) for level, names in levels.items() if level > 1)  # what is not folded further yet can't be spared
        assert sum(one.size_bytes for one in store.list("v1/")) <= limit or held <= 2
        assert whole(Catalog(store, "v1").image(position)) == oracle(maker, position)
