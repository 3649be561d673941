"""The retention table: how long every write, and how long each coarser step of history, is kept.

Read from `history.retention`, a line such as `any write 24 h, 5 min for 7 d, 1 h for 30 d, 1 d for 365 d`: each step is a level of folds.
Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from history.levels import AS_WRITTEN, SNAPSHOT
from stream.errors import ConfigError

STEPS_MAX = SNAPSHOT - 1
FOR_EVER = 1 << 62
DEFAULT = "any write 24 h, 5 min for 7 d, 1 h for 30 d, 1 d for 365 d"
_UNITS_NS = {"s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_ANY = re.compile(r"any write (?:for )?(ever|\d+ ?(?:s|min|h|d))")
_STEP = re.compile(r"(\d+ ?(?:s|min|h|d)) for (ever|\d+ ?(?:s|min|h|d))")


@dataclass(frozen=True, slots=True)
class Step:
    """One end of a fold every `span_ns` of capture time, kept for `keep_ns`."""

    span_ns: int
    keep_ns: int


@dataclass(frozen=True, slots=True)
class RetentionTable:
    """`any_write_ns`: how long every write is a moment; `steps[k - 1]` is level k."""

    any_write_ns: int
    steps: tuple[Step, ...]

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the levels in use, from the finest on; the last is the snapshot."""
        return (AS_WRITTEN, *range(1, len(self.steps) + 1), SNAPSHOT)

    def keep_ns(self, level: int) -> int:
        """Return how long the moments of a level are kept."""
        return self.any_write_ns if level == AS_WRITTEN else self.steps[level - 1].keep_ns


def parse_table(text: str) -> RetentionTable:
    """Read a table. Raises ConfigError that says what is wrong with it."""
    first, *rest = (part.strip() for part in text.split(","))
    match = _ANY.fullmatch(first)
    if match is None:
        raise _wrong(text, f"{first!r} does not say how long any write is kept")
    any_write_ns = _duration(match[1])
    steps: list[Step] = []
    for part in rest:
        match = _STEP.fullmatch(part)
        if match is None:
            raise _wrong(text, f"{part!r} is no step")
        step = Step(_duration(match[1]), _duration(match[2]))
        if step.span_ns <= (steps[-1].span_ns if steps else 0):
            raise _wrong(text, f"{part!r} is no longer than the step before it")
        if step.keep_ns < (steps[-1].keep_ns if steps else any_write_ns):
            raise _wrong(text, f"{part!r} is kept for less than what is finer")
        steps.append(step)
    if not 1 <= len(steps) <= STEPS_MAX:
        raise _wrong(text, f"it has {len(steps)} steps, 1 to {STEPS_MAX} can be")
    return RetentionTable(any_write_ns, tuple(steps))


def _duration(text: str) -> int:
    if text == "ever":
        return FOR_EVER
    match = re.fullmatch(r"(\d+) ?(\w+)", text)
    assert match is not None, text
    return int(match[1]) * _UNITS_NS[match[2]]


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"history.retention is {text!r}: {why}", hint=f"It looks like this: {DEFAULT}")
