"""The target's session under power cuts at every kind of instant: the label never lies, and the bytes are the source's in the end.

The oracle is the list of records applied one by one (`tests/journal_maker.py: image`).
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from stream.config import Config, TargetConfig
from tests.target_script import EVENTS, RESIZES, VERIFIES, Script, play, script
from tests.target_world import PowerCut, World, stamped

VOLUME_BYTES = 8192

events = st.lists(st.sampled_from((*EVENTS, *RESIZES, *VERIFIES)), max_size=12)


def _world(made: Script, mode: str, poll_messages: int, seed: int) -> World:
    config = replace(Config(), target=TargetConfig(during_resync=mode, apply_window_bytes_max=1 << 20))
    return World(VOLUME_BYTES, stamped(made.maker.messages), config, poll_messages_max=poll_messages, seed=seed)


def _label_is_true(world: World, made: Script) -> None:
    checkpoint = world.checkpoint
    if checkpoint is not None and checkpoint.label.consistent_at is not None:
        at = checkpoint.label.consistent_at
        assert world.durable == made.image(at), f"the label says consistent at {at}"


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), told=events, mode=st.sampled_from(["hold", "follow"]), polled=st.integers(1, 9))
def test_target_applies_everything_once_in_order(seed: int, told: list[str], mode: str, polled: int) -> None:
    made = script(VOLUME_BYTES, seed)
    for event in told:
        play(made, event)
    world = _world(made, mode, polled, seed)
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label.consistent_at == made.maker.last
    assert world.checkpoint.chain.digest == made.maker.digest
    assert world.asked == []
    assert world.facts.verify_mismatches == 0


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    told=events,
    mode=st.sampled_from(["hold", "follow"]),
    polled=st.integers(1, 9),
    lives=st.lists(st.integers(0, 25), max_size=6),
)
def test_target_after_power_cuts(seed: int, told: list[str], mode: str, polled: int, lives: list[int]) -> None:
    made = script(VOLUME_BYTES, seed)
    for event in told:
        play(made, event)
    world = _world(made, mode, polled, seed)
    for steps in lives:
        world.seed += 1
        world.cut_before_step = world.steps + steps
        before = world.checkpoint
        try:
            world.live()
        except PowerCut:
            _label_is_true(world, made)
            if before is not None:
                assert world.checkpoint.chain.position >= before.chain.position
    world.cut_before_step = None
    world.live()
    assert world.durable == made.image()
    assert world.checkpoint.label.consistent_at == made.maker.last
    assert world.checkpoint.verify.mismatches == 0, "no crash makes a false alarm"


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), told=events, mode=st.sampled_from(["hold", "follow"]), polled=st.integers(1, 9))
def test_target_labels_before_bytes(seed: int, told: list[str], mode: str, polled: int) -> None:
    """No byte is written under a checkpoint that promises consistency, and no position is claimed before its bytes are synced."""
    made = script(VOLUME_BYTES, seed)
    for event in told:
        play(made, event)
    world = _world(made, mode, polled, seed)
    world.live()
    label, dirty = None, False
    for what, detail in world.history:
        if what == "checkpoint":
            assert not dirty or detail.chain.position == label.chain.position
            label = detail
        elif what == "write":
            assert label.label.consistent_at is None
            dirty = True
        else:
            dirty = False
