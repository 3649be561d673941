"""The end of a journal, found from behind, against a reader that reads everything from the start.

Workers take the volume one after another; a worker that lost it writes at most what it had under way. Whatever window the search begins
with: when it says that it is certain, it has the reader's answer.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cx_consumers import journal_tail
from cx_consumers.journal_tail import find_tail, last_valid
from stream.codec import encode_journal
from stream.consumer import StoredMessage
from stream.errors import IntegrityError
from stream.journal import JournalFence, JournalGap, JournalState

UNDER_WAY = 3


@pytest.fixture(autouse=True, scope="module")
def few_under_way():
    before = journal_tail.LATE_MESSAGES_MAX, journal_tail.WINDOW_MESSAGES
    journal_tail.LATE_MESSAGES_MAX, journal_tail.WINDOW_MESSAGES = UNDER_WAY, UNDER_WAY + 1
    yield
    journal_tail.LATE_MESSAGES_MAX, journal_tail.WINDOW_MESSAGES = before


def message(kafka_offset: int, writer: int | None) -> StoredMessage:
    """Make a fence (no writer) or a gap whose state tells its own kafka_offset."""
    if writer is None:
        value = encode_journal(JournalFence("v", "w", 1))
        headers = {"volume": b"v", "kind": b"fence"}
    else:
        value = encode_journal(JournalGap("v", writer, "retention", "", 1, JournalState("t", kafka_offset)))
        headers = {"volume": b"v", "kind": b"gap", "writer": str(writer).encode()}
    return StoredMessage("ho.v.journal", kafka_offset, b"v", value, headers, 0)


def journal(rng: random.Random) -> list[StoredMessage]:
    """Return a log of workers, each fenced by the next; what a fenced worker had under way lands late."""
    log: list[StoredMessage] = []
    late: list[int] = []
    for _ in range(rng.randint(1, 5)):
        owner = len(log)
        log.append(message(owner, None))
        for _ in range(rng.randint(0, 12)):
            if late and rng.random() < 0.5:
                log.append(message(len(log), late.pop()))
            else:
                log.append(message(len(log), owner))
        late = [*late, *([owner] * rng.randint(0, UNDER_WAY))]
    return log


def believed(log: list[StoredMessage]) -> int | None:
    """Return the kafka_offset of the last message that a reader from the start believes."""
    fence, last = -1, None
    for one in log:
        if one.headers["kind"] == b"fence":
            fence = one.kafka_offset
        elif int(one.headers["writer"]) >= fence:
            last = one.kafka_offset
    return last


class Log:
    """What `find_tail` needs of a reader."""

    def __init__(self, messages: list[StoredMessage]) -> None:
        self._messages = messages
        self.read = 0

    def read_range(self, start: int, end: int, *, idle_s_max: float) -> list[StoredMessage]:
        self.read += end - start
        return self._messages[start:end]


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_a_certain_answer_is_the_reader_s(seed: int, data: st.DataObject) -> None:
    log = journal(random.Random(seed))
    begin = data.draw(st.integers(0, len(log)))
    last, certain = last_valid(log[begin:], begin)
    if certain:
        assert last is not None
        assert last.kafka_offset == believed(log)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_the_tail_is_the_reader_s(seed: int) -> None:
    log = journal(random.Random(seed))
    tail, certain = find_tail(Log(log), 0, len(log))
    assert certain
    assert (tail.state.next_kafka_offset if tail else None) == believed(log)
    assert tail is None or tail.after_gap


def test_a_long_journal_is_not_read_back_to_its_fence() -> None:
    log = Log([message(0, None), *(message(number, 0) for number in range(1, 10_000))])
    tail, _ = find_tail(log, 0, 10_000)
    assert tail is not None
    assert tail.state.next_kafka_offset == 9_999
    assert log.read == UNDER_WAY + 1


def test_fences_alone_are_no_tail() -> None:
    assert find_tail(Log([message(0, None), message(1, None)]), 0, 2) == (None, True)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_behind_a_deleted_fence_a_tail_is_certain_only_if_who_read_the_fence_has_it_too(seed: int, data: st.DataObject) -> None:
    log = journal(random.Random(seed))
    start = data.draw(st.integers(0, len(log)))
    tail, certain = find_tail(Log(log), start, len(log))
    if tail is not None and certain:
        assert tail.state.next_kafka_offset == believed(log)


def test_late_messages_whose_fence_is_deleted_are_not_certain() -> None:
    log = [message(0, None), message(1, 0), message(2, None), message(3, 0)]
    assert find_tail(Log(log), 3, 4)[1] is False
    assert find_tail(Log(log), 2, 4) == (None, True)


@pytest.mark.parametrize("headers", [{"kind": b"gap"}, {"kind": b"gap", "writer": b"x"}, {"kind": b"gap", "writer": b"7"}])
def test_a_message_that_contradicts_its_headers_is_wrong(headers: dict[str, bytes]) -> None:
    good = message(1, 0)
    wrong = StoredMessage(good.topic, 1, good.key, good.value, headers, 0)
    with pytest.raises(IntegrityError):
        find_tail(Log([message(0, None), wrong]), 0, 2)
