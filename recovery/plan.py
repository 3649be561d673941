"""A plan and the moment that it leads to: what the planner returns, as values."""

from __future__ import annotations

from dataclasses import dataclass

from recovery.point import format_time
from recovery.reach import Part
from stream.position import Position


@dataclass(frozen=True, slots=True)
class Moment:
    """A recovery point: where it stands, and when it was captured."""

    position: Position
    capture_time_ns: int

    def __str__(self) -> str:
        return f"{self.position} ({format_time(self.capture_time_ns)})"


@dataclass(frozen=True, slots=True)
class Plan:
    """How a volume's bytes at a recovery point are put together: `parts` one over the other, oldest first."""

    volume: str
    moment: Moment
    size_bytes: int
    parts: tuple[Part, ...]

    @property
    def position(self) -> Position:
        return self.moment.position


def told_nearest(before: Moment | None, after: Moment | None) -> str:
    """Return the nearest good points as a sentence."""
    if before is None and after is None:
        return "No other point is near."
    told = [f"{word} {moment}" for word, moment in (("before:", before), ("after:", after)) if moment is not None]
    return f"The nearest good points, {', '.join(told)}."
