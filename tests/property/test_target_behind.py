"""A target over a journal that retention cuts anywhere, a store sealed anywhere by persisters that overlap, and power cuts.

Whatever is in neither is a gap that the host is asked to close; whatever is in one of them is applied, once and in order. The oracle is
the list of records applied one by one (`tests/journal_maker.py: image`).
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cx_consumers.checkpoint import Label
from history.reader import SegmentReader, list_segments
from stream.config import Config, TargetConfig
from stream.errors import ResyncError
from tests.history_maker import stored
from tests.journal_maker import write
from tests.target_script import EVENTS, play, script
from tests.target_world import PowerCut, World, stamped

VOLUME_BYTES = 8192

events = st.lists(st.sampled_from(EVENTS), max_size=10)


@example(seed=0, before=[], after=["batch", "batch", "batch", "split", "batch", "batch", "duplicate"], mode="hold", lives=[0])
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    before=events,
    after=events,
    mode=st.sampled_from(["hold", "follow"]),
    lives=st.lists(st.integers(0, 25), max_size=4),
)
def test_what_store_and_journal_have_is_applied(seed: int, before: list[str], after: list[str], mode: str, lives: list[int]) -> None:
    made = script(VOLUME_BYTES, seed)
    for event in before:
        play(made, event)
    config = replace(Config(), target=TargetConfig(during_resync=mode, apply_window_bytes_max=1 << 20))
    chance = random.Random(seed)
    world = World(VOLUME_BYTES, stamped(made.maker.messages), config, topic_id="journal-id", seed=seed, poll_messages_max=2)
    if chance.random() < 0.8:
        world.live()
    for event in after:
        play(made, event)
    messages = world.messages = stamped(made.maker.messages)
    end = len(messages)
    first = stored(messages, sorted(chance.sample(range(1, end + 1), min(end, chance.randint(1, 4)))))
    world.store = stored(messages, sorted({*chance.sample(range(1, end + 1), min(end, 2)), end}), store=first.store).store
    for steps in lives:
        world.seed += 1
        world.log_start = chance.randint(world.log_start, end)
        world.cut_before_step = world.steps + steps
        if chance.random() < 0.5:
            world.restart()
        with suppress(PowerCut):
            world.live()
        if world.checkpoint is not None and world.checkpoint.label.consistent_at is not None:
            assert world.durable == made.image(world.checkpoint.label.consistent_at)
    world.cut_before_step = None
    world.log_start = chance.randint(world.log_start, end)
    world.live()
    if world.log_start > stored_to(world) and (world.asked or world.durable != made.image()):
        # the end of the journal is in neither, a duplicate that nobody stored: a target can't know that nothing was lost with it
        assert world.checkpoint.label.consistent_at is None or world.durable == made.image(world.checkpoint.label.consistent_at)
        return
    assert world.asked == []
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
    assert world.checkpoint.chain.digest == made.maker.digest


def stored_to(world: World) -> int:
    """Return the kafka_offset up to which everything is in the store."""
    return SegmentReader(world.store, list_segments(world.store, world.volume)[-1]).header.origin.next_kafka_offset


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), before=events, after=events, mode=st.sampled_from(["hold", "follow"]))
def test_what_neither_has_is_asked_for_and_healed_by_the_resync(seed: int, before: list[str], after: list[str], mode: str) -> None:
    """The store may end too early, lack segments, or both; the label is never wrong, and one copy of the volume ends it."""
    made = script(VOLUME_BYTES, seed)
    for event in before:
        play(made, event)
    config = replace(Config(), target=TargetConfig(during_resync=mode))
    chance = random.Random(seed)
    world = World(VOLUME_BYTES, stamped(made.maker.messages), config, topic_id="journal-id")
    world.live()
    for event in [*after, "batch", "batch"]:
        play(made, event)
    messages = world.messages = stamped(made.maker.messages)
    end = len(messages)
    seals = sorted(chance.sample(range(1, end + 1), min(end, chance.randint(1, 5))))
    world.store = stored(messages, seals).store
    for found in world.store.list():
        if chance.random() < 0.3:
            world.store.delete(found.name)
    world.log_start = chance.randint(world.checkpoint.chain.kafka_offset, end)
    for _ in range(3):
        with suppress(ResyncError):
            world.live()
        if world.checkpoint.label.consistent_at is not None:
            assert world.durable == made.image(world.checkpoint.label.consistent_at)
    gaps = {one.attributes["gap"] for one in world.asked}
    assert gaps == {str(gap.position) for gap in world.checkpoint.chain.own_gaps}
    made.maker.batch(write(0, chance.randbytes(VOLUME_BYTES)))
    made.close(*(gap.position for gap in world.checkpoint.chain.own_gaps))
    world.messages = stamped(made.maker.messages)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label == Label(consistent_at=made.maker.last)
