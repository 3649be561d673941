"""A workload as it was seen: writes by interval of time, and how much they overwrite. Pure.

Made by `trace` and `watch`, read by `needs`. Whatever was not seen is None and has a reason in words: nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from statistics import median

SLACK_S = 0.1
"""An interval that a clock cut this much short still counts as the one that was meant."""

QUANTILE = 0.95
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time and the writes that ended in it: payload alone, zeroes and trims carry none."""

    seconds: float
    payload_bytes: int
    writes: int

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.payload_bytes < 0 or self.writes < 0:
            raise ValueError(f"not an interval: {self}")


@dataclass(frozen=True, slots=True)
class Overwrite:
    """What was written in `windows` complete windows of `window_s` each, and what of it the last write of each block left.

    `unique_bytes` counts blocks of `overwrites.BLOCK_BYTES` whole, once a window, and is never above `written_bytes`.
    """

    window_s: int
    windows: int
    written_bytes: int
    unique_bytes: int

    @property
    def unique_bytes_each(self) -> float:
        """Return the mean of one window: what a fold of that span would hold."""
        return self.unique_bytes / self.windows

    @property
    def saved_share(self) -> float:
        """Return the share of what was written that folding drops, 0 if nothing was written."""
        return 1 - self.unique_bytes / self.written_bytes if self.written_bytes else 0.0


@dataclass(frozen=True)
class Workload:
    """What was seen of one volume. Intervals follow each other without a break.

    `overwrites` has the windows that were complete at least once; None: not known, and `overwrites_unknown` says why.
    `ratio` and `fold_ratio` are payload divided by its compressed size under the codec of the journal and of folds, None: not seen.
    `size_bytes` is the volume's size, `trimmed_bytes` what was trimmed or zeroed; None: not known.
    """

    source: str
    intervals: Sequence[Interval]
    overwrites: Sequence[Overwrite] | None = None
    overwrites_unknown: str = ""
    ratio: float | None = None
    fold_ratio: float | None = None
    size_bytes: int | None = None
    trimmed_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.intervals:
            raise ValueError("a workload without a moment")

    @cached_property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.intervals)

    @cached_property
    def payload_bytes(self) -> int:
        return sum(one.payload_bytes for one in self.intervals)

    @cached_property
    def writes(self) -> int:
        return sum(one.writes for one in self.intervals)

    @cached_property
    def interval_s(self) -> float:
        """Return the usual length of an interval: nothing shorter can be told."""
        return median(one.seconds for one in self.intervals)

    @property
    def bytes_per_s(self) -> float:
        """Return the mean rate."""
        return self.payload_bytes / self.seconds

    @property
    def writes_per_s(self) -> float:
        return self.writes / self.seconds

    def quantile(self, share: float = QUANTILE) -> float:
        """Return the rate in bytes a second that this share of the intervals stay at or below (nearest rank)."""
        rates = sorted(one.payload_bytes / one.seconds for one in self.intervals)
        return rates[max(0, ceil(share * len(rates) - ROUNDING) - 1)]

    def busiest(self, window_s: float) -> float | None:
        """Return the highest rate in bytes a second over whole intervals that follow each other and last `window_s` together, or a little
        more where they do not fit. None: intervals are longer than that, or all of them together shorter."""
        if self.interval_s > window_s + SLACK_S:
            return None
        rates = [payload / seconds for seconds, payload, _ in self._runs(window_s - SLACK_S)]
        return max(rates, default=None)

    def most(self, window_s: float) -> tuple[int, int] | None:
        """Return payload bytes and writes that no stretch of `window_s` exceeded, wherever it began: an upper bound, each of its own.

        The stretch may begin anywhere in an interval, so one interval more is counted. None: not watched that long.
        """
        if self.seconds < window_s:
            return None
        payloads, counts = [0], [0]
        for first, (_, payload, writes) in zip(self.intervals, self._runs(window_s, skip=1, whole=False), strict=True):
            payloads.append(first.payload_bytes + payload)
            counts.append(first.writes + writes)
        return max(payloads), max(counts)

    def _runs(self, least_s: float, *, skip: int = 0, whole: bool = True) -> Iterator[tuple[float, int, int]]:
        """Yield seconds, payload and writes of the shortest run that lasts `least_s`, for each interval that is `skip` before its first.

        `whole`: only those that last that long; else also the shorter ones at the end.
        """
        end, seconds, payload, writes = skip, 0.0, 0, 0
        count = len(self.intervals)
        for first in range(skip, count + skip):
            while end < count and (seconds < least_s or end <= first):
                seconds += self.intervals[end].seconds
                payload += self.intervals[end].payload_bytes
                writes += self.intervals[end].writes
                end += 1
            if seconds >= least_s or not whole:
                yield seconds, payload, writes
            if first < count:
                seconds -= self.intervals[first].seconds
                payload -= self.intervals[first].payload_bytes
                writes -= self.intervals[first].writes
