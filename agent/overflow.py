"""Overflow: what a write does that finds the buffer full (design section 8).

`bitmap`: it does not wait; order is lost, and said. `throttle`: it waits, up to a limit a write, then the same. And whatever the policy: a
resync that was thrown back `RELAPSES_MAX` times is let through by holding the volume's writes to what Kafka takes, for as
long as the broker answers (design rule 5).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent import ring as layout
from agent.allocator import KeepWaiting
from agent.modes import Mode, ModeKeeper
from agent.ring import VolumeRing

RELAPSES_MAX = 3
ANSWERS_S_MAX = 5.0
BITMAP_POLICY = "bitmap"


class Overflow:
    """The policy of one volume. `watch` is called by the keeper, all else by any thread."""

    def __init__(
        self,
        ring: VolumeRing,
        modes: ModeKeeper,
        policy: str = BITMAP_POLICY,
        throttle_s_max: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._words = ring.words
        self._modes = modes
        self._policy = policy
        self._throttle_s_max = throttle_s_max
        self._clock = clock
        self._acked = self._words[layout.W_ACKED]
        self._answered_s = clock()

    @property
    def holding(self) -> bool:
        """Tell whether writes are held so that a resync comes to its end."""
        return self._words[layout.W_RELAPSES] >= RELAPSES_MAX and self._modes.mode in (Mode.RESYNC, Mode.SYNC)

    def patience(self) -> KeepWaiting:
        """Return how long one write waits for room: asked before each wait."""
        if self.holding:
            return self._while_kafka_answers
        if self._policy == BITMAP_POLICY:
            return _never
        until_s = self._clock() + self._throttle_s_max
        return lambda: self._clock() < until_s and self._modes.mode is not Mode.BITMAP

    def watch(self) -> None:
        """Look whether Kafka has taken anything."""
        acked = self._words[layout.W_ACKED]
        if acked != self._acked or acked == self._words[layout.W_HEAD]:
            self._acked, self._answered_s = acked, self._clock()

    def reason(self) -> str:
        """Say why the buffer is full."""
        silent_s = self._clock() - self._answered_s
        if silent_s >= ANSWERS_S_MAX:
            return f"the buffer is full: Kafka has acknowledged nothing for {silent_s:.0f} s"
        return "the buffer is full: more is written than Kafka takes"

    def _while_kafka_answers(self) -> bool:
        return self._modes.mode is not Mode.BITMAP and self._clock() - self._answered_s < ANSWERS_S_MAX


def _never() -> bool:
    return False
