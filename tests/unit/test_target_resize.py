"""The target follows a volume that grows and shrinks, with a power cut at any step of it and at any step of the way back."""

from __future__ import annotations

import pytest

from stream.record import Kind
from tests.journal_maker import mark, write
from tests.target_script import Script, script
from tests.target_world import PowerCut, World, stamped

VOLUME_BYTES = 8192
STEPS_MAX = 100


def _resize(made: Script, size_bytes: int) -> None:
    made.size_bytes = size_bytes
    made.maker.batch(write(0, b"before"), mark(Kind.RESIZE, size_bytes=str(size_bytes)), write(size_bytes - 3, b"end"))


def _grow(made: Script) -> None:
    _resize(made, 12288)


def _shrink(made: Script) -> None:
    made.maker.batch(write(VOLUME_BYTES - 100, b"\1" * 100))
    made.maker.batch(write(VOLUME_BYTES - 50, b"\2" * 50))
    _resize(made, 4096)


def _shrink_and_grow(made: Script) -> None:
    _shrink(made)
    _resize(made, VOLUME_BYTES)


def _shrink_and_grow_in_one_message(made: Script) -> None:
    small, large = (mark(Kind.RESIZE, size_bytes=str(size)) for size in (4096, VOLUME_BYTES))
    made.maker.batch(write(4090, b"\3" * 100), small, write(4000, b"\4" * 96), large, write(8000, b"\5"))


def _new_epoch(made: Script) -> None:
    made.size_bytes = 4096
    made.epoch(clean=True)


@pytest.mark.parametrize("change", [_grow, _shrink, _shrink_and_grow, _shrink_and_grow_in_one_message, _new_epoch])
@pytest.mark.parametrize("polled", [1, 9])
def test_a_resize_survives_a_power_cut_at_any_step(change, polled: int) -> None:
    made = script(VOLUME_BYTES, 7)
    made.maker.batch(write(0, b"\7" * VOLUME_BYTES))
    change(made)
    made.batch()
    cuts = 0
    for first in range(STEPS_MAX):
        for second in range(STEPS_MAX):
            world = World(VOLUME_BYTES, stamped(made.maker.messages), poll_messages_max=9)
            for cut, messages in ((first, 9), (second, polled)):
                world.cut_before_step, world.poll_messages_max = world.steps + cut, messages
                try:
                    world.live()
                except PowerCut:
                    cuts += 1
            ended = world.steps < world.cut_before_step
            world.cut_before_step = None
            world.live()
            assert world.durable == made.image(), f"cut before step {first}, then before step {second} of the next life"
            assert world.checkpoint.label.consistent_at == made.maker.last
            assert world.checkpoint.sizes == (made.size_bytes,)
            if ended:
                break
        if second == 0:
            break
    assert cuts > 10
