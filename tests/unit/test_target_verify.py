"""What verify marks come to, mark by mark, and what the target's session does about one that differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cx_consumers.target_chain import ANCHORED, ChainState
from cx_consumers.target_verify import (
    ENDED_MAX,
    REPAIR_EXTENTS_MAX,
    VERIFY_BYTES_MAX,
    Round,
    VerifyMark,
    VerifyState,
    compared,
    spans_of,
    spans_text,
    verify_mark,
)
from stream.config import Config, TargetConfig
from stream.position import Position
from stream.record import Batch, Kind
from tests.journal_maker import mark, write
from tests.target_script import Script, script
from tests.target_world import PowerCut, World, stamped

SIZE = 4096
CHUNK = 1024
WHOLE = ChainState(kafka_offset=10, position=Position(1, 20), anchor=ANCHORED)


def _mark(offset: int, *, name: str = "b1", sequence: int = 20, last: bool = False, length: int = CHUNK) -> VerifyMark:
    return VerifyMark(Position(1, sequence), offset, length, bytes(16), name, last)


def _told(*marks: tuple[VerifyMark, bool | None], state: VerifyState | None = None) -> tuple[VerifyState, Round | None]:
    state, running = state or VerifyState(), None
    for one, equal in marks:
        state, running = compared(state, running, one, replace(WHOLE, position=one.position), equal=equal, size_bytes=SIZE)
    return state, running


def _round(*equal: bool | None, name: str = "b1", sequence: int = 20) -> list[tuple[VerifyMark, bool | None]]:
    last = len(equal) - 1
    return [(_mark(index * CHUNK, name=name, sequence=sequence + index, last=index == last), one) for index, one in enumerate(equal)]


def test_a_whole_round_proves_the_position_of_its_last_mark() -> None:
    state, running = _told(*_round(True, True, True, True))
    assert running is None
    assert state.proved_position == Position(1, 23)
    assert (state.done.round, state.done.mismatches, state.repairs) == ("b1", 0, ())


def test_percent_of_a_running_round() -> None:
    _, running = _told(*_round(True, True, True, True)[:2])
    assert (running.id, running.percent(SIZE), running.broken) == ("b1", 50.0, False)


def test_a_mismatch_is_counted_and_owed_and_proves_nothing() -> None:
    state, _ = _told(*_round(True, True, True, True), *_round(True, False, False, True, name="b2", sequence=30))
    assert state.proved_position == Position(1, 23), "that of the round before"
    assert (state.mismatches, state.done.round, state.done.mismatches, state.done.offsets) == (2, "b2", 2, (1024, 2048))
    assert (state.repairs, state.unasked, state.unasked_at) == (((1024, 3072),), ((1024, 3072),), Position(1, 31))


@pytest.mark.parametrize(
    "marks",
    [
        [one for one in _round(True, True, True, True) if one[0].offset_bytes != CHUNK],  # a hole
        _round(True, True, True, True)[1:],  # no beginning
        _round(True, True, True),  # the last mark is not at the volume's end
        _round(True, None, True, True),  # one was not compared
        [*_round(True, True, True, True)[:2], *_round(True, True, True, True)[1:]],  # one comes twice
    ],
)
def test_a_round_with_a_hole_proves_nothing_and_says_so(marks: list[tuple[VerifyMark, bool | None]]) -> None:
    state, running = _told(*marks)
    assert running is None
    assert (state.proved_position, state.done) == (None, None)
    assert [(one.round, one.complete) for one in state.ended] == [("b1", False)]


def test_a_new_round_ends_the_one_that_runs() -> None:
    state, running = _told(*_round(True, True, True, True)[:2], *_round(True, True, True, True, name="asked", sequence=30))
    assert [(one.round, one.complete) for one in state.ended] == [("b1", False), ("asked", True)]
    assert (running, state.proved_position) == (None, Position(1, 33))


def test_a_round_that_begins_again_under_its_name_is_one_round() -> None:
    state, _ = _told(*_round(True, True, True, True)[:3], *_round(True, True, True, True, sequence=30))
    assert [(one.round, one.complete) for one in state.ended] == [("b1", True)]


def test_only_the_last_rounds_are_kept() -> None:
    rounds = [one for number in range(20) for one in _round(True, True, True, True, name=f"b{number}")]
    state, _ = _told(*rounds)
    assert [one.round for one in state.ended] == [f"b{number}" for number in range(20 - ENDED_MAX, 20)]


def test_a_repair_is_done_when_every_byte_was_written_anew_or_the_chunk_proves_equal() -> None:
    state, _ = _told(*_round(False, True, True, True))
    state = state.written([(0, 1000)])
    assert state.repairs == ((1000, 1024),)
    assert state.written([(900, 200)]).repairs == ()
    assert _told(*_round(True, True, True, True, name="b2"), state=state)[0].repairs == ()
    assert state.resized(1010).repairs == ((1000, 1010),)
    assert state.resized(512).repairs == ()


def test_more_differences_than_can_be_named_are_the_whole_volume() -> None:
    known = tuple((at * 10, at * 10 + 5) for at in range(1, REPAIR_EXTENTS_MAX + 1))
    state, _ = _told((_mark(0, length=3), False), state=VerifyState(repairs=known, unasked=known))
    assert (state.repairs, state.unasked) == (((0, SIZE),), ((0, SIZE),))


@pytest.mark.parametrize("text", ["", "0-5", "0-5,5-9,70-80"])
def test_extents_are_read_as_they_are_written(text: str) -> None:
    assert spans_text(spans_of(text)) == text


@pytest.mark.parametrize("text", ["5", "-5", "5-", "5-5", "6-5", "0-5,4-9", "0-5,", "a-b", "0x1-5", "1-2-3", "9" * 30 + "-1"])
def test_other_texts_are_no_extents(text: str) -> None:
    with pytest.raises(ValueError, match="no extent"):
        spans_of(text)


GOOD = {"offset_bytes": "0", "length_bytes": "1024", "digest": "00" * 16, "round": "b1", "last": "true"}


def _batch(told: dict[str, str]) -> Batch:
    return Batch("v1", 1, 7, 0, bytes([Kind.VERIFY]), b"\0", [0], [0], [0], b"", {0: told})


def test_a_mark_says_what_its_attributes_say() -> None:
    assert verify_mark(_batch(GOOD), 0) == VerifyMark(Position(1, 7), 0, 1024, bytes(16), "b1", True)
    assert verify_mark(_batch(GOOD | {"last": "false"}), 0).last is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset_bytes": "-1"},
        {"offset_bytes": ""},
        {"length_bytes": "0"},
        {"length_bytes": str(VERIFY_BYTES_MAX + 1)},
        {"digest": "00"},
        {"digest": "x" * 32},
        {"round": ""},
        {"round": "r" * 300},
    ],
)
def test_a_mark_that_says_nonsense_is_none(wrong: dict[str, str]) -> None:
    assert verify_mark(_batch(GOOD | wrong), 0) is None


# --- the session


def _world(made: Script, **more: object) -> World:
    return World(SIZE, stamped(made.maker.messages), replace(Config(), target=TargetConfig()), **more)


def _flip(world: World, *offsets: int) -> None:
    for held in (world.cached, world.durable):
        for at in offsets:
            held[at] ^= 1


def test_verify_marks_cut_the_window_where_they_stand() -> None:
    """One message overwrites the same bytes before and after the mark; each digest is true at one point only."""
    made = script(SIZE, 1)
    lead = [write(0, b"first")]
    told = made.digest_mark(0, SIZE, lead, last=True)
    made.maker.batch(*lead, told, write(0, b"other"))
    world = _world(made, poll_messages_max=9)
    world.live()
    assert (world.facts.verify_mismatches, world.facts.verify_done) == (0, "b0")
    assert world.facts.proved_position == Position(1, made.maker.sequence - 1)
    assert world.durable == made.image()
    assert [what for what, _ in world.history].count("sync") == 1, "a mark costs no sync of its own"


def test_a_flipped_byte_is_named_and_its_chunk_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    made = script(SIZE, 1)
    made.maker.batch(write(0, bytes(SIZE)))
    world = _world(made)
    world.live()
    _flip(world, 1500, 3000)
    _quiet_round(made)
    world.messages = stamped(made.maker.messages)
    world.live()
    lines = [one for one in caplog.records if one.message == "verify_mismatch"]
    first = made.maker.sequence - 2
    assert [(one.levelname, one.fields["volume"], one.fields["position"]) for one in lines] == [
        ("ERROR", "v1", Position(1, first)),
        ("ERROR", "v1", Position(1, first + 1)),
    ]
    assert [(one.fields["offset_bytes"], one.fields["length_bytes"]) for one in lines] == [(1024, 1024), (2048, 1024)]
    (request,) = world.asked
    assert (request.kind, request.volume, request.id) == ("resync", "v1", f"verify-v1-{Position(1, first)}-target")
    assert dict(request.attributes) == {"reason": "verify_mismatch", "gap": "", "extents": "1024-3072"}
    assert (world.facts.round_mismatches, world.facts.repairs_open, world.facts.proved_position) == (2, 1, None)
    assert (world.facts.consistent_at, world.facts.verify_ended[-1].offsets) == (None, (1024, 2048))
    made.maker.batch(write(1024, bytes(2048)))
    world.messages = stamped(made.maker.messages)
    world.live()
    assert (world.facts.repairs_open, world.facts.consistent_at) == (0, made.maker.last)


def _quiet_round(made: Script) -> None:
    """A round in one message, without writes in between."""
    made.rounds += 1
    marks = [made.digest_mark(at, CHUNK, [], last=at + CHUNK == SIZE) for at in range(0, SIZE, CHUNK)]
    made.maker.batch(*marks)


def test_what_verification_found_survives_a_restart() -> None:
    made = script(SIZE, 1)
    made.maker.batch(write(0, bytes(SIZE)))
    made.maker.batch(made.digest_mark(0, SIZE, [], last=True))
    world = _world(made)
    world.live()
    _flip(world, 7)
    made.rounds += 1
    made.maker.batch(made.digest_mark(0, SIZE, [], last=True))
    world.messages = stamped(made.maker.messages)
    world.live()
    found = world.facts
    assert (found.verify_mismatches, found.round_mismatches, found.verify_done, found.repairs_open) == (1, 1, "b1", 1)
    assert found.proved_position is not None
    world.asked.clear()
    world.facts = replace(world.facts, verify_mismatches=0, proved_position=None, repairs_open=0, verify_done=None)
    world.live()
    told = world.facts
    assert (told.verify_mismatches, told.proved_position, told.repairs_open) == (1, found.proved_position, 1)
    assert (told.verify_done, told.round_mismatches, told.verify_ended) == ("b1", 1, found.verify_ended)
    assert world.asked == [], "it was asked for and written down"


def test_a_request_that_a_crash_swallowed_is_made_again_under_its_name() -> None:
    made = script(SIZE, 1)
    world = _world(made)
    world.live()
    _flip(world, 7)
    made.maker.batch(made.digest_mark(0, SIZE, [], last=True))
    world.messages = stamped(made.maker.messages)
    names = set()
    for _ in range(2):  # before the request; then behind it, before the checkpoint that would know of it
        world.cut_before_step = world.steps + 1
        with pytest.raises(PowerCut):
            world.live()
        names |= {one.id for one in world.asked}
        assert world.checkpoint.verify.unasked == ((0, SIZE),)
        assert world.checkpoint.label.consistent_at is None
    world.cut_before_step = None
    world.live()
    assert {one.id for one in world.asked} == names and len(names) == 1
    assert world.checkpoint.verify.mismatches == 1


def test_marks_are_not_compared_before_a_crashed_run_is_caught_up_with() -> None:
    made = script(SIZE, 1)
    made.maker.batch(made.digest_mark(0, SIZE, [], last=True, wrong=True), mark(Kind.HEARTBEAT))
    made.batch()
    world = _world(made)
    world.checkpoint = None
    world.messages = stamped(made.maker.messages)
    world.live()
    assert world.facts.verify_mismatches == 1, "compared in an ordinary life"
    crashed = _world(made)
    crashed.messages = world.messages[:2]
    crashed.live()
    crashed.messages = world.messages
    crashed.checkpoint = replace(crashed.checkpoint, label=replace(crashed.checkpoint.label, consistent_at=None))
    crashed.live()
    assert crashed.facts.verify_mismatches == 0
    assert [(one.round, one.complete) for one in crashed.facts.verify_ended] == [("b0", False)]
