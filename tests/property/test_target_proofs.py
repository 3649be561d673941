"""Verify marks at the target: no false alarm, no false proof, whatever happens to journal, power and replica (design rule 26).

The oracle is the list of records applied one by one (`tests/journal_maker.py: image`); digests of marks are made from it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.config import Config, TargetConfig
from tests.journal_maker import write
from tests.target_script import EVENTS, RESIZES, VERIFIES, Script, play, script
from tests.target_world import PowerCut, World, stamped

VOLUME_BYTES = 8192

events = st.lists(st.sampled_from((*EVENTS, *RESIZES, *VERIFIES, *VERIFIES)), max_size=9)
modes = st.sampled_from(["hold", "follow"])


def _world(made: Script, mode: str, polled: int, seed: int) -> World:
    config = replace(Config(), target=TargetConfig(during_resync=mode, apply_window_bytes_max=1 << 20))
    return World(VOLUME_BYTES, stamped(made.maker.messages), config, poll_messages_max=polled, seed=seed)


def _proofs_are_true(world: World, made: Script) -> None:
    for checkpoint, held in world.proofs:
        assert held == made.image(checkpoint.chain.position), f"proved at {checkpoint.verify.proved_position}"


def _known_to_differ_is_not_consistent(world: World) -> None:
    for what, detail in world.history:
        if what == "checkpoint" and detail.verify.repairs:
            assert detail.label.consistent_at is None


def _live(world: World, made: Script, cuts: list[int]) -> None:
    """Live through power cuts, then until the journal's end; what is true at all times is checked after each life."""
    for steps in cuts:
        world.seed += 1
        world.cut_before_step = world.steps + steps
        try:
            world.live()
        except PowerCut:
            _proofs_are_true(world, made)
    world.cut_before_step = None
    world.live()
    _proofs_are_true(world, made)
    _known_to_differ_is_not_consistent(world)


def _copy(made: Script, world: World) -> None:
    """Do what the agent does with requests: copy the extents as they are, as ordinary records."""
    for request in world.asked:
        assert request.attributes["reason"] == "verify_mismatch"
        for one in request.attributes["extents"].split(","):
            start, end = map(int, one.split("-"))
            held = bytes(made.image()[start:end])
            if held:
                made.maker.batch(write(start, held))
    world.asked.clear()
    world.messages = stamped(made.maker.messages)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), told=events, mode=modes, polled=st.integers(1, 9))
def test_a_round_that_nothing_interrupts_proves_and_no_other(seed: int, told: list[str], mode: str, polled: int) -> None:
    made = script(VOLUME_BYTES, seed)
    for event in told:
        play(made, event)
    world = _world(made, mode, polled, seed)
    world.live()
    _proofs_are_true(world, made)
    assert world.facts.proved_position == made.proved
    assert (world.facts.verify_mismatches, world.facts.repairs_open, world.asked) == (0, 0, [])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    before=events,
    after=events,
    mode=modes,
    polled=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 25), max_size=3),
    more_cuts=st.lists(st.integers(0, 25), max_size=3),
)
@pytest.mark.slow
def test_a_flipped_byte_is_found_and_repaired_over_power_cuts(
    seed: int, before: list[str], after: list[str], mode: str, polled: int, cuts: list[int], more_cuts: list[int]
) -> None:
    made = script(VOLUME_BYTES, seed)
    for event in before:
        play(made, event)
    world = _world(made, mode, polled, seed)
    _live(world, made, cuts)
    at = made.chance.randrange(made.size_bytes)
    for held in (world.cached, world.durable):
        held[at] ^= 0x40
    for event in after:
        play(made, event)
    world.messages = stamped(made.maker.messages)
    _live(world, made, more_cuts)
    made.verify()
    world.messages = stamped(made.maker.messages)
    _live(world, made, [])
    mismatches = world.facts.verify_mismatches
    assert mismatches or world.facts.proved_position == made.proved, "repaired by what was written since, or found"
    if world.durable != made.image():
        assert mismatches and world.asked and world.facts.repairs_open
        assert world.facts.consistent_at is None
    _copy(made, world)
    _live(world, made, more_cuts)
    assert world.durable == made.image()
    assert world.facts.repairs_open == 0
    assert world.checkpoint.label.consistent_at == made.maker.last
    made.verify()
    world.messages = stamped(made.maker.messages)
    _live(world, made, [])
    assert world.facts.proved_position == made.proved
    assert world.facts.round_mismatches == 0
    assert world.facts.verify_mismatches == mismatches, "each difference counts once"
