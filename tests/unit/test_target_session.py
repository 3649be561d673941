"""The target's session through single events, in a world without Kafka and disk (`tests/target_world.py`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cx_consumers.checkpoint import Label
from stream.config import Config, KafkaConfig, TargetConfig
from stream.errors import IntegrityError
from stream.position import ZERO, Position
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.target_script import Script, script
from tests.target_world import PowerCut, World, stamped

VOLUME_BYTES = 4096


def _world(made: Script, mode: str = "hold", **more: object) -> World:
    config = replace(Config(), target=TargetConfig(during_resync=mode))
    return World(VOLUME_BYTES, stamped(made.maker.messages), config, **more)


def _more(world: World, made: Script) -> None:
    world.messages = stamped(made.maker.messages)


def test_a_gap_is_held_and_then_applied_in_one_go() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    before = made.maker.last
    made.maker.batch(write(0, b"still in order"), mark(Kind.HEARTBEAT))
    in_order = made.maker.last
    position = made.position(1)
    made.open(position, "buffer_full")
    made.maker.batch(made.told(), mark(Kind.GAP_BEGIN, reason="buffer_full"), made.told())
    made.batch()
    world = _world(made)
    world.live()
    held_at = Position(1, position.sequence - 1)
    assert held_at > in_order > before
    assert world.checkpoint.label == Label(consistent_at=held_at)
    assert world.durable == made.image(held_at)
    assert (world.facts.held, world.facts.state, world.facts.open_gaps, world.facts.gaps) == (True, "held", 1, 1)
    assert world.facts.waiting_bytes > 0
    made.close(position)
    made.batch()
    _more(world, made)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
    assert (world.facts.held, world.facts.open_gaps, world.facts.gaps, world.facts.waiting_bytes) == (False, 0, 1, 0)


def test_while_a_released_gap_is_applied_the_label_names_its_end() -> None:
    made = script(VOLUME_BYTES, 1)
    made.gap()
    end = made.maker.last
    world = _world(made, poll_messages_max=1)
    world.live()
    named = [detail.label.not_until for what, detail in world.history if what == "checkpoint"]
    assert end in named


def test_follow_applies_as_it_comes_under_a_label_without_an_end() -> None:
    made = script(VOLUME_BYTES, 1)
    made.gap(close=False)
    made.batch()
    world = _world(made, "follow")
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label()
    assert (world.facts.held, world.facts.consistent_at, world.facts.not_until, world.facts.open_gaps) == (False, None, None, 1)


def test_a_first_copy_is_never_held() -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    made.epoch(clean=False, first=True, close=False)
    _more(world, made)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label()
    assert (world.facts.open_gaps, world.facts.gaps) == (1, 0)


def test_a_hold_becomes_follow_before_retention_reaches_it() -> None:
    made = script(VOLUME_BYTES, 1)
    made.gap(close=False)
    made.batch()
    world = _world(made)
    world.config = replace(world.config, kafka=KafkaConfig(retention_ms=-1, retention_bytes=100))
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label()
    assert "given up" in world.facts.note
    assert not world.facts.held


def test_a_journal_cut_above_the_checkpoint_asks_for_one_resync_and_is_healed_by_it() -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    stood_at = world.checkpoint.chain.position
    made.batch()
    made.batch()
    _more(world, made)
    world.log_start = len(world.messages) - 1
    world.live()
    world.live()
    assert {(one.kind, one.volume, one.attributes["gap"]) for one in world.asked} == {("resync", "v1", str(stood_at))}
    assert {one.attributes["reason"] for one in world.asked} == {"retention"}
    assert len({one.id for one in world.asked}) == 1
    assert world.checkpoint.label == Label()
    assert (world.facts.open_gaps, world.facts.gaps) == (1, 1)
    made.maker.batch(write(0, bytes(VOLUME_BYTES)))
    made.close(stood_at)
    _more(world, made)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
    assert (world.facts.open_gaps, world.facts.gaps) == (0, 1)


def test_a_target_that_comes_late_asks_for_a_resync() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made, log_start=len(made.maker.messages) - 1)
    world.live()
    assert [one.attributes["gap"] for one in world.asked] == [str(ZERO)]
    assert world.checkpoint.label == Label()


def test_a_gap_of_its_own_is_asked_for_again_when_order_begins_one() -> None:
    """What was to close it may be what the broker lost, and order's own copy names order's gaps alone."""
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made, log_start=len(made.maker.messages) - 1)
    world.live()
    made.maker.time_ns += 1
    made.maker.gap("broker_lost_data")
    _more(world, made)
    world.live()
    assert [one.attributes["gap"] for one in world.asked] == [str(ZERO)] * 2
    assert len({one.id for one in world.asked}) == 2, "the first request may be answered already"


def test_a_broker_that_lost_the_journals_end_is_a_gap() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made)
    world.live()
    world.log_end = len(world.messages) - 1
    world.live()
    assert [one.attributes["reason"] for one in world.asked] == ["broker_lost_data"]
    assert world.checkpoint.label == Label()


def test_a_topic_made_anew_is_held_at_the_old_position_until_it_is_whole() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made)
    world.live()
    old, image = world.checkpoint.chain.position, bytes(world.durable)
    anew = script(VOLUME_BYTES, 2)
    anew.maker.gap("journal_lost")
    position = anew.maker.open_gaps[-1].position
    world.topic_id, world.messages = "journal-2", stamped(anew.maker.messages)
    world.log_start = len(world.messages) - 1  # what came before the gap is not in the new topic
    world.live()
    assert world.durable == image
    assert world.checkpoint.label == Label(consistent_at=old)
    assert world.checkpoint.topic_id == "journal-2"
    assert "made anew" in world.facts.note
    assert world.facts.held
    anew.maker.batch(write(0, b"\7" * VOLUME_BYTES))
    anew.close(position)
    _more(world, anew)
    world.live()
    assert world.durable == b"\7" * VOLUME_BYTES
    assert world.checkpoint.label == Label(consistent_at=anew.maker.last)


def test_a_write_behind_the_volumes_end_is_refused_before_a_byte() -> None:
    made = script(VOLUME_BYTES, 1)
    made.maker.batch(write(VOLUME_BYTES - 1, b"xy"))
    world = _world(made, poll_messages_max=1)
    with pytest.raises(IntegrityError, match="behind the end of the volume"):
        world.live()
    assert world.durable == made.image(Position(1, made.maker.sequence - 1))


def test_a_split_write_longer_than_a_window_is_applied_in_one() -> None:
    size, piece = 4 << 20, 256 << 10
    made = script(size, 1)
    whole = made.chance.randbytes(10 * piece)
    for index in range(10):
        made.maker.batch(write(index * piece, whole[index * piece : (index + 1) * piece], more=index < 9))
    config = replace(Config(), target=TargetConfig(apply_window_bytes_max=1 << 20))
    world = World(size, stamped(made.maker.messages), config, poll_messages_max=1)
    world.live()
    assert world.durable == made.image()
    assert ("write", (0, len(whole))) in world.history


def test_a_damaged_message_is_named() -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    last = world.messages[-1]
    world.messages[-1] = replace(last, value=last.value[:-9] + bytes([last.value[-9] ^ 1]) + last.value[-8:])
    with pytest.raises(IntegrityError) as caught:
        world.live()
    assert caught.value.facts["topic"] == "ho.v1.journal"
    assert caught.value.facts["kafka_offset"] == len(world.messages) - 1


def test_heartbeats_move_the_position_without_a_write_of_any_kind() -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    steps = world.steps
    for _ in range(5):
        made.maker.batch(mark(Kind.HEARTBEAT))
    _more(world, made)
    world.live()
    assert world.steps == steps + 1, "one checkpoint, by the clean stop"
    assert world.facts.position == world.facts.consistent_at == made.maker.last


def test_after_a_crash_nothing_is_called_consistent_before_all_is_applied_again() -> None:
    """The crash may have left bytes of any message that the journal had."""
    made = script(VOLUME_BYTES, 1)
    for _ in range(6):
        made.batch()
    world = _world(made, poll_messages_max=2, cut_before_step=6)
    with pytest.raises(PowerCut):
        world.live()
    world.cut_before_step, world.polls_max = None, 3
    world.live()
    assert world.checkpoint.chain.whole, "the first copy is through, so only the crash stands against it"
    assert world.checkpoint.chain.kafka_offset < len(world.messages)
    assert world.checkpoint.label.consistent_at is None
    world.polls_max = None
    world.live()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
