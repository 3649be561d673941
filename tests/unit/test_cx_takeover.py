"""Where a worker goes on, and what is missing before that, for everything that a journal and a writes topic can say."""

from __future__ import annotations

import pytest

from cx_consumers.broker import Log
from cx_consumers.order import Tail
from cx_consumers.takeover import Found, gap_entry, resume
from stream.journal import JournalState, OpenGap
from stream.position import ZERO, Position

STATE = JournalState("old", 40, Position(3, 70), b"claim--1")


@pytest.mark.parametrize(
    ("tail", "journal_start", "log", "reason", "goes_on"),
    [
        (Tail(STATE), 5, Log("old", 0, 60), None, 40),
        (Tail(STATE), 5, Log("old", 40, 40), None, 40),
        (Tail(STATE), 5, Log("old", 41, 60), "retention", 41),
        (Tail(STATE), 5, Log("old", 0, 39), "broker_lost_data", 39),
        (Tail(STATE), 5, Log("new", 7, 60), "topic_recreated", 7),
        (Tail(STATE), 5, Log("new", 0, 0), "topic_recreated", 0),
        (None, 0, Log("new", 0, 9), None, 0),
        (None, 0, Log("new", 4, 9), "retention", 4),
        (None, 1, Log("new", 4, 9), "journal_lost", 4),
        (None, 1, Log("new", 0, 0), "journal_lost", 0),
    ],
)
def test_resume(tail: Tail | None, journal_start: int, log: Log, reason: str | None, goes_on: int) -> None:
    found, missing = resume(Found(tail, True, journal_start), log)
    assert (None if missing is None else str(missing.reason)) == reason
    assert (found.state.topic_id, found.state.next_kafka_offset) == (log.topic_id, goes_on)
    assert found.state.position == (STATE.position if tail else ZERO)


def test_a_gap_that_was_the_last_message_is_remembered() -> None:
    assert resume(Found(Tail(STATE, after_gap=True), True, 0), Log("old", 0, 60))[0].after_gap


def test_a_tail_that_not_every_reader_believes_is_a_gap() -> None:
    found, missing = resume(Found(Tail(STATE), False, 5), Log("old", 0, 60))
    assert missing is not None
    assert (str(missing.reason), found.state) == ("journal_lost", STATE)
    assert resume(Found(Tail(STATE), False, 5), Log("new", 7, 60))[1].reason == "topic_recreated", "one gap covers both"


def test_gap_entry_opens_the_gap_at_the_position_before_it() -> None:
    found, missing = resume(Found(Tail(STATE), True, 0), Log("old", 50, 60))
    assert missing is not None
    entry = gap_entry("v", 9, found.state, missing, 123)
    assert (entry.reason, entry.writer, entry.at_ns) == ("retention", 9, 123)
    assert "40 to 49" in entry.missing
    assert entry.state.open_gaps == (OpenGap(Position(3, 70), "retention", 123),)
    assert entry.state.next_kafka_offset == 50
