"""Since when regions of a volume have been quiet: the clock of the activity log's sweeps, in generations.

A generation is the regions that were last seen at work before some moment; it is closed with the head of that moment, so that what was done
to them is durable in Kafka when that head is. One byte a region says of which generation it is. Pure, used by the sweeping thread
alone. The reasoning stands in `agent.activity_log`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from agent.activity_file import REGION_BYTES, REGION_SHIFT
from agent.ring import OWED_BYTES

CLEAR_AFTER_S = 30.0
GENERATIONS_MAX = 128  # stamps are bytes: so many, the open one, and some to spare
_STAMPS = 255
_OWED_PIECE_BYTES = 4096
_NOTHING_OWED = bytes(_OWED_PIECE_BYTES)
_ANY = bytes(1) + b"\1" * 255


@dataclass(frozen=True, slots=True)
class Standing:
    """How capture stands at one moment, looked at under the volume's mutex."""

    head: int
    """The last sequence given."""
    acked: int
    """The last sequence that is durable in Kafka, with everything before it."""
    in_flight: Sequence[tuple[int, int]]
    """Extents (start, end) of the operations that entered and have not left, and of the run that is being paid."""
    owed: bytes = b""
    """A copy of the ring's owed map; it may be empty if nothing is owed."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Regions that were last seen before `closed_s`; all that was done to them stands at or before `head`."""

    stamp: int
    closed_s: float
    head: int


class Generations:
    """The generations of a volume's regions: one open, some closed, the oldest first."""

    def __init__(self, regions: bytearray) -> None:
        """Begin with the regions whose byte is 1 in the first generation; those of byte 0 are in none."""
        self._seen = bytearray(regions)
        self._open = 1
        self._closed: deque[Generation] = deque()

    def turn(self, now_s: float, head: int) -> None:
        """Close the open generation and begin another; not if it is empty, or too many are closed: then it stays open."""
        if len(self._closed) < GENERATIONS_MAX and self._seen.find(self._open) >= 0:
            self._closed.append(Generation(self._open, now_s, head))
            self._open = self._open % _STAMPS + 1

    def see(self, first: int, stop: int) -> None:
        """Put regions into the open generation."""
        assert stop <= len(self._seen), "a region outside of the volume"
        self._seen[first:stop] = bytes((self._open,)) * (stop - first)

    def see_standing(self, standing: Standing) -> None:
        """Put what is in flight, owed or being paid into the open generation."""
        for start_bytes, end_bytes in standing.in_flight:
            self.see(start_bytes >> REGION_SHIFT, -(-end_bytes >> REGION_SHIFT))
        for first, stop in _owed_runs(standing.owed):
            self.see(first, min(stop, len(self._seen)))

    def take_expired(self, now_s: float, acked: int) -> list[Generation]:
        """Take out the generations that were quiet for `CLEAR_AFTER_S`, whose head is durable, and that still have regions."""
        expired: list[Generation] = []
        while self._closed and self._closed[0].closed_s + CLEAR_AFTER_S <= now_s and self._closed[0].head <= acked:
            oldest = self._closed.popleft()
            if self._seen.find(oldest.stamp) >= 0:
                expired.append(oldest)
        return expired

    def put_back(self, expired: list[Generation]) -> None:
        """Put back what `take_expired` returned, whole or in part forgotten."""
        self._closed.extendleft(reversed(expired))

    def run(self, generation: Generation, at: int) -> tuple[int, int] | None:
        """Return the first run of its regions at or after `at`; None if there is none."""
        first = self._seen.find(generation.stamp, at)
        return (first, run_end(self._seen, first)) if first >= 0 else None

    def forget(self, first: int, stop: int) -> None:
        """Have the regions in no generation."""
        self._seen[first:stop] = bytes(stop - first)

    def grow(self, count: int) -> None:
        """Have more regions, in no generation yet."""
        self._seen.extend(bytes(count - len(self._seen)))


def run_end(marks: bytearray, at: int) -> int:
    """Return where the run of equal bytes that begins at `at` ends."""
    if at + 1 == len(marks) or marks[at + 1] != marks[at]:
        return at + 1
    found = runs_of(marks[at]).match(marks, at)
    assert found is not None
    return found.end()


@cache
def runs_of(byte: int) -> re.Pattern[bytes]:
    """Return the pattern that finds runs of that byte."""
    return re.compile(re.escape(bytes((byte,))) + b"+")


def _owed_runs(owed: bytes) -> Iterator[tuple[int, int]]:
    """Yield the runs of regions of which something is owed, from the ring's map: one bit for `OWED_BYTES`, so two bytes for a region."""
    assert REGION_BYTES == 16 * OWED_BYTES
    for at in range(0, len(owed), _OWED_PIECE_BYTES):
        piece = owed[at : at + _OWED_PIECE_BYTES]
        if piece == _NOTHING_OWED[: len(piece)]:
            continue
        piece += bytes(len(piece) % 2)
        either = int.from_bytes(piece[::2], "little") | int.from_bytes(piece[1::2], "little")
        mask = either.to_bytes(len(piece) // 2, "little").translate(_ANY)
        for run in runs_of(1).finditer(mask):
            yield at // 2 + run.start(), at // 2 + run.end()
