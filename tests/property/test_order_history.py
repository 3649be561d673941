"""Order against a list of records: whatever is doubled, split, joined, stale or delivered again, the journal holds the one history."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cx_consumers.compress import Joint, join, pack
from cx_consumers.order import Piece, Tail, Verdict, order
from stream.codec import decode_journal, encode_journal, unpack
from stream.journal import JournalState
from stream.position import Position
from stream.record import Kind
from tests.cx_history import One, Oracle, Sent, agents, interleaved


def run(log: list[Sent], tail: Tail, begin: int = 0) -> tuple[list[Piece], Tail]:
    pieces = []
    for kafka_offset in range(begin, len(log)):
        found = order(tail, log[kafka_offset].batch(), log[kafka_offset].claim, kafka_offset)
        assert (found.piece is not None) == (found.verdict is Verdict.JOURNALED)
        if found.piece is not None:
            pieces.append(found.piece)
        tail = found.tail
    return pieces, tail


def records(pieces: list[Piece]) -> list[One]:
    return [
        One(one.position.epoch, one.position.sequence, one.capture_time_ns, int(one.kind), one.flags, one.offset_bytes, one.payload,
            tuple(one.attributes.items()))
        for piece in pieces for one in piece.batch.records()
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_history_is_the_oracle_s(seed: int, lossy: bool) -> None:
    rng = random.Random(seed)
    log = interleaved(rng, agents(rng), lossy)
    oracle = Oracle()
    for message in log:
        oracle.see(message)
    pieces, tail = run(log, Tail(JournalState("t")))
    assert records(pieces) == oracle.history
    assert tail.state.digest == oracle.digest
    assert tail.state.position == Position(oracle.epoch, oracle.sequence)
    assert tail.state.next_kafka_offset == len(log)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_restart_anywhere_and_redelivery_give_the_same_history(seed: int) -> None:
    rng = random.Random(seed)
    log = interleaved(rng, agents(rng), lossy=rng.random() < 0.5)
    whole, end = run(log, Tail(JournalState("t")))
    for _ in range(4):
        survived = whole[: rng.randint(0, len(whole))]
        state = survived[-1].after if survived else JournalState("t")
        for kafka_offset in range(state.next_kafka_offset):  # Kafka delivers again what is journaled
            again = order(Tail(state), log[kafka_offset].batch(), log[kafka_offset].claim, kafka_offset)
            assert (again.verdict, again.tail.state) == (Verdict.REDELIVERED, state)
        rest, tail = run(log, Tail(state), state.next_kafka_offset)
        assert [*survived, *rest] == whole
        assert tail == end


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_single_agent_s_history_is_complete(seed: int) -> None:
    """Repeats and cuts alone never lose a record: the history is all that one claim captured."""
    rng = random.Random(seed)
    sent = agents(rng)[0]
    captured = {one.sequence: one for message in sent for one in message.ones}
    pieces, _ = run(sent, Tail(JournalState("t")))
    assert records(pieces) == [captured[sequence] for sequence in sorted(captured)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["none", "snappy", "lz4", "zstd"]))
def test_joined_and_packed_pieces_unpack_to_the_same_records(seed: int, codec: str) -> None:
    rng = random.Random(seed)
    log = interleaved(rng, agents(rng), lossy=False)
    pieces, tail = run(log, Tail(JournalState("t")))
    groups: list[Joint] = []
    for piece in pieces:
        if not groups or rng.random() < 0.2 or not groups[-1].fits(piece):
            groups.append(Joint())
        groups[-1].add(piece)
    back, position, digest = [], Position(0, 0), bytes(16)
    for group in groups:
        entry = decode_journal(encode_journal(pack(group.pieces, codec, writer=3)))
        assert (entry.follows, entry.digest_before, entry.writer) == (position, digest, 3)
        back.append(Piece(unpack(entry), entry.incarnation, group.pieces[0].before, entry.state))
        position, digest = entry.state.position, entry.state.digest
    assert records(back) == records(pieces)
    assert (position, digest) == (tail.state.position, tail.state.digest)


def test_pieces_of_two_epochs_or_claims_are_never_joined() -> None:
    one = Sent(b"claim--1", (One(1, 1, 5, Kind.EPOCH_START, 0, 0, b"", (("clean", "true"),)),))
    two = Sent(b"claim--2", (One(2, 2, 5, Kind.EPOCH_START, 0, 0, b"", (("clean", "true"),)),))
    pieces, _ = run([one, two], Tail(JournalState("t")))
    joint = Joint()
    joint.add(pieces[0])
    assert not joint.fits(pieces[1])
    assert join([pieces[0].batch]) is pieces[0].batch
