"""`RingLane`: what is received and not served yet lies in a chunk that may become another connection's at any moment."""

from __future__ import annotations

from pathlib import Path

from agent.scratch import Scratch
from agent.session import RingLane
from tests.agent_parts import Parts


def test_what_is_kept_is_moved_before_its_chunk_is_given_away(tmp_path: Path) -> None:
    """Kafka acknowledges all of the chunk in the middle of the turn, and another connection receives into it at once."""
    parts = Parts(tmp_path)
    lane = RingLane(parts.volume, Scratch())
    places = [(lane.number, 0, 5000)]
    lane.chunk[:5000] = b"a" * 5000
    lane.last_sequence = parts.volume.write(parts.slot, 0, lane.chunk[:5000], places, 5000, False)
    lane.tail = 5000
    kept = b"the begin of a request"
    lane.chunk[6000 : 6000 + len(kept)] = kept
    plain = parts.log.reclaim

    def reclaim() -> None:
        parts.deliver()
        plain()
        others = parts.allocator.take(parts.allocator.free_count - 2)
        for number in others:
            parts.pool.chunk(number)[:8192] = b"z" * 8192
        parts.allocator.give(others)

    parts.log.reclaim = reclaim
    lane.turn(lane.chunk[6000 : 6000 + len(kept)])
    assert bytes(lane.chunk[: len(kept)]) == kept
    assert lane.tail == 0
    parts.assert_equal()
