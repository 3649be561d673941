"""The journal's tail as segments: joined to the store's, cut into pieces, proved, and never believed over what the journal lost."""

from __future__ import annotations

import pytest

from history.chain import JOURNAL_EXPIRED, closing_name
from history.reader import SegmentReader, list_segments
from recovery import tail as tail_module
from recovery.opening import Opener
from recovery.point import Latest
from recovery.tail import ScratchStore, Tail
from stream.config import Config, KafkaConfig
from stream.errors import IntegrityError, ResyncError, RetryError
from stream.journal import OpenGap
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.recovery_bench import RecoveryBench, busy_history


@pytest.fixture
def bench() -> RecoveryBench:
    maker = busy_history(9, 30)
    return RecoveryBench(maker, len(maker.messages) // 2)


def newest(bench: RecoveryBench):
    return SegmentReader(bench.store, list_segments(bench.store, "v1")[-1]).header


def test_a_long_tail_is_cut_into_segments_that_join(bench: RecoveryBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "SEGMENT_BYTES", 200_000)
    tail = Tail("v1", newest(bench))
    tail.read(bench.journal.open())
    names = tail.catalog.levels()[0]
    assert len(names) > 3
    reached, digest = newest(bench).name.last, newest(bench).coverage.digest_after
    for name in names:
        reader = tail.catalog.reader(name)
        reader.check()
        assert (reader.header.coverage.follows, reader.header.coverage.digest_before) == (reached, digest)
        reached, digest = name.last, reader.header.coverage.digest_after
    assert reached == bench.maker.records[-1][0]
    tail.close()


def test_it_goes_on_where_it_ended(bench: RecoveryBench) -> None:
    half, all_of_it = len(bench.maker.messages) // 2, len(bench.maker.messages)
    tail = Tail("v1", newest(bench))
    tail.read(bench.journal.open())
    bench.maker.batch(write(0, b"more"))
    tail.read(bench.journal.open())
    assert tail.catalog.levels()[0][-1].last == bench.maker.records[-1][0]
    assert bench.journal.read_from == [half, all_of_it]


def test_what_the_journal_lost_is_a_gap_until_it_was_copied(bench: RecoveryBench) -> None:
    stored = newest(bench).name.last
    bench.journal.low = len(bench.maker.messages) - 3
    with bench.opener() as opener:
        assert opener.plan(Latest()).position == stored
        found = opener.timeline()
        assert [(gap.reason, gap.after, gap.until) for gap in found.gaps if gap.reason != "first_copy"] == [
            ("journal_expired", stored, None)
        ]
    hole = OpenGap(stored, JOURNAL_EXPIRED, bench.maker.entries[bench.journal.low].records.capture_time_ns)
    bench.maker.batch(mark(Kind.SYNC_END, closes=closing_name(hole)))
    with bench.opener() as opener:
        assert opener.plan(Latest()).position == bench.maker.records[-1][0]


def test_a_topic_made_anew_does_not_continue_the_history(bench: RecoveryBench) -> None:
    bench.journal.id = "another-id"
    with bench.opener() as opener:
        assert opener.plan(Latest()).position == newest(bench).name.last


def test_a_damaged_message_is_told_and_the_store_is_not_passed_off_as_the_newest(bench: RecoveryBench) -> None:
    message = bench.maker.messages[-2]
    value = bytearray(message.value or b"")
    value[len(value) // 2] ^= 1
    bench.maker.messages[-2] = type(message)(message.topic, message.kafka_offset, None, bytes(value), {}, 0)
    with bench.opener() as opener:
        with pytest.raises(IntegrityError) as caught:
            opener.open("latest")
        assert caught.value.facts["kafka_offset"] == message.kafka_offset
        opener.open("b5").close()
        assert opener.note is not None


def test_a_journal_that_loses_what_is_read_is_told(bench: RecoveryBench) -> None:
    tail = Tail("v1", newest(bench))
    tail.read(bench.journal.open())
    bench.maker.batch(write(0, b"more"))
    bench.maker.batch(write(0, b"more"))
    bench.journal.low = len(bench.maker.messages) - 1
    with pytest.raises(ResyncError):
        tail.read(bench.journal.open())


def test_without_any_broker_it_says_so_at_once() -> None:
    with pytest.raises(RetryError, match="any known address"):
        tail_module.KafkaJournal(KafkaConfig(), "v1")
    with pytest.raises(RetryError, match="does not answer"):
        tail_module.KafkaJournal(KafkaConfig(bootstrap="127.0.0.1:9"), "v1")


def test_the_scratch_store_keeps_what_is_put_once() -> None:
    store = ScratchStore(None)
    assert store.put("v1/L0/a", [b"some", b"thing"])
    assert not store.put("v1/L0/a", [b"else"])
    assert store.put("v1/L0/b", [b"more"])
    assert store.get("v1/L0/a") == b"something"
    assert store.get_range("v1/L0/b", 1, 99) == b"ore"
    assert store.get_range("v1/L0/b", 9, 99) == b""
    assert [(one.name, one.size_bytes) for one in store.list("v1/")] == [("v1/L0/a", 9), ("v1/L0/b", 4)]
    store.delete("v1/L0/a")
    with pytest.raises(IntegrityError):
        store.get("v1/L0/a")
    store.close()


def test_an_empty_store_leaves_the_journal() -> None:
    maker = busy_history(2, 3)
    bench = RecoveryBench(maker, 0)
    opener = Opener(Config(), "v1", store=bench.store, journal=bench.journal.open)
    assert opener.plan(Latest()).position == maker.records[-1][0]
