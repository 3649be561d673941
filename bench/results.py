"""What was measured, and what it must be: values, goals, and what is made of them.

Every ratio is the median of the ratios of one round each (both servers measured within seconds of each other), never a ratio of
medians: on a shared machine the rounds drift, the pairs do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

RATIO_MIN = 0.9
RATIO_LOADS = ("4k QD32", "64k QD8", "1M QD4")
END_TO_END_MB_PER_S_MIN = 60.0
RPO_P50_MS_MAX = 25.0
RPO_P99_MS_MAX = 250.0


@dataclass(frozen=True, slots=True)
class Round:
    """One server under one load, once. `durable_mb_per_s` counts until the publisher's other side had everything."""

    writes_per_s: float
    mb_per_s: float
    p50_us: float
    p99_us: float
    durable_mb_per_s: float
    cpu_s_per_gb: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load on several servers; `rounds[server][i]` of all servers were measured together. The first server is the yardstick."""

    load: str
    rounds: dict[str, list[Round]]

    @property
    def servers(self) -> list[str]:
        return list(self.rounds)

    def median(self, server: str, what: str) -> float:
        """Return the median of one field of a server's rounds."""
        return statistics.median(getattr(one, what) for one in self.rounds[server])

    def ratio(self, server: str) -> float:
        """Return the median, over rounds, of the server's writes a second divided by the yardstick's."""
        return statistics.median(mine.writes_per_s / theirs.writes_per_s for mine, theirs in self._pairs(server))

    def added_us(self, server: str, what: str) -> float:
        """Return the median, over rounds, of what the server takes longer than the yardstick."""
        return statistics.median(getattr(mine, what) - getattr(theirs, what) for mine, theirs in self._pairs(server))

    def _pairs(self, server: str) -> Iterator[tuple[Round, Round]]:
        return zip(self.rounds[server], self.rounds[self.servers[0]], strict=True)


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast writes reach the replica: from the first write to the checkpoint that has the last one."""

    bytes: int
    captured_s: float
    published_s: float
    applied_s: float

    @property
    def mb_per_s(self) -> float:
        return self.bytes / 1e6 / self.applied_s


@dataclass(frozen=True, slots=True)
class Lag:
    """Age of records when the replica durably had them, at a fixed rate."""

    load: str
    records: int
    mb_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    checkpoints: int


@dataclass(slots=True)
class Results:
    """Everything of one run."""

    machine: dict[str, Any]
    saturated: list[Comparison] = field(default_factory=list)
    paced: list[Comparison] = field(default_factory=list)
    throughput: Throughput | None = None
    lags: list[Lag] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    error: str | None = None

    def misses(self) -> list[str]:
        """Return a sentence for each goal that was measured and missed."""
        missed = []
        for one in self.saturated:
            discarding = one.servers[1]
            if one.load in RATIO_LOADS and (ratio := one.ratio(discarding)) < RATIO_MIN:
                missed.append(f"{one.load}: {ratio:.2f} of {one.servers[0]} with a publisher that discards, the goal is {RATIO_MIN}")
        if self.throughput is not None and self.throughput.mb_per_s < END_TO_END_MB_PER_S_MIN:
            missed.append(f"end to end: {self.throughput.mb_per_s:.0f} MB/s, the goal is {END_TO_END_MB_PER_S_MIN:.0f}")
        for lag in self.lags[:1]:
            if lag.p50_ms > RPO_P50_MS_MAX or lag.p99_ms > RPO_P99_MS_MAX:
                missed.append(
                    f"RPO lag at {lag.load}: p50 {lag.p50_ms:.0f} ms, p99 {lag.p99_ms:.0f} ms, "
                    f"the goal is {RPO_P50_MS_MAX:.0f} and {RPO_P99_MS_MAX:.0f}"
                )
        return missed

    @property
    def busy(self) -> bool:
        """Tell whether other work had more than half of the machine when the run began."""
        load = self.machine.get("load_before")
        return load is not None and load[0] > self.machine["cpus"] / 2

    def key_figure(self) -> str:
        """Return the line that a run ends with."""
        told = [f"{one.load} {one.ratio(one.servers[1]):.2f}" for one in self.saturated if one.load in RATIO_LOADS]
        line = f"agent ÷ nbdkit: {', '.join(told)}"
        if self.throughput is not None:
            line += f" | end to end {self.throughput.mb_per_s:.0f} MB/s"
        if self.lags:
            line += f" | RPO lag p50 {self.lags[0].p50_ms:.1f} ms, p99 {self.lags[0].p99_ms:.0f} ms"
        return line

    def as_json(self) -> dict[str, Any]:
        """Return everything, derived figures included, as JSON takes it."""
        return asdict(self) | {
            "ratios": {one.load: {server: one.ratio(server) for server in one.servers[1:]} for one in self.saturated},
            "added_us": {
                one.load: {server: {what: one.added_us(server, what) for what in ("p50_us", "p99_us")} for server in one.servers[1:]}
                for one in self.paced
            },
            "end_to_end_mb_per_s": None if self.throughput is None else self.throughput.mb_per_s,
            "missed": self.misses(),
            "key_figure": self.key_figure(),
        }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile of sorted values, of which there is at least one."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, rank - 1)]
