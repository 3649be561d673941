"""The chain: what of a journal is kept, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from history.chain import JOURNAL_EXPIRED, JOURNAL_RECREATED, Chain, closing_name
from history.segment import StoredGap
from stream.codec import unpack
from stream.errors import IntegrityError
from stream.journal import JournalBatch, JournalGap, JournalState
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, mark, seen, write


def chain_of(maker: JournalMaker, through: int | None = None) -> Chain:
    """Return a chain that accepted the first messages of a journal."""
    chain = Chain(maker.volume, ZERO, DIGEST_START)
    for offset, entry in enumerate(maker.entries[:through]):
        chain.accept(entry, offset)
    return chain


@pytest.fixture
def maker() -> JournalMaker:
    made = JournalMaker()
    made.fence()
    made.batch(write(0, b"one"), write(4, b"two"))
    made.batch(write(8, b"three"), write(16, b"four"))
    return made


def test_duplicates_are_dropped(maker: JournalMaker) -> None:
    chain = chain_of(maker)
    assert chain.accept(maker.entries[1], 3) == []
    assert (chain.position, chain.digest) == (maker.last, maker.digest)


def test_an_overlap_is_cut_by_position(maker: JournalMaker) -> None:
    """The same four records joined into one message, seen behind the first two."""
    whole = JournalMaker()
    whole.fence()
    whole.batch(*(told for _, _, told in maker.records))
    chain = chain_of(maker, 2)
    entry = replace(whole.entries[1], records=replace(whole.entries[1].records, ages_ns=[0, 10**6, 2 * 10**6, 3 * 10**6]))
    (kept,) = chain.accept(entry, 2)
    assert isinstance(kept, JournalBatch)
    assert (kept.follows, kept.digest_before) == (Position(1, 2), maker.entries[1].state.digest)
    assert seen(unpack(kept)) == maker.records[2:]


def test_an_overlap_with_other_bytes_is_refused(maker: JournalMaker) -> None:
    other = JournalMaker()
    other.fence()
    other.batch(write(0, b"ONE"), write(4, b"two"), write(8, b"three"))
    with pytest.raises(IntegrityError, match="does not continue"):
        chain_of(maker, 2).accept(other.entries[1], 2)


def test_a_hole_is_refused(maker: JournalMaker) -> None:
    chain = chain_of(maker, 1)
    with pytest.raises(IntegrityError, match="does not continue") as caught:
        chain.accept(maker.entries[2], 2)
    assert caught.value.facts["kafka_offset"] == 2
    assert caught.value.facts["topic"] == "ho.v1.journal"


def test_a_batch_that_says_it_follows_another_position_is_refused(maker: JournalMaker) -> None:
    with pytest.raises(IntegrityError, match="does not continue"):
        chain_of(maker, 2).accept(replace(maker.entries[2], follows=Position(1, 1)), 2)


def test_a_worker_whose_fence_was_deleted_counts_all_the_same(maker: JournalMaker) -> None:
    """Retention deleted the fences; the one that wrote last is known by what it wrote."""
    chain = Chain("v1", ZERO, DIGEST_START)
    assert chain.accept(replace(maker.entries[1], writer=70), 71)
    assert chain.accept(replace(maker.entries[2], writer=60), 72) == []
    assert (chain.fence, chain.stale) == (70, 1)


def test_a_worker_that_lost_the_volume_is_dropped(maker: JournalMaker) -> None:
    late = maker.make(write(0, b"late"))
    maker.sequence, maker.digest, maker.last = 4, maker.entries[2].state.digest, maker.entries[2].state.position
    chain = chain_of(maker)
    maker.fence("w2")
    assert chain.accept(maker.entries[-1], 3) == []
    assert chain.accept(late, 4) == []
    assert chain.stale == 1
    maker.messages.append(maker.messages[-1])
    good = maker.make(write(0, b"good"))
    assert chain.accept(good, 5) == [good]


def test_a_foretold_hole_is_a_gap_until_a_sync_end_names_it(maker: JournalMaker) -> None:
    chain = chain_of(maker, 2)
    chain.foretell(JOURNAL_EXPIRED)
    maker.batch(write(0, b"x"))
    gap, kept = chain.accept(maker.entries[3], 3)
    assert isinstance(gap, StoredGap)
    assert (gap.position, gap.reason) == (Position(1, 2), JOURNAL_EXPIRED)
    assert kept == maker.entries[3]
    assert [one.position for one in chain.own_gaps] == [Position(1, 2)] == [one.position for one in chain.open_gaps]
    maker.batch(mark(Kind.SYNC_END, closes=f"{Position(1, 1)}"))
    chain.accept(maker.entries[4], 4)
    assert chain.own_gaps
    maker.batch(mark(Kind.SYNC_END, closes=f"{Position(1, 9)},{closing_name(chain.own_gaps[0])}"))
    chain.accept(maker.entries[5], 5)
    assert chain.open_gaps == ()


def test_a_copy_that_somebody_else_asked_for_at_the_same_position_closes_no_hole(maker: JournalMaker) -> None:
    """Its beginning may be among what was lost: a target stood there as well, and lost the same messages once before."""
    chain = chain_of(maker, 2)
    chain.foretell(JOURNAL_EXPIRED)
    maker.batch(write(0, b"the second half of a copy"), mark(Kind.SYNC_END, closes=str(Position(1, 2))))
    chain.accept(maker.entries[3], 3)
    assert [gap.position for gap in chain.open_gaps] == [Position(1, 2)]


def test_what_was_foretold_and_did_not_happen_is_no_gap(maker: JournalMaker) -> None:
    chain = chain_of(maker, 2)
    chain.foretell(JOURNAL_EXPIRED)
    assert chain.accept(maker.entries[2], 9) == [maker.entries[2]]
    assert chain.open_gaps == ()


def test_a_topic_made_anew_is_a_gap_whatever_it_holds(maker: JournalMaker) -> None:
    chain = chain_of(maker, 2)
    chain.foretell(JOURNAL_RECREATED, certain=True)
    gap, _ = chain.accept(maker.entries[2], 1)
    assert gap.reason == JOURNAL_RECREATED


def test_behind_a_journal_gap_the_history_may_stand_elsewhere(maker: JournalMaker) -> None:
    chain = chain_of(maker, 2)
    state = JournalState("writes-id", 9, Position(1, 4), b"claim001", maker.digest, ())
    (gap,) = chain.accept(JournalGap("v1", 0, "journal_lost", "all", 5, state), 7)
    assert (gap.position, gap.reason, gap.kafka_offset) == (Position(1, 2), "journal_lost", 7)
    maker.batch(write(0, b"x"))
    assert chain.accept(maker.entries[3], 8) == [maker.entries[3]]
    with pytest.raises(IntegrityError):
        maker.make(write(0, b"not there"))
        chain.accept(maker.make(write(0, b"y")), 9)


def test_a_message_of_another_volume_is_refused(maker: JournalMaker) -> None:
    other = JournalMaker(volume="v2")
    other.fence()
    with pytest.raises(IntegrityError, match="another volume"):
        chain_of(maker).accept(other.entries[0], 3)
