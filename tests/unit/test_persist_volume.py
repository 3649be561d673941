"""Persist over a journal and a store that are simulated: what is sealed when, what a restart, a fault or a lost message leads to.

Nothing here waits: the journal calls `when_dry` whenever it has nothing more to give, and the test decides there what happens next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from history.store import open_store
from stream.errors import ConfigError, RetryError
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import JournalMaker, mark, write
from tests.persist_parts import SEGMENT_AGE_S, SEGMENT_BYTES, Bench, Faulty


@pytest.fixture
def maker() -> JournalMaker:
    return JournalMaker(codec="none")


def test_what_is_there_is_stored_when_it_is_told_to_stop(maker: JournalMaker) -> None:
    maker.batch(mark(Kind.EPOCH_START, clean="true", first="true"), write(0, b"a"))
    maker.batch(write(0, b"b"))
    bench = Bench(maker)
    facts = bench.run()
    assert bench.records() == maker.records
    assert facts["persisted"] == str(maker.last)
    assert (facts["segments"], facts["error"]) == (1, None)
    assert facts["segment_bytes"] == bench.store.list()[0].size_bytes


def test_a_segment_is_sealed_at_its_size(maker: JournalMaker) -> None:
    for number in range(20):
        maker.batch(write(0, bytes([number]) * 200_000))
    bench = Bench(maker)
    bench.run()
    assert bench.records() == maker.records
    sizes = [found.size_bytes for found in bench.store.list()]
    assert len(sizes) == 4
    assert all(SEGMENT_BYTES <= size < SEGMENT_BYTES + 250_000 for size in sizes[:3])


def test_a_segment_is_sealed_at_its_age_and_not_before(maker: JournalMaker) -> None:
    maker.batch(write(0, b"a"))
    bench = Bench(maker)
    steps = iter([SEGMENT_AGE_S - 1, SEGMENT_AGE_S - 0.1, SEGMENT_AGE_S, 99.0])
    stored = []

    def when_dry() -> None:
        stored.append(len(bench.store.list()))
        bench.now_s = next(steps)
        if bench.now_s == 99.0:
            bench.stop.set()

    bench.run(when_dry)
    assert stored == [0, 0, 0, 1]


def test_nothing_is_sealed_inside_a_split_write(maker: JournalMaker) -> None:
    """The whole writes before it are stored at their age; the fragments wait for the last of them, over a restart too."""
    maker.batch(write(0, b"a"), write(4096, b"half", more=True))
    bench = Bench(maker)
    bench.run()
    assert [header.name.last for header in bench.headers()] == [Position(1, 1)]
    bench.persister = bench.new()
    maker.batch(write(4100, b"whole"), write(0, b"b"))
    bench.run()
    assert [header.name.first for header in bench.headers()] == [Position(1, 1), Position(1, 2)]
    assert bench.records() == maker.records


def test_half_a_write_larger_than_a_segment_is_held(maker: JournalMaker) -> None:
    for number in range(8):
        maker.batch(write(number << 18, bytes(256 << 10), more=number < 7))
    bench = Bench(maker)
    bench.run()
    (header,) = bench.headers()
    assert header.records == 8


def test_a_restart_resumes_from_the_listing(maker: JournalMaker) -> None:
    bench = Bench(maker)
    for _ in range(5):
        maker.batch(write(0, b"x"), write(1, b"y"))
        bench.persister = bench.new()
        bench.run()
    assert bench.records() == maker.records
    assert len(bench.store.list()) == 5
    assert bench.journal.read == len(maker.messages), "a message was read again"
    coverages = [header.coverage for header in bench.headers()]
    for before, after in pairwise(coverages):
        assert before.digest_after == after.digest_before


def test_two_at_once_are_harmless(maker: JournalMaker) -> None:
    """One that lost the volume goes on for a while, sealing at other places."""
    bench = Bench(maker)
    other = Bench(maker, bench.store)
    maker.batch(write(0, b"1"))
    bench.run()

    def more() -> None:
        maker.batch(write(0, b"2"))
        maker.batch(write(0, b"3"))
        other.run()
        maker.batch(write(0, b"4"))
        bench.journal.when_dry = bench.stop.set

    bench.persister = bench.new()
    bench.run(more)
    other.persister = other.new()
    other.run()
    assert len(bench.store.list()) == 3
    assert bench.records() == maker.records
    assert bench.persister.facts()["error"] is None


def test_one_segment_stored_twice_is_one(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    first, second = Bench(maker), Bench(maker)
    second.store = first.store
    second.persister = second.new()

    def other_first() -> None:
        second.run()
        first.stop.set()

    facts = first.run(other_first)
    assert facts["error"] is None
    assert len(first.store.list()) == 1


def test_a_store_that_is_full_is_told_and_tried_again(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    full = RetryError("The store is full", hint="Make space.")
    told = []
    store = Faulty(open_store("memory:///"), [full] * 3)
    bench = Bench(maker, store)

    def when_dry() -> None:
        if store.puts:
            told.append(bench.persister.facts()["error"])
            bench.stop.set()
        bench.now_s += SEGMENT_AGE_S

    original = store.put

    def put(name: str, parts: Sequence[bytes]) -> bool:
        told.append(bench.persister.facts()["error"])
        return original(name, parts)

    store.put = put
    facts = bench.run(when_dry)
    assert told == [None, "The store is full", "The store is full", "The store is full", None]
    assert (facts["error"], facts["segments"]) == (None, 1)
    assert bench.records() == maker.records


def test_told_to_stop_while_the_store_is_full(maker: JournalMaker) -> None:
    """What was sealed for it is tried once more as it is, and never sealed a second time."""
    maker.batch(write(0, b"a"), write(4096, b"half", more=True))
    store = Faulty(open_store("memory:///"), [RetryError("The store is full")])
    bench = Bench(maker, store)

    def when_dry() -> None:
        bench.now_s += SEGMENT_AGE_S
        bench.journal.when_dry = bench.stop.set

    original = store.put

    def put(name: str, parts: Sequence[bytes]) -> bool:
        bench.stop.set()
        return original(name, parts)

    store.put = put
    bench.run(when_dry)
    assert [header.name.last for header in bench.headers()] == [Position(1, 1)]
    maker.batch(write(4100, b"whole"))
    bench.persister = bench.new()
    bench.run()
    assert bench.records() == maker.records


def test_a_store_that_refuses_is_looked_at_again(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    store = Faulty(open_store("memory:///"), [ConfigError("The store refuses access", hint="Rights.")] * 2)
    bench = Bench(maker, store)

    def when_dry() -> None:
        bench.now_s += SEGMENT_AGE_S
        if store.puts:
            bench.stop.set()

    facts = bench.run(when_dry)
    assert (facts["error"], facts["segments"]) == (None, 1)
    assert bench.records() == maker.records


def test_a_broker_that_went_away_costs_nothing(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    maker.batch(write(0, b"2"))
    bench = Bench(maker)
    bench.journal.faults = [RetryError("no broker"), RetryError("no broker")]
    assert bench.run()["error"] is None
    assert bench.records() == maker.records


def test_a_stale_worker_is_dropped(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    late = maker.make(write(0, b"late"))
    maker.records.pop()
    maker.sequence, maker.digest, maker.last = 1, maker.entries[1].state.digest, maker.entries[1].state.position
    maker.fence("w2")
    maker.repeat(late)
    maker.batch(write(0, b"2"))
    bench = Bench(maker)
    assert bench.run()["error"] is None
    assert bench.records() == maker.records
    assert bench.headers()[0].origin.fence == 2


def test_a_damaged_message_parks_the_volume(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    maker.batch(write(0, b"2"))
    value = bytearray(maker.messages[2].value)
    value[40] ^= 1
    maker.messages[2] = replace(maker.messages[2], value=bytes(value))
    bench = Bench(maker)
    facts = bench.run()
    assert "checksum" in facts["error"]
    assert facts["error_hint"]
    assert bench.store.list() == []


def test_a_missing_message_parks_the_volume(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    maker.make(write(0, b"lost"))
    maker.batch(write(0, b"2"))
    bench = Bench(maker)
    assert "does not continue" in bench.run()["error"]


def test_a_damaged_store_parks_the_volume(maker: JournalMaker) -> None:
    maker.batch(write(0, b"1"))
    bench = Bench(maker)
    bench.run()
    (name,) = [found.name for found in bench.store.list()]
    data = bytearray(bench.store.get(name))
    data[-40] ^= 1
    data[100] ^= 1
    bench.store.delete(name)
    bench.store.put(name, [bytes(data)])
    bench.persister = bench.new()
    assert "digest" in bench.run()["error"]
    assert bench.store.get(name) == bytes(data)
