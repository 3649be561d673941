"""Order by plain calls: what is journaled, cut, dropped and asked for, and what marks do to the open gaps."""

from __future__ import annotations

import pytest

from cx_consumers.order import GapReason, Tail, Verdict, begin_gap, gaps_to_ask_for, order
from stream.errors import IntegrityError
from stream.journal import JournalState, OpenGap
from stream.position import ZERO, Position
from stream.record import FLAG_MORE, Batch, Kind

CLAIM = b"claim--1"
OTHER = b"claim--2"


def batch(epoch: int, first: int, count: int = 1, *, marks: dict[int, tuple[Kind, dict[str, str]]] | None = None) -> Batch:
    """Make writes of one byte each, whose byte is their sequence; `marks` put marks in the place of some."""
    marks = marks or {}
    kinds = bytes(marks[index][0] if index in marks else Kind.WRITE for index in range(count))
    payload = bytes((first + index) % 251 for index in range(count) if index not in marks)
    return Batch(
        "v", epoch, first, 1_000 + first, kinds, bytes(count), [first + index for index in range(count)],
        [0 if index in marks else 1 for index in range(count)], list(range(count)), payload,
        {index: attributes for index, (_, attributes) in marks.items()},
    )  # fmt: skip


def start(epoch: int, sequence: int, **attributes: str) -> Batch:
    return batch(epoch, sequence, marks={0: (Kind.EPOCH_START, attributes)})


def standing(sequence: int, epoch: int = 1, **other) -> Tail:
    return Tail(JournalState("topic", 10, Position(epoch, sequence), CLAIM, **other))


def test_first_message_must_start_an_epoch() -> None:
    empty = Tail(JournalState("topic"))
    refused = order(empty, batch(1, 1, 3), CLAIM, 0)
    assert (refused.verdict, refused.wanted, refused.piece) == (Verdict.OUT_OF_SEQUENCE, Position(0, 1), None)
    taken = order(empty, start(1, 1, clean="false", first="true"), CLAIM, 0)
    assert taken.verdict is Verdict.JOURNALED
    assert taken.tail.state.position == Position(1, 1)
    assert taken.tail.state.incarnation == CLAIM
    assert taken.tail.state.next_kafka_offset == 1
    assert taken.tail.state.open_gaps == (OpenGap(Position(1, 1), "first_copy", 1_001),)


def test_next_batch_is_journaled_whole() -> None:
    tail = standing(7)
    found = order(tail, batch(1, 8, 3), CLAIM, 10)
    assert found.piece is not None
    assert found.piece.before == tail.state
    assert found.piece.after.position == Position(1, 10)
    assert found.piece.after.next_kafka_offset == 11
    assert found.tail == Tail(found.piece.after)


def test_overlap_is_cut_by_position() -> None:
    found = order(standing(7), batch(1, 6, 4), CLAIM, 10)
    assert found.piece is not None
    assert found.piece.batch.first_sequence == 8
    assert bytes(found.piece.batch.payload) == bytes([8, 9])
    assert found.piece.batch.capture_time_ns == 1_006 + 2


@pytest.mark.parametrize(("first", "count"), [(5, 3), (1, 7), (7, 1)])
def test_duplicates_only_move_the_kafka_offset(first: int, count: int) -> None:
    tail = standing(7)
    found = order(tail, batch(1, first, count), CLAIM, 10)
    assert (found.verdict, found.piece) == (Verdict.DUPLICATE, None)
    assert found.tail.state == JournalState("topic", 11, Position(1, 7), CLAIM)


def test_redelivered_message_changes_nothing() -> None:
    tail = standing(7)
    found = order(tail, batch(1, 8), CLAIM, 9)
    assert (found.verdict, found.tail) == (Verdict.REDELIVERED, tail)


def test_hole_is_dropped_and_asked_for() -> None:
    found = order(standing(7), batch(1, 9), CLAIM, 10)
    assert (found.verdict, found.wanted) == (Verdict.OUT_OF_SEQUENCE, Position(1, 8))
    assert found.tail.state.position == Position(1, 7)


@pytest.mark.parametrize(("epoch", "claim"), [(1, CLAIM), (2, OTHER)])
def test_older_epoch_and_losing_claim_are_fenced(epoch: int, claim: bytes) -> None:
    found = order(standing(7, epoch=2), batch(epoch, 8), claim, 10)
    assert (found.verdict, found.piece) == (Verdict.FENCED, None)


def test_losing_epoch_start_of_the_same_number_is_fenced() -> None:
    found = order(standing(7, epoch=2), start(2, 7, clean="false"), OTHER, 10)
    assert found.verdict is Verdict.FENCED


def test_newer_epoch_without_its_start_is_out_of_sequence() -> None:
    found = order(standing(7), batch(2, 8), OTHER, 10)
    assert (found.verdict, found.wanted) == (Verdict.OUT_OF_SEQUENCE, Position(1, 8))


@pytest.mark.parametrize("first", [3, 8, 900])
def test_newer_epoch_start_wins_whatever_its_sequence(first: int) -> None:
    found = order(standing(7), start(2, first, clean="false"), OTHER, 10)
    assert found.tail.state.position == Position(2, first)
    assert found.tail.state.incarnation == OTHER
    assert [gap.reason for gap in found.tail.state.open_gaps] == ["unclean_stop"]


def test_an_unclean_start_covers_the_gaps_that_the_lost_agent_had_open() -> None:
    """Nobody else would ever close them: the agent that knew them is gone, and its successor copies everything."""
    own = OpenGap(Position(1, 3), "buffer_full", 1)
    of_order = OpenGap(Position(1, 5), "retention", 2)
    found = order(standing(7, open_gaps=(own, of_order)), start(2, 8, clean="false"), OTHER, 10)
    assert [(gap.position, gap.reason) for gap in found.tail.state.open_gaps] == [
        (Position(1, 5), "retention"),
        (Position(2, 8), "unclean_stop"),
    ]
    in_first_copy = standing(7, open_gaps=(OpenGap(Position(1, 1), "first_copy", 1),))
    found = order(in_first_copy, start(2, 8, clean="false"), OTHER, 10)
    assert [(gap.position, gap.reason) for gap in found.tail.state.open_gaps] == [(Position(2, 8), "first_copy")]


def test_clean_epoch_start_opens_no_gap() -> None:
    assert order(standing(7), start(2, 8, clean="true"), OTHER, 10).tail.state.open_gaps == ()


def test_epoch_start_inside_an_epoch_is_wrong() -> None:
    wrong = batch(1, 8, 2, marks={1: (Kind.EPOCH_START, {})})
    with pytest.raises(IntegrityError, match="epoch_start"):
        order(standing(7), wrong, CLAIM, 10)


def test_fragments_of_an_older_epoch_stay_as_they_are() -> None:
    half = Batch("v", 1, 8, 5, bytes([Kind.WRITE]), bytes([FLAG_MORE]), [0], [1], [0], b"x")
    tail = order(standing(7), half, CLAIM, 10).tail
    assert order(tail, start(2, 9, clean="true"), OTHER, 11).tail.state.position == Position(2, 9)


def test_marks_open_and_close_gaps_in_order() -> None:
    known = OpenGap(Position(1, 3), "buffer_full", 1)
    marks = {
        0: (Kind.GAP_BEGIN, {"reason": "buffer_full"}),
        1: (Kind.SYNC_END, {"closes": f"{Position(1, 3)},{Position(1, 8)}"}),
        2: (Kind.GAP_BEGIN, {"reason": "source_changed"}),
    }
    found = order(standing(7, open_gaps=(known,)), batch(1, 8, 4, marks=marks), CLAIM, 10)
    assert found.tail.state.open_gaps == (OpenGap(Position(1, 10), "source_changed", 1_010),)


def test_marks_that_were_cut_away_do_not_count_again() -> None:
    marks = {0: (Kind.GAP_BEGIN, {"reason": "buffer_full"})}
    found = order(standing(7), batch(1, 7, 2, marks=marks), CLAIM, 10)
    assert found.tail.state.open_gaps == ()


def test_gap_of_order_stands_at_the_position_and_is_kept_apart() -> None:
    state = begin_gap(standing(7).state, GapReason.RETENTION, 5, topic_id="new", next_kafka_offset=40)
    assert (state.topic_id, state.next_kafka_offset, state.position) == ("new", 40, Position(1, 7))
    assert state.open_gaps == (OpenGap(Position(1, 7), "retention", 5),)
    again = begin_gap(state, GapReason.RETENTION, 9, topic_id="new", next_kafka_offset=60)
    assert again.open_gaps == (OpenGap(Position(1, 7), "retention", 9),)
    assert gaps_to_ask_for(again) == again.open_gaps


def test_agents_gaps_are_asked_for_if_what_closed_them_may_be_missing() -> None:
    agents = (OpenGap(Position(1, 2), "buffer_full", 1), OpenGap(ZERO, "first_copy", 1))
    state = standing(7, open_gaps=agents).state
    assert gaps_to_ask_for(state) == ()
    lost = begin_gap(state, GapReason.BROKER_LOST_DATA, 5, topic_id="t", next_kafka_offset=40)
    assert gaps_to_ask_for(lost) == (*agents, OpenGap(Position(1, 7), "broker_lost_data", 5))
    later = order(Tail(lost), batch(1, 8, 1, marks={0: (Kind.GAP_BEGIN, {"reason": "overflow"})}), CLAIM, 40)
    assert gaps_to_ask_for(later.tail.state) == gaps_to_ask_for(lost)


BEGIN = (Kind.SYNC_BEGIN, {})


def test_after_a_gap_the_owner_goes_on_with_the_copy_s_beginning() -> None:
    """What comes before is not taken for whole: the first part of a copy may be among what was not seen."""
    tail = Tail(standing(7).state, after_gap=True)
    assert order(tail, batch(1, 50), OTHER, 10).verdict is Verdict.FENCED
    assert order(tail, batch(1, 5), CLAIM, 10).tail.after_gap
    passed = order(tail, batch(1, 50), CLAIM, 10)
    assert (passed.verdict, passed.piece, passed.tail.after_gap) == (Verdict.AWAITED, None, True)
    found = order(passed.tail, batch(1, 51, 4, marks={2: BEGIN}), CLAIM, 11)
    assert found.piece is not None
    assert (found.piece.before.position, found.piece.batch.first) == (Position(1, 7), Position(1, 53))
    assert (found.tail.state.position, found.tail.after_gap) == (Position(1, 54), False)
    assert order(found.tail, batch(1, 60), CLAIM, 12).verdict is Verdict.OUT_OF_SEQUENCE


def test_after_a_gap_the_end_of_a_copy_whose_beginning_is_lost_closes_nothing() -> None:
    lost = begin_gap(standing(7).state, GapReason.BROKER_LOST_DATA, 5, topic_id="t", next_kafka_offset=10)
    tail = Tail(lost, after_gap=True)
    other = order(tail, batch(1, 50, marks={0: (Kind.SYNC_END, {"closes": str(Position(1, 3))})}), CLAIM, 10)
    assert other.verdict is Verdict.AWAITED
    found = order(tail, batch(1, 50, marks={0: (Kind.SYNC_END, {"closes": str(Position(1, 7))})}), CLAIM, 10)
    assert (found.verdict, found.piece) == (Verdict.COPY_LOST, None)
    assert found.tail.state.open_gaps == lost.open_gaps and found.tail.after_gap


def test_after_a_gap_an_epoch_whose_start_is_lost_is_adopted() -> None:
    found = order(Tail(standing(7).state, after_gap=True), batch(3, 90, marks={0: BEGIN}), OTHER, 10)
    assert (found.tail.state.position, found.tail.state.incarnation) == (Position(3, 90), OTHER)
