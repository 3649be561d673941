"""Persist where the journal has holes: retention, topics made anew, ends that were lost."""

from __future__ import annotations

import copy

import pytest

from cx_consumers.persist import SILENCE_S
from history.chain import closing_name
from stream.journal import OpenGap
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import JournalMaker, mark, write
from tests.persist_parts import SEGMENT_AGE_S, Bench


@pytest.fixture
def maker() -> JournalMaker:
    return JournalMaker(codec="none")


def expire(bench: Bench, maker: JournalMaker) -> None:
    """Store two messages, then let the journal's retention delete the next two before they are read."""
    maker.batch(write(0, b"1"))
    bench.run()
    for data in (b"2", b"3", b"4"):
        maker.batch(write(0, data))
    bench.journal.low = 4
    bench.persister = bench.new()


def test_what_retention_deleted_unread_is_a_gap_in_the_history(maker: JournalMaker) -> None:
    bench = Bench(maker)
    expire(bench, maker)
    facts = bench.run()
    gap = OpenGap(Position(1, 1), "journal_expired", maker.records[3][1])
    assert "not continuous" in facts["error"]
    assert bench.asked == [gap]
    header = bench.headers()[-1]
    assert header.coverage.open_gaps == (gap,)
    assert [(one.position, one.reason) for one in header.gaps] == [(Position(1, 1), "journal_expired")]
    assert header.coverage.follows == Position(1, 3)
    assert bench.records() == [maker.records[0], maker.records[3]]


def test_a_gap_of_the_history_is_open_until_a_resync_closes_it(maker: JournalMaker) -> None:
    bench = Bench(maker)
    expire(bench, maker)
    bench.run()
    bench.asked.clear()
    bench.persister = bench.new()
    assert "not continuous" in bench.run()["error"]
    assert len(bench.asked) == 1, "asked again at a start"
    maker.batch(mark(Kind.SYNC_END, closes=closing_name(bench.asked[0])))
    assert bench.run()["error"] is None
    assert bench.headers()[-1].coverage.open_gaps == ()


def test_a_hole_is_asked_for_again_when_order_begins_a_gap(maker: JournalMaker) -> None:
    """What was to close it may be what the broker lost, and order's own copy names order's gaps alone."""
    bench = Bench(maker)
    expire(bench, maker)
    bench.run()
    assert bench.asked_again == []
    maker.gap("broker_lost_data")
    bench.run()
    ((hole, newest),) = bench.asked_again
    assert (hole, newest.reason) == (bench.asked[0], "broker_lost_data")


def test_retention_that_passes_while_reading(maker: JournalMaker) -> None:
    bench = Bench(maker)
    maker.batch(write(0, b"1"))

    def expire_now() -> None:
        for data in (b"2", b"3"):
            maker.batch(write(0, data))
        bench.journal.low = 3
        bench.journal.when_dry = bench.stop.set

    facts = bench.run(expire_now)
    assert "not continuous" in facts["error"]


def test_a_journal_made_anew_is_a_gap_and_is_followed(maker: JournalMaker) -> None:
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    maker.fence("w5")
    bench.run()
    bench.journal.id = "other-id"
    maker.messages.clear()
    maker.writer = -1
    maker.entries.clear()
    maker.batch(write(0, b"2"))
    bench.persister = bench.new()
    assert "made anew" in bench.run()["error"]
    assert [gap.reason for gap in bench.headers()[-1].gaps] == ["journal_recreated"]
    assert bench.headers()[-1].origin.topic_id == "other-id"
    assert bench.headers()[-1].origin.fence == 0
    assert bench.records() == maker.records


def test_a_journal_made_anew_while_it_is_read(maker: JournalMaker) -> None:
    """The reader goes on at its offset in the new topic; the chain does not fit, and the id tells why."""
    bench = Bench(maker)
    maker.batch(write(0, b"1"))

    def anew() -> None:
        bench.journal.id = "other-id"
        maker.messages.clear()
        maker.entries.clear()
        maker.writer, maker.epoch = -1, 2
        for data in (b"2", b"3", b"4"):
            maker.batch(write(0, data))
        bench.journal.when_dry = bench.stop.set

    facts = bench.run(anew)
    assert bench.headers()[-1].origin.topic_id == "other-id"
    assert facts["persisted"] == str(maker.last)


def test_a_journal_made_anew_in_silence(maker: JournalMaker) -> None:
    """The reader goes on at its offset in the new topic, where the old one's fence outdates every message: only the id tells."""
    bench = Bench(maker)
    for number in range(6):
        maker.fence(f"w{number}")
    maker.batch(write(0, b"1"))
    maker.batch(write(0, b"2"))
    collected = list(maker.records)

    def anew() -> None:
        bench.journal.id = "other-id"
        maker.messages.clear()
        maker.entries.clear()
        maker.writer, maker.epoch = -1, 2
        for number in range(10):
            maker.batch(write(0, bytes([number])))
        bench.journal.when_dry = waited

    def waited() -> None:
        assert bench.persister.facts()["error"] is None
        bench.now_s += SILENCE_S
        bench.journal.when_dry = bench.stop.set

    facts = bench.run(anew)
    assert "made anew" in facts["error"]
    assert bench.records()[: len(collected)] == collected, "what was read before is stored, though no segment was due"
    assert facts["persisted"] == str(maker.last)


def test_a_topic_that_is_the_same_after_a_silence_is_read_on(maker: JournalMaker) -> None:
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    reads = bench.journal.read

    def waited() -> None:
        bench.now_s += SILENCE_S
        bench.journal.when_dry = more

    def more() -> None:
        maker.batch(write(0, b"2"))
        bench.journal.when_dry = bench.stop.set

    assert bench.run(waited)["error"] is None
    assert bench.journal.read == reads + 3, "a message was read again"
    assert bench.records() == maker.records


def test_a_lost_end_takes_its_fence_with_it(maker: JournalMaker) -> None:
    """A fence above the log's end was lost with it: workers to come have lower ones, and are believed."""
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    kept = len(maker.messages)
    for number in range(5):
        maker.fence(f"w{number}")
    maker.batch(write(0, b"2"))
    bench.run()
    del maker.messages[kept:]

    def later() -> None:
        maker.fence("w9")
        maker.batch(write(0, b"3"))
        bench.journal.when_dry = bench.stop.set

    bench.persister = bench.new()
    assert bench.run(later)["persisted"] == str(maker.last)
    assert bench.records() == maker.records


def test_a_late_message_whose_successor_s_fence_was_deleted(maker: JournalMaker) -> None:
    """The first that is left is by a worker that had lost the volume; its successor's fence is gone, its next message is not."""
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    bench.run()
    late = copy.deepcopy(maker)
    late.make(write(0, b"2"))
    entry = late.make(write(0, b"3"))
    for data in (b"2", b"3"):
        maker.make(write(0, data))
    maker.fence("w2")
    maker.batch(write(0, b"4"))
    low = len(maker.messages)
    maker.repeat(entry)
    maker.batch(write(0, b"5"))
    bench.journal.low = low
    bench.persister = bench.new()
    facts = bench.run()
    assert facts["persisted"] == str(maker.last)
    assert {gap.reason for header in bench.headers() for gap in header.gaps} == {"journal_expired"}
    assert bench.records()[-1] == maker.records[-1]


def test_a_message_of_another_life_of_the_topic_is_dropped(maker: JournalMaker) -> None:
    """A worker that did not notice that the topic was made anew wrote them: their fence is none of this topic's."""
    made = JournalMaker(codec="none")
    made.batch(write(0, b"1"))
    foreign = [made.make(write(0, data)) for data in (b"2", b"3")]
    for entry in foreign:
        maker.repeat(entry)
    maker.batch(write(0, b"first"))
    bench = Bench(maker)
    assert bench.run()["error"] is None
    assert bench.records() == maker.records


def test_a_journal_that_lost_its_end_and_wrote_it_again(maker: JournalMaker) -> None:
    """The broker lost acknowledged messages; the same records come again, so nothing is missing."""
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    maker.batch(write(0, b"2"))
    bench.run()
    again = maker.messages.pop()
    bench.persister = bench.new()
    bench.run()
    maker.messages.append(again)
    maker.batch(write(0, b"3"))
    bench.persister = bench.new()
    assert bench.run()["error"] is None
    assert bench.records() == maker.records


def test_a_journal_gap_is_in_the_history(maker: JournalMaker) -> None:
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    maker.gap("retention")
    bench.run()
    maker.batch(write(0, b"2"))
    bench.persister = bench.new()
    assert bench.run()["error"] is None
    assert bench.asked == [], "the journal's own gaps are order's to ask for"
    first, second = bench.headers()
    assert [gap.reason for gap in first.gaps] == ["retention"]
    assert second.coverage.open_gaps_before == first.coverage.open_gaps


def test_a_restart_behind_a_gap_takes_what_stands_elsewhere(maker: JournalMaker) -> None:
    """The order worker lost its state: its gap says where it stands now, and is in the last segment before the restart."""
    bench = Bench(maker)
    maker.batch(write(0, b"1"))
    maker.sequence, maker.last, maker.digest = 7, Position(1, 7), bytes(range(16))
    maker.gap("journal_lost")
    bench.run()
    maker.batch(write(0, b"2"))
    bench.persister = bench.new()
    assert bench.run()["error"] is None
    assert bench.records() == maker.records


def test_another_segment_of_the_same_name_is_kept_and_told(maker: JournalMaker) -> None:
    other = JournalMaker(codec="none")
    other.batch(write(0, b"other"))
    maker.batch(write(0, b"ours."))
    bench, theirs = Bench(maker), Bench(other)

    def meanwhile() -> None:
        theirs.run()
        (found,) = theirs.store.list()
        bench.store.put(found.name, [theirs.store.get(found.name)])
        bench.now_s += SEGMENT_AGE_S
        bench.journal.when_dry = bench.stop.set

    facts = bench.run(meanwhile)
    assert "another segment of that name" in facts["error"]
    assert bench.records() == other.records
