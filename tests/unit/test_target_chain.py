"""The chain of a journal as the target follows it, message by message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cx_consumers.target_chain import AFTER_GAP, ANCHORED, ANEW, REBASED, RETENTION, ChainState, Step, gaps_after, step, with_own_gap
from stream.codec import decode_journal
from stream.errors import IntegrityError
from stream.position import ZERO, Position
from stream.record import Kind
from tests.journal_maker import JournalMaker, mark, write
from tests.target_script import Script, script

VOLUME_BYTES = 4096


def _steps(state: ChainState, made: JournalMaker, start: int = 0, volume: str = "v1") -> list[Step]:
    steps = []
    for message in made.messages[start:]:
        entry = decode_journal(message.value)
        steps.append(step(state, message.kafka_offset, entry, topic="ho.v1.journal", volume=volume))
        state = steps[-1].state
    return steps


def _end(made: JournalMaker, state: ChainState | None = None, start: int = 0) -> ChainState:
    return _steps(state or ChainState(), made, start)[-1].state


def _made() -> Script:
    return script(VOLUME_BYTES, 1)


def test_first_copy_is_open_then_closed_and_not_counted() -> None:
    made = script(VOLUME_BYTES, 1)
    wholes = [one.state.whole for one in _steps(ChainState(), made.maker)]
    assert wholes[-1] and not any(wholes[:-1])
    assert _end(made.maker).gaps == 0
    assert _end(made.maker).size_bytes == VOLUME_BYTES
    assert _end(made.maker).anchor == ANCHORED


def test_gaps_are_counted_once() -> None:
    made = _made()
    made.gap()
    made.epoch(clean=True)
    made.epoch(clean=False)
    made.maker.gap("broker_lost_data")
    state = _end(made.maker)
    assert state.gaps == 3
    assert [gap.reason for gap in state.open_gaps] == ["broker_lost_data"]


def test_a_duplicate_changes_nothing_but_the_offset() -> None:
    made = _made()
    made.batch()
    before = _end(made.maker)
    made.duplicate()
    last = _steps(ChainState(), made.maker)[-1]
    assert last.dropped == "duplicate"
    assert last.state == replace(before, kafka_offset=before.kafka_offset + 1)


def test_a_stale_writer_changes_nothing_but_the_offset() -> None:
    made = _made()
    late = made.fork()
    made.maker.fence("w2")
    before = _end(made.maker)
    made.maker.repeat(late.make(made.told()))
    last = _steps(ChainState(), made.maker)[-1]
    assert last.dropped == "stale"
    assert last.state == replace(before, kafka_offset=before.kafka_offset + 1)


def test_a_writer_is_believed_whose_fence_was_deleted() -> None:
    made = _made()
    made.maker.fence("w2")
    made.batch()
    state = _end(made.maker)
    assert state.fence == made.maker.writer > 0


def test_an_overlap_is_cut_and_its_digest_proved() -> None:
    made = _made()
    made.overlap()
    last = _steps(ChainState(), made.maker)[-1]
    cut = last.unpack("t")
    assert cut.first == last.joined.position.next()
    assert cut.last == last.state.position == made.maker.last


def test_an_overlap_with_other_records_is_refused() -> None:
    made = _made()
    other = made.fork()
    made.maker.batch(write(0, b"one"))
    made.maker.repeat(other.make(write(0, b"two"), write(3, b"three")))
    last = _steps(ChainState(), made.maker)[-1]
    with pytest.raises(IntegrityError, match="overlaps what came before"):
        last.unpack("t")


def test_a_missing_batch_is_refused_with_its_place() -> None:
    made = _made()
    made.maker.make(made.told())
    made.batch()
    with pytest.raises(IntegrityError, match=r"Records are missing .* ho.v1.journal at kafka_offset") as caught:
        _steps(ChainState(), made.maker)
    assert caught.value.facts["kafka_offset"] == len(made.maker.messages) - 1


def test_a_forked_digest_is_refused() -> None:
    made = _made()
    made.maker.digest = bytes(16)
    made.batch()
    with pytest.raises(IntegrityError, match="digest forks"):
        _steps(ChainState(), made.maker)


def test_a_skipped_sequence_is_refused_but_after_a_journal_gap() -> None:
    made = _made()
    made.maker.sequence += 5
    made.batch()
    with pytest.raises(IntegrityError, match="skips records"):
        _steps(ChainState(), made.maker)
    made = _made()
    made.maker.gap("broker_lost_data")
    assert _end(made.maker).anchor == AFTER_GAP
    made.maker.sequence += 5
    made.batch()
    assert _end(made.maker).position == made.maker.last


def test_a_newer_epoch_begins_with_its_epoch_start() -> None:
    made = _made()
    made.maker.epoch += 1
    made.batch()
    with pytest.raises(IntegrityError, match="skips records"):
        _steps(ChainState(), made.maker)


def test_another_volumes_message_is_refused() -> None:
    with pytest.raises(IntegrityError, match="of volume v1"):
        _steps(ChainState(), _made().maker, volume="v2")


def test_a_journal_that_began_before_the_target_is_a_gap_of_its_own() -> None:
    made = _made()
    made.batch()
    made.batch()
    start = len(made.maker.messages) - 1
    state = _end(made.maker, ChainState(kafka_offset=start), start)
    assert [(gap.position, gap.reason) for gap in state.own_gaps] == [(ZERO, RETENTION)]
    assert not state.whole
    made.close(ZERO)
    assert _end(made.maker, ChainState(kafka_offset=start), start).whole


def test_a_journal_made_anew_must_begin_with_a_gap() -> None:
    old = replace(_end(_made().maker), kafka_offset=0, fence=-1, anchor=ANEW)
    anew = JournalMaker()
    anew.batch(write(0, b"x"))
    with pytest.raises(IntegrityError, match="does not begin with a gap"):
        _steps(old, anew)


def test_a_journal_made_anew_whose_begin_is_gone_is_a_gap_of_ours() -> None:
    old = replace(_end(_made().maker), kafka_offset=0, fence=-1, anchor=ANEW)
    anew = script(VOLUME_BYTES, 2)
    anew.batch()
    start = len(anew.maker.messages) - 1
    state = _end(anew.maker, replace(old, kafka_offset=start), start)
    assert state.position == anew.maker.last
    assert [gap.position for gap in state.own_gaps] == [old.position]


def test_a_journal_made_anew_goes_on_with_a_journal_gap() -> None:
    made = _made()
    old = replace(_end(made.maker), kafka_offset=0, fence=-1, anchor=ANEW)
    anew = JournalMaker(open_gaps=())
    anew.gap("journal_lost")
    state = _end(anew, old)
    assert (state.position, state.whole, state.own_gaps) == (ZERO, False, ())


def test_a_journal_made_anew_that_went_on_without_us_is_a_gap_of_ours() -> None:
    old = replace(_end(_made().maker), kafka_offset=0, fence=-1, anchor=ANEW)
    anew = Script(JournalMaker(epoch=4, sequence=100), VOLUME_BYTES, _made().chance)
    anew.epoch(clean=False)
    state = _end(anew.maker, old)
    assert [gap.position for gap in state.own_gaps] == [old.position]
    again = script(VOLUME_BYTES, 2)  # a first copy brings everything: nothing is missing
    assert _end(again.maker, old).own_gaps == ()


def test_a_rebased_reader_takes_the_chain_as_it_comes() -> None:
    made = _made()
    behind = with_own_gap(_end(made.maker), RETENTION, 0)
    made.batch()
    made.batch()
    start = len(made.maker.messages) - 1
    state = _end(made.maker, replace(behind, kafka_offset=start, anchor=REBASED), start)
    assert state.position == made.maker.last
    assert state.own_gaps == behind.own_gaps
    assert state.gaps == 1


def test_a_journal_gap_that_moves_the_position_must_leave_a_gap_open() -> None:
    made = _made()
    made.maker.last = Position(9, 9)
    made.maker.gap(open_it=False)
    with pytest.raises(IntegrityError, match="leaves no gap open"):
        _steps(ChainState(), made.maker)


def test_gaps_after_marks_agree_with_the_journals_state() -> None:
    made = _made()
    made.gap(close=False)
    made.epoch(clean=False, close=False)
    before = ()
    for message in made.maker.messages:
        entry = decode_journal(message.value)
        if hasattr(entry, "records"):
            before = gaps_after(before, entry.records)
            assert [gap.position for gap in before] == [gap.position for gap in entry.state.open_gaps]
            assert [gap.reason for gap in before] == [gap.reason for gap in entry.state.open_gaps]


def test_a_mark_without_attributes_is_an_unclean_start() -> None:
    made = JournalMaker()
    made.batch(replace(mark(Kind.EPOCH_START), attributes=None))
    assert [gap.reason for gap in gaps_after((), made.entries[-1].records)] == ["unclean_stop"]


def test_messages_of_another_life_of_the_topic_are_dropped() -> None:
    """A worker that did not notice that the topic was made anew wrote them under a fence that is none of this topic's."""
    old = _made()
    old.maker.writer = 3
    late = [old.maker.make(old.told()) for _ in range(6)]
    made = _made()
    mixed = JournalMaker()
    for entry in late:
        mixed.repeat(entry)
    moved = len(mixed.messages)
    for entry in made.maker.entries:
        mixed.repeat(replace(entry, writer=entry.writer + moved) if hasattr(entry, "writer") else entry)
    steps = _steps(ChainState(), mixed)
    assert {one.dropped for one in steps[:moved]} == {"foreign", "stale"}
    assert steps[-1].state.position == made.maker.last
    assert steps[-1].state.digest == made.maker.digest
    assert steps[-1].state.own_gaps == ()


def test_a_late_message_first_is_not_the_history_it_seems() -> None:
    """Retention deleted the fence that outdates it; the successor's next message tells."""
    made = _made()
    late = made.fork()
    late.make(made.told())
    entry = late.make(made.told())
    for _ in range(4):
        made.batch()
    made.maker.fence("w2")
    made.batch()
    start = len(made.maker.messages)
    made.maker.repeat(entry)
    made.batch()
    state = with_own_gap(ChainState(kafka_offset=start, anchor=REBASED), RETENTION, 0)
    end = _end(made.maker, state, start)
    assert (end.position, end.digest) == (made.maker.last, made.maker.digest)
    assert [gap.position for gap in end.own_gaps] == [ZERO]
