"""The agent's clock: wall-clock time that never goes backward, shared by both processes through the ring (design rule 9).

It is the monotonic clock plus an offset in shared memory, which only the keeper thread moves. It follows the wall clock forward at
once; a wall clock that was set back is approached slowly, at `SLEW` of real time, so that capture times keep their distances and lags
stay true meanwhile. A jump is told, and recorded in the stream by a heartbeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence

from agent.ring import W_CLOCK_OFFSET_NS

SLEW = 0.1
JUMP_NS_MIN = 1_000_000_000


class AgentClock:
    """Keep the offset of one volume's clock. One thread uses it."""

    def __init__(
        self,
        words: MutableSequence[int],
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._words = words
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._tended_ns = monotonic_ns()
        self._seen_ns = wall_ns() - self._tended_ns
        words[W_CLOCK_OFFSET_NS] = max(words[W_CLOCK_OFFSET_NS], self._seen_ns)

    def tend(self) -> int:
        """Follow the wall clock; return by how many ms it jumped since the last call (negative: back), 0 if it did not."""
        now_ns = self._monotonic_ns()
        wanted_ns, passed_ns, self._tended_ns = self._wall_ns() - now_ns, now_ns - self._tended_ns, now_ns
        jump_ns, self._seen_ns = wanted_ns - self._seen_ns, wanted_ns
        ahead_ns = self._words[W_CLOCK_OFFSET_NS] - wanted_ns
        if ahead_ns < 0:
            self._words[W_CLOCK_OFFSET_NS] = wanted_ns
        elif ahead_ns > 0:
            self._words[W_CLOCK_OFFSET_NS] -= min(ahead_ns, int(passed_ns * SLEW))
        return jump_ns // 1_000_000 if abs(jump_ns) >= JUMP_NS_MIN else 0


def now_ns(words: MutableSequence[int]) -> int:
    """Return the agent's time of a volume, ns since 1970: what capture times are told by and lags are counted against."""
    return time.monotonic_ns() + words[W_CLOCK_OFFSET_NS]
