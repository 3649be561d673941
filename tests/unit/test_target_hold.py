"""Holds, labels, windows and resumptions: the target's small pure rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cx_consumers.checkpoint import Checkpoint, Label
from cx_consumers.target_chain import ANCHORED, ANEW, REBASED, ChainState
from cx_consumers.target_hold import Hold, begins_hold
from cx_consumers.target_label import LABEL_AHEAD_RECORDS, ahead, at_rest, covers
from cx_consumers.target_resume import resume
from cx_consumers.target_window import Item, take
from stream.config import KafkaConfig
from stream.journal import FIRST_COPY, OpenGap
from stream.position import Position
from tests.journal_maker import JournalMaker, write

WHOLE = ChainState(kafka_offset=10, position=Position(1, 20), anchor=ANCHORED)
OPEN = replace(WHOLE, kafka_offset=11, open_gaps=(OpenGap(Position(1, 21), "buffer_full", 0),))


def test_a_hold_begins_at_a_gap_and_not_at_a_first_copy() -> None:
    assert begins_hold(WHOLE, OPEN)
    assert not begins_hold(OPEN, OPEN)
    assert not begins_hold(WHOLE, WHOLE)
    assert not begins_hold(WHOLE, replace(OPEN, open_gaps=(OpenGap(Position(2, 21), FIRST_COPY, 0),)))


def _hold(config: KafkaConfig, *, messages: int = 4, step_ms: int = 1000, log_bytes: int = 100) -> Hold:
    hold = Hold(WHOLE, 10, Position(1, 21), config)
    for index in range(messages):
        hold.saw(OPEN, log_bytes=log_bytes, payload_bytes=1000, timestamp_ms=index * step_ms)
    return hold


@pytest.mark.parametrize(
    ("config", "held_s", "ends"),
    [
        (KafkaConfig(retention_ms=86_400_000), 100.0, False),
        (KafkaConfig(retention_ms=-1), 1e9, False),
        (KafkaConfig(retention_ms=10_000), 1.0, False),
        (KafkaConfig(retention_ms=10_000), 6.0, True),
        (KafkaConfig(retention_ms=5_000), 0.0, True),  # the broker's clock: 3 s between the messages
        (KafkaConfig(retention_ms=-1, retention_bytes=1000), 0.0, False),
        (KafkaConfig(retention_ms=-1, retention_bytes=700), 0.0, True),
    ],
)
def test_a_hold_ends_before_retention_reaches_it(config: KafkaConfig, held_s: float, ends: bool) -> None:
    assert (_hold(config).must_end(held_s, None) is not None) == ends


def test_a_hold_ends_when_the_log_start_comes_near() -> None:
    hold = Hold(replace(WHOLE, kafka_offset=100), 100, Position(1, 21), KafkaConfig(retention_ms=-1))
    assert hold.must_end(1, 0) is None
    assert hold.must_end(1, 40) is None
    assert hold.must_end(1, 40) is None
    assert hold.must_end(1, 70) is not None


def test_a_hold_counts_what_waits_and_is_over_when_all_is_closed() -> None:
    hold = _hold(KafkaConfig())
    assert (hold.waiting_bytes, hold.over) == (4000, False)
    hold.saw(replace(WHOLE, kafka_offset=15), log_bytes=1, payload_bytes=1, timestamp_ms=9)
    assert hold.over


def test_labels_reach_ahead_and_never_over_an_open_gap() -> None:
    label = ahead(WHOLE)
    assert label == Label(not_until=Position(1, 20 + LABEL_AHEAD_RECORDS))
    assert ahead(OPEN) == Label()
    assert ahead(OPEN, Position(1, 30)) == Label(not_until=Position(1, 30))
    assert ahead(WHOLE, Position(1, 20)) == label
    assert at_rest(WHOLE, settled=True) == Label(consistent_at=Position(1, 20))
    assert at_rest(WHOLE, settled=False) is None
    assert at_rest(OPEN, settled=True) is None
    assert at_rest(ChainState(), settled=True) is None


def test_a_label_covers_what_it_does_not_deny() -> None:
    assert not covers(Label(consistent_at=Position(1, 5)), Position(1, 3))
    assert covers(Label(), Position(9, 9))
    assert covers(Label(not_until=Position(1, 5)), Position(1, 5))
    assert not covers(Label(not_until=Position(1, 5)), Position(1, 6))
    assert not covers(Label(not_until=Position(1, 5)), Position(2, 1))


def test_a_label_says_one_thing() -> None:
    with pytest.raises(ValueError, match="consistent or it is not"):
        Label(Position(1, 1), Position(1, 2))


def _checkpoint(label: Label) -> Checkpoint:
    return Checkpoint("v", "id", WHOLE, label, "/r", "i", (1,))


def test_resumption_of_a_new_replica_starts_where_the_log_starts() -> None:
    found = resume(None, "id", (5, 9), 0)
    assert (found.chain.kafka_offset, found.label, found.missed) == (5, Label(), None)


def test_resumption_goes_on_at_the_checkpoint() -> None:
    rest = Label(consistent_at=WHOLE.position)
    assert resume(_checkpoint(rest), "id", (0, 50), 0).settled_at == 0
    found = resume(_checkpoint(Label(not_until=Position(1, 30))), "id", (0, 50), 0)
    assert (found.chain, found.settled_at) == (WHOLE, 50)
    assert resume(_checkpoint(rest), "id", (10, 10), 0).missed is None


def test_resumption_behind_the_log_is_a_gap_of_our_own() -> None:
    found = resume(_checkpoint(Label(consistent_at=WHOLE.position)), "id", (11, 50), 7)
    assert (found.missed, found.chain.anchor, found.chain.kafka_offset) == ("retention", REBASED, 11)
    assert found.chain.own_gaps == (OpenGap(WHOLE.position, "retention", 7),)
    assert found.label == Label()


def test_resumption_beyond_the_log_is_a_gap_of_our_own() -> None:
    found = resume(_checkpoint(Label(consistent_at=WHOLE.position)), "id", (0, 9), 7)
    assert (found.missed, found.chain.anchor, found.chain.kafka_offset, found.chain.fence) == ("broker_lost_data", REBASED, 9, -1)


def test_resumption_in_a_topic_made_anew_keeps_the_label() -> None:
    rest = Label(consistent_at=WHOLE.position)
    found = resume(_checkpoint(rest), "other", (0, 3), 7)
    assert (found.label, found.chain.anchor, found.chain.kafka_offset, found.missed) == (rest, ANEW, 0, None)
    torn = resume(_checkpoint(Label(not_until=Position(1, 30))), "other", (0, 3), 7)
    assert torn.missed == "retention"
    assert torn.chain.own_gaps


def _items(*told_batches: list) -> list[Item]:
    made, items, state = JournalMaker(), [], ChainState()
    for told in told_batches:
        entry = made.make(*told)
        after = replace(state, kafka_offset=state.kafka_offset + 1, position=entry.state.position, digest=entry.state.digest)
        items.append(Item(state, after, replace(entry.records, payload=b"".join(one.data for one in told))))
        state = after
    return items


def test_a_window_is_everything_when_no_split_is_open() -> None:
    items = _items([write(0, b"a")], [write(1, b"b", more=True), write(2, b"c")])
    window, left = take(items)
    assert (window.state, left) == (items[-1].state, [])


def test_a_window_ends_before_an_open_split() -> None:
    items = _items([write(0, b"a"), write(1, b"b", more=True)], [write(2, b"c", more=True)])
    window, left = take(items)
    assert [one.position.sequence for batch in window.batches for one in batch.records()] == [1]
    assert (window.state.position, window.state.kafka_offset) == (Position(1, 1), 0)
    assert [item.batch.first_sequence for item in left] == [2, 3]
    assert left[0].before == window.state
    assert take(left) == (None, left)
    whole, rest = take([*left, _items([write(0, b"x")])[0]])
    assert (len(whole.batches), rest) == (3, [])
