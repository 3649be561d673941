"""A target that the journal left behind: what the store has, it reads there; what nobody has, the host is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cx_consumers.checkpoint import Label
from cx_consumers.target_delay import check_delay
from history.store import open_existing
from stream.config import Config, KafkaConfig, TargetConfig
from stream.errors import ConfigError, ResyncError
from stream.position import Position
from stream.record import Kind
from tests.history_maker import damage, stored
from tests.journal_maker import mark, write
from tests.target_script import EVENTS, Script, play, script
from tests.target_world import World, stamped

VOLUME_BYTES = 4096
TOPIC_ID = "journal-id"


def _world(made: Script, mode: str = "hold", **more: object) -> World:
    config = replace(Config(), target=TargetConfig(during_resync=mode))
    return World(VOLUME_BYTES, stamped(made.maker.messages), config, topic_id=TOPIC_ID, **more)


def _more(world: World, made: Script) -> None:
    world.messages = stamped(made.maker.messages)


def _behind(*, seals: int = 3) -> tuple[Script, World, Position]:
    """A target that stopped, then a lot of history, of which the journal keeps the last message and the store has all."""
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    stood_at = world.checkpoint.chain.position
    for event in EVENTS * 2:
        play(made, event)
    made.batch()
    _more(world, made)
    end = len(world.messages)
    world.store = stored(made.maker.messages, [end * step // seals for step in range(1, seals + 1)]).store
    world.log_start = end - 1
    return made, world, stood_at


def test_what_the_journal_no_longer_has_comes_from_the_store() -> None:
    made, world, _ = _behind()
    world.live()
    assert world.asked == []
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
    assert world.checkpoint.chain.digest == made.maker.digest
    assert world.checkpoint.chain.kafka_offset == len(world.messages)


def test_a_store_that_ends_where_the_journal_goes_on_is_enough() -> None:
    made, world, _ = _behind()
    world.store = stored(made.maker.messages, [len(world.messages) - 1]).store
    world.live()
    assert (world.asked, world.durable) == ([], made.image())


def test_a_store_that_ends_too_early_is_lacking_and_the_host_is_asked() -> None:
    made, world, stood_at = _behind()
    world.store = stored(made.maker.messages, [len(world.messages) - 2]).store
    world.live()
    assert [one.attributes["gap"] for one in world.asked] == [str(stood_at)]
    assert "the store ends at" in world.facts.note
    assert world.checkpoint.label == Label()


def test_without_a_store_the_host_is_asked_and_told_why() -> None:
    _, world, stood_at = _behind()
    world.store = None
    world.live()
    assert [one.attributes["gap"] for one in world.asked] == [str(stood_at)]
    assert "there is no store" in world.facts.note


@pytest.mark.parametrize("part", ["header", "block"])
def test_a_damaged_segment_is_lacking_and_named(part: str) -> None:
    made, world, stood_at = _behind()
    name = [found.name for found in world.store.list()][1]
    size = len(world.store.get(name))
    damage(world.store, name, 60 if part == "header" else size - 40)
    with pytest.raises(ResyncError, match="can't be used"):
        world.live()
    assert world.checkpoint.chain.position > stood_at, "what came before it is good"
    world.live()  # knows of it
    assert name in world.facts.note
    assert len(world.asked) == 1
    assert world.asked[0].attributes["gap"] == str(world.checkpoint.chain.own_gaps[0].position)
    made.maker.batch(write(0, b"\5" * VOLUME_BYTES))
    made.close(world.checkpoint.chain.own_gaps[0].position)
    _more(world, made)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)


def test_a_segment_that_is_gone_is_lacking() -> None:
    _, world, stood_at = _behind()
    world.store.delete(world.store.list()[1].name)
    world.live()
    assert [one.attributes["gap"] for one in world.asked] == [str(stood_at)]
    assert "nothing between" in world.facts.note


def test_a_segment_with_other_records_is_lacking() -> None:
    """Its names fit; its digests say that it is another history."""
    _, world, _ = _behind()
    other = script(VOLUME_BYTES, 2)
    while len(other.maker.messages) < len(world.messages):
        other.batch()
    world.store = stored(other.maker.messages, [len(world.messages)]).store
    with pytest.raises(ResyncError, match="do not continue"):
        world.live()
    world.live()
    assert len(world.asked) == 1
    assert world.checkpoint.label == Label()


def test_a_new_target_reads_the_history_from_its_beginning() -> None:
    made, world, _ = _behind()
    late = _world(made, store=world.store, log_start=world.log_start)
    late.live()
    assert late.asked == []
    assert late.durable == made.image()
    assert late.checkpoint.label == Label(consistent_at=made.maker.last)


def test_a_gap_that_the_segments_tell_of_is_a_gap_of_the_target_until_its_resync() -> None:
    """Persist too was behind once: it noted the hole and asked for the resync, so the target need not."""
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    made.batch()
    kept = len(made.maker.messages)
    hole_at = made.maker.last
    store = stored(made.maker.messages, [kept]).store
    for _ in range(3):
        made.batch()
    low = len(made.maker.messages) - 1
    made.batch()
    bench = stored(made.maker.messages, [len(made.maker.messages)], store=store, low=low)
    assert [gap.position for gap in bench.asked] == [hole_at]
    _more(world, made)
    world.log_start, world.store = len(world.messages), store
    world.live()
    assert world.asked == [], "persist asked for it"
    assert world.checkpoint.label == Label(consistent_at=hole_at)
    assert (world.facts.held, world.facts.open_gaps, world.facts.gaps) == (True, 1, 1)
    assert world.durable == made.image(hole_at)
    made.maker.batch(write(0, b"\6" * VOLUME_BYTES))
    made.close(hole_at)
    _more(world, made)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
    assert (world.facts.open_gaps, world.facts.gaps) == (0, 1)


@pytest.mark.parametrize("skips", [0, 4])
def test_a_gap_of_the_journal_is_one_in_the_store_too(skips: int) -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    made.batch()
    before = made.maker.last
    made.maker.gap("broker_lost_data")
    made.maker.sequence += skips  # what comes first behind it is taken as it comes
    made.batch()
    made.maker.batch(write(0, b"\6" * VOLUME_BYTES))
    _more(world, made)
    end = len(world.messages)
    world.store, world.log_start = stored(made.maker.messages, [end - 2, end]).store, end
    world.live()
    assert world.checkpoint.label == Label(consistent_at=before)
    assert (world.facts.held, world.facts.gaps) == (True, 1)
    made.close(before)
    made.batch()
    _more(world, made)
    world.live()
    assert world.asked == []
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)


def test_a_split_write_that_a_segment_ends_before_is_whole() -> None:
    made = script(VOLUME_BYTES, 1)
    world = _world(made)
    world.live()
    made.maker.batch(write(0, b"whole"), write(8, b"ha", more=True))
    cut = len(made.maker.messages)
    made.maker.batch(write(10, b"lf"), write(20, b"next"))
    made.batch()
    _more(world, made)
    end = len(world.messages)
    for seals, start in (([cut, end], end), ([cut], cut - 1), ([end], end - 1)):
        here = _world(made, store=stored(made.maker.messages, seals).store, log_start=start, checkpoint=world.checkpoint)
        here.durable[:] = here.cached[:] = world.durable
        here.live()
        assert (here.asked, here.durable) == ([], made.image())


def test_a_restart_behind_the_last_stored_record_goes_on_in_the_journal() -> None:
    """Messages of which nothing is kept stand between the last record and the journal's start: no hole."""
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made)
    world.live()
    made.maker.fence("w2")
    made.maker.fence("w3")
    _more(world, made)
    world.store = stored(made.maker.messages, [len(world.messages)]).store
    made.batch()
    _more(world, made)
    world.log_start = len(world.messages) - 1
    world.live()
    assert (world.asked, world.durable) == ([], made.image())


def test_a_hold_lasts_as_long_as_the_store_keeps_up() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made)
    world.live()
    held_at, image = made.maker.last, bytes(world.durable)
    position = made.position(0)
    made.open(position, "buffer_full")
    made.maker.batch(mark(Kind.GAP_BEGIN, reason="buffer_full"), made.told())
    for _ in range(20):
        made.batch()
    _more(world, made)
    end = len(world.messages)
    world.config = replace(world.config, kafka=KafkaConfig(retention_ms=-1, retention_bytes=1000))
    world.store = stored(made.maker.messages, [end]).store
    world.live()
    assert (world.facts.held, world.facts.note) == (True, None)
    assert (world.checkpoint.label, world.durable) == (Label(consistent_at=held_at), image)
    world.log_start = end - 1  # and then it comes: the held message is gone from the journal
    made.close(position)
    _more(world, made)
    world.live()
    assert world.asked == []
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)


def test_a_hold_becomes_follow_when_the_store_does_not_keep_up() -> None:
    made = script(VOLUME_BYTES, 1)
    made.batch()
    world = _world(made)
    world.live()
    stood = len(made.maker.messages)
    made.open(made.position(0), "buffer_full")
    made.maker.batch(mark(Kind.GAP_BEGIN, reason="buffer_full"), made.told())
    for _ in range(20):
        made.batch()
    _more(world, made)
    world.config = replace(world.config, kafka=KafkaConfig(retention_ms=-1, retention_bytes=1000))
    world.store = stored(made.maker.messages, [stood + 1]).store
    world.live()
    assert not world.facts.held
    assert "given up" in world.facts.note
    assert world.durable == made.image()


@pytest.mark.parametrize(
    ("delay_s", "retention_ms", "has_store", "refused"),
    [(59, 60_000, False, False), (61, 60_000, False, True), (61, 60_000, True, False), (1e5, 60_000, True, True), (1e6, -1, False, False),
     (0, 1, False, False)],
)
def test_a_delay_longer_than_journal_and_store_keep_is_refused(delay_s: float, retention_ms: int, has_store: bool, refused: bool) -> None:
    made, world, _ = _behind()
    world.log_start, world.delay_s = 0, delay_s
    world.config = replace(world.config, kafka=KafkaConfig(retention_ms=retention_ms))
    world.store = world.store if has_store else None
    if refused:
        with pytest.raises(ConfigError, match="longer than journal and store keep: 86400" if has_store else "the journal keeps") as caught:
            world.live()
        assert caught.value.hint
    else:
        world.live()
        assert world.durable == made.image(), "captured years ago"


@pytest.mark.parametrize(
    ("delay_s", "stored_s", "told"),
    [(61, 59.0, "than journal and store keep: 60 s"), (91, 90.0, "keep: 90 s"), (90, 90.0, "keep: 90 s"), (-1, None, "out of range")],
)
def test_a_store_that_keeps_every_write_for_a_while_backs_a_delay_so_long(delay_s: float, stored_s: float | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_delay(delay_s, KafkaConfig(retention_ms=60_000), stored_s=stored_s)
    if stored_s == 90.0:
        check_delay(89, KafkaConfig(retention_ms=60_000), stored_s=stored_s)


def test_a_store_that_is_not_there_is_not_made(tmp_path) -> None:
    assert open_existing(str(tmp_path / "store")) is None
    assert open_existing(f"file://{tmp_path}/store") is None
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    assert open_existing(str(tmp_path / "store")) is not None
