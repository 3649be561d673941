"""Opening points over a store and a journal in memory: the right bytes, from where they are, and what is said when they can't be had."""

from __future__ import annotations

import random

import pytest

from history.doubts import Doubt, doubt
from history.reader import list_segments
from history.store import open_store
from recovery.opening import OpenedPoint, Opener
from recovery.point import AtPosition, AtTime, Latest
from stream.config import Config
from stream.errors import ConfigError, IntegrityError, RecoveryError
from stream.extent import Extent
from stream.position import Position
from tests.history_maker import damage
from tests.recovery_bench import SIZE_BYTES, RecoveryBench, busy_history


def content(point: OpenedPoint) -> bytes:
    into = bytearray(point.image.size_bytes)
    point.image.read(0, memoryview(into))
    return bytes(into)


@pytest.fixture
def bench() -> RecoveryBench:
    maker = busy_history(7, 40)
    return RecoveryBench(maker, len(maker.messages) * 2 // 3)


def test_points_of_the_store_and_of_the_tail_have_the_bytes_of_their_moment(bench: RecoveryBench) -> None:
    records = bench.maker.records
    with bench.opener() as opener:
        for at in random.Random(1).sample(range(3, len(records)), 25):
            if records[at][2].more:
                continue
            with opener.open(AtPosition(records[at][0])) as point:
                assert (point.position, point.capture_time_ns) == records[at][:2]
                assert content(point) == bench.oracle(point.position)
        with opener.open("latest") as point:
            assert point.position == records[-1][0]
            assert content(point) == bench.oracle(point.position)
            assert point.note is None


def test_the_tail_is_read_from_where_the_store_ends(bench: RecoveryBench) -> None:
    with bench.opener() as opener, opener.open("latest"):
        pass
    assert bench.journal.read_from == [len(bench.maker.messages) * 2 // 3]
    assert bench.journal.opened == 0, "the journal is let go of once it was read"


def test_the_store_alone_is_asked_for_what_it_has(bench: RecoveryBench) -> None:
    bench.journal.away = True
    with bench.opener() as opener, opener.open(AtPosition(Position(1, 3))) as point:
        assert point.note is None
        assert content(point) == bench.oracle(Position(1, 3))
    assert bench.journal.opened == 0


def test_without_kafka_the_newest_of_the_store_is_opened_and_it_is_said(bench: RecoveryBench) -> None:
    bench.journal.away = True
    last = list_segments(bench.store, "v1")[-1].last
    with bench.opener() as opener, opener.open("latest") as point:
        assert point.position == last
        assert point.note is not None and "may be missing" in point.note


def test_bookmarks_and_times_are_found(bench: RecoveryBench) -> None:
    marked = {(told.attributes or {}).get("label"): (position, time_ns) for position, time_ns, told in bench.maker.records}
    with bench.opener() as opener:
        for label in ("b0", "b15", "b35"):
            position, time_ns = marked[label]
            with opener.open(label) as point:
                assert (point.position, point.capture_time_ns) == (position, time_ns)
            with opener.open(AtTime(time_ns)) as point:
                assert point.position == position
        with pytest.raises(RecoveryError, match="no bookmark 'b99'") as caught:
            opener.open("b99")
        assert "b35" in caught.value.hint


def test_a_lease_stands_while_a_point_is_open(bench: RecoveryBench) -> None:
    with bench.opener() as opener:
        point = opener.open("latest", "a test")
        (lease,) = bench.store.list("v1/leases/")
        told = bench.store.get(lease.name)
        assert b"a test" in told and str(point.plan.parts[0].name).encode() in told
        point.close()
        point.close()
        assert bench.store.list("v1/leases/") == []


def test_a_listing_that_retention_made_old_is_read_again(bench: RecoveryBench) -> None:
    with bench.opener() as opener:
        opener.planner()
        for name in list_segments(bench.store, "v1"):
            bench.store.delete(str(name))
        with opener.open(Latest()) as point:
            assert point.position == bench.maker.records[-1][0]
            assert content(point) == bench.oracle(point.position)


def test_what_comes_later_is_seen_after_a_refresh(bench: RecoveryBench) -> None:
    with bench.opener() as opener:
        before = opener.open("latest")
        bench.maker.batch(*[one for _, _, one in bench.maker.records[5:8] if not one.more])
        opener.refresh()
        with opener.open("latest") as after:
            assert after.position == bench.maker.records[-1][0] > before.position
            assert content(after) == bench.oracle(after.position)
        assert content(before) == bench.oracle(before.position)
        before.close()


def test_a_damaged_block_is_told_with_points_that_do_not_need_it(bench: RecoveryBench) -> None:
    first, second = list_segments(bench.store, "v1")[:2]
    size = next(one.size_bytes for one in bench.store.list("v1/L0/") if one.name == str(second))
    damage(bench.store, str(second), size - 100)
    with bench.opener() as opener, opener.open(AtPosition(second.last)) as point:
        with pytest.raises(IntegrityError) as caught:
            content(point)
        told = point.explain(caught.value)
        assert told.facts["path"] == str(second)
        assert str(first.last) in told.hint
        with opener.open(AtPosition(told.facts["before"].position)) as good:
            assert content(good) == bench.oracle(good.position)


def test_nothing_stored_and_nothing_in_the_journal() -> None:
    bench = RecoveryBench(busy_history(1, 1), 0)
    bench.journal.away = True
    with bench.opener() as opener, pytest.raises(RecoveryError, match="Nothing is stored of v1"):
        opener.open("latest")
    with pytest.raises(ConfigError):
        Opener(Config(), "v1")


def test_all_of_it_from_the_journal_alone() -> None:
    bench = RecoveryBench(busy_history(3, 20), 0, store=open_store("memory:///"))
    with bench.opener() as opener, opener.open("latest") as point:
        assert content(point) == bench.oracle(point.position)
        assert point.image.size_bytes == SIZE_BYTES
        assert bench.store.list("v1/leases/") == []
        assert point.timeline.latest == point.moment


def test_what_is_in_doubt_is_not_offered(bench: RecoveryBench) -> None:
    """A verification found the store to be wrong there; around it all is offered."""
    first, second = list_segments(bench.store, "v1")[:2]
    doubt(bench.store, "v1", Doubt(first.last, second.first, second.last, Extent(0, 4096)))
    with bench.opener() as opener:
        with pytest.raises(RecoveryError, match="verification") as caught:
            opener.open(AtPosition(second.first))
        assert [caught.value.facts[side].position for side in ("before", "after")] == [first.last, second.last]
        for position in (first.last, second.last):
            with opener.open(AtPosition(position)) as point:
                assert content(point) == bench.oracle(position)
        (gap,) = [gap for gap in opener.timeline().gaps if gap.reason == "in_doubt"]
        assert (gap.after, gap.until, gap.missing) == (first.last, second.last, "bytes 0 to 4096 as the volume had them")
