"""What replay makes of a writes topic, against what was captured and against the order worker, whatever is delivered twice or late."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cx_consumers.order import Tail, order
from nbd.blockfile import BlockFile
from recovery.point import Latest
from recovery.replay import Replay
from recovery.topic_order import WritesOrder
from stream.codec import decode_writes
from stream.errors import RecoveryError
from stream.journal import JournalState
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import Told, flush, image, mark, write, zero
from tests.writes_maker import WritesMaker

SIZE = 4096

records = st.one_of(
    st.builds(lambda at, data: [write(at, data)], st.integers(0, SIZE - 64), st.binary(min_size=1, max_size=64)),
    st.builds(lambda at, length: [zero(at, length)], st.integers(0, SIZE - 64), st.integers(1, 64)),
    st.just([flush()]),
    st.builds(
        lambda at, parts: [write(at + 8 * index, part, more=index < len(parts) - 1) for index, part in enumerate(parts)],
        st.integers(0, SIZE - 64),
        st.lists(st.binary(min_size=8, max_size=8), min_size=2, max_size=5),
    ),
    st.just([mark(Kind.HEARTBEAT)]),
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(records, min_size=1, max_size=6)),
        st.tuples(st.just("again"), st.tuples(st.integers(1, 40), st.integers(1, 12))),
        st.tuples(st.just("late"), st.integers(0, 40)),
        st.tuples(st.just("epoch"), st.booleans()),
        st.tuples(st.just("gap"), st.none()),
        st.tuples(st.just("foreign"), st.integers(1, 6)),
    ),
    max_size=25,
)


def published(script: list[tuple[str, object]]) -> WritesMaker:
    """Play an agent: it publishes, publishes again what it is not sure of, dies and comes back; old messages arrive late."""
    maker = WritesMaker()
    maker.begin(first=True, size_bytes=SIZE)
    maker.put(mark(Kind.SYNC_END, closes=str(Position(1, 1))))
    for what, told in script:
        if what == "put":
            maker.put(*[one for group in told for one in group])
        elif what == "again":
            start = max(_first_of_epoch(maker), maker.sequence - told[0] + 1)
            maker.publish(start, min(maker.sequence, start + told[1]) + 1)
        elif what == "late":
            maker.messages.append(_moved(maker, maker.messages[max(0, len(maker.messages) - 1 - told)]))
        elif what == "epoch":
            _new_epoch(maker, clean=told)
        elif what == "gap":
            begin = maker.capture(mark(Kind.GAP_BEGIN, reason="overflow"))
            maker.publish(*begin)
            maker.put(write(0, b"copied"), mark(Kind.SYNC_END, closes=str(Position(maker.epoch, begin[0]))))
        else:
            maker.publish(max(_first_of_epoch(maker), maker.sequence - told), maker.sequence + 1, incarnation=b"stranger")
    return maker


def _first_of_epoch(maker: WritesMaker) -> int:
    return next(position.sequence for position, _, _ in maker.captured if position.epoch == maker.epoch)


def _moved(maker: WritesMaker, message):
    return type(message)(message.topic, maker.low + len(maker.messages), None, message.value, {}, 0)


def _new_epoch(maker: WritesMaker, *, clean: bool) -> None:
    maker.begin(clean=clean)
    if not clean:
        maker.put(write(1, b"compared"), mark(Kind.SYNC_END, closes=str(Position(maker.epoch, maker.sequence))))


@given(actions)
@settings(deadline=None)
def test_replayed_is_what_was_captured(script: list[tuple[str, object]]) -> None:
    maker = published(script)
    replay = Replay("v1", "writes", maker.read)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "volume")
        path.touch()
        file = BlockFile(path)
        done = replay.apply(replay.find(None, Latest(), 0), file)
        file.close()
        last = max(index for index, (_, _, told) in enumerate(maker.captured) if not told.more)
        assert done.end == maker.captured[last][0]
        assert path.read_bytes() == image(maker.captured[: last + 1], 0)


@given(actions, st.data())
@settings(deadline=None)
def test_the_order_worker_keeps_the_same_records(script: list[tuple[str, object]], data: st.DataObject) -> None:
    """Messages may even be missing: both stop at the hole, as long as nobody gives it up."""
    maker = published(script)
    lost = data.draw(st.sets(st.integers(1, len(maker.messages)), max_size=3))
    messages = _without(maker, lost)
    mine: list[Position] = []
    theirs: list[Position] = []
    ours = WritesOrder("v1", "t")
    tail = Tail(JournalState())
    for message in messages:
        mine += [record.position for portion in ours.accept(message) for record in portion.load().records()]
        batch, incarnation = decode_writes(message.value)
        if batch.epoch > tail.state.position.epoch > 0 and batch.first_sequence > tail.state.position.sequence + 1:
            break  # the worker begins a gap of its own here, with the journal's word for it
        done = order(tail, batch, incarnation, message.kafka_offset)
        tail = done.tail
        theirs += [] if done.piece is None else [record.position for record in done.piece.batch.records()]
    assert mine[: len(theirs)] == theirs


def _without(maker: WritesMaker, lost: set[int]) -> list:
    """Return the log as it is when some of its messages never came."""
    left = [message for at, message in enumerate(maker.messages) if at not in lost]
    return [type(message)(message.topic, index, None, message.value, {}, 0) for index, message in enumerate(left)]


@given(actions, st.data())
@settings(deadline=None)
def test_no_point_is_offered_that_was_not_captured_whole(script: list[tuple[str, object]], data: st.DataObject) -> None:
    """Lose any messages: whatever is then offered as the latest point is a prefix of the history, or lies behind a resync."""
    maker = published([one for one in script if one[0] not in ("gap", "epoch")])
    lost = data.draw(st.integers(1, len(maker.messages)))
    maker.messages = _without(maker, {lost})
    try:
        found = Replay("v1", "writes", maker.read).find(None, Latest(), 0)
    except RecoveryError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "volume")
        path.touch()
        file = BlockFile(path)
        Replay("v1", "writes", maker.read).apply(found, file)
        file.close()
        count = next(index + 1 for index, (position, _, _) in enumerate(maker.captured) if position == found.end)
        assert path.read_bytes() == image(maker.captured[:count], 0)


def test_the_oracle_is_not_blind() -> None:
    maker = published([("put", [[Told(Kind.WRITE, 0, 3, b"abc")]])])
    assert image(maker.captured, 0)[:3] == b"abc"
