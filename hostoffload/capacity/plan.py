"""A plan: everything that is reckoned from one workload and the config in force, and its facts as `--json` prints them. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from history.retention_table import RetentionTable, parse_table
from hostoffload.capacity import needs
from hostoffload.capacity.figures import span
from hostoffload.capacity.needs import Bandwidth, Buffer, Kafka, Store
from hostoffload.capacity.verdicts import Verdict, verdicts
from hostoffload.capacity.workload import Workload
from stream.config import Config

WINDOWS_S = (10, 60, 300, 3600, 86_400)
"""Windows in which overwrites are counted, beside those of the retention table."""
SHORT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`unknown` says in sentences what could not be told, and what would tell it."""

    workload: Workload
    bandwidth: Bandwidth
    kafka: Kafka
    store: Store
    buffer: Buffer
    config: tuple[Verdict, ...]
    unknown: tuple[str, ...]

    @property
    def suffices(self) -> bool:
        """Tell whether nothing that was asked for, or that the config promises, is known to be out of reach."""
        return all(one.suffices is not False for one in self.config)

    def facts(self) -> dict[str, Any]:
        """Return all figures, those not known as None."""
        seen = self.workload
        workload = {name: getattr(seen, name) for name in ("source", "seconds", "writes", "payload_bytes", "writes_per_s", "trimmed_bytes")}
        workload |= {name: getattr(seen, name) for name in ("size_bytes", "ratio", "fold_ratio")}
        overwrites = None
        if seen.overwrites is not None:
            overwrites = [asdict(one) | {"saved_share": one.saved_share} for one in seen.overwrites]
        store = asdict(self.store)
        for told, one in zip(store["levels"], self.store.levels, strict=True):
            told |= {"bytes": one.bytes}
        return {
            "workload": workload,
            "bandwidth": asdict(self.bandwidth),
            "kafka": asdict(self.kafka),
            "overwrites": overwrites,
            "store": store,
            "buffer": asdict(self.buffer),
            "config": [asdict(one) for one in self.config],
            "suffices": self.suffices,
            "unknown": list(self.unknown),
        }


def windows_s(config: Config) -> tuple[int, ...]:
    """Return the windows in which overwrites are to be counted: the usual ones and the spans of the retention table. Raises ConfigError."""
    steps = parse_table(config.history.retention).steps
    return tuple(sorted({*WINDOWS_S, *(step.span_ns // 10**9 for step in steps)}))


def make_plan(workload: Workload, config: Config, outage_s: float | None = None) -> Plan:
    """Reckon everything. Raises ConfigError for a retention table that can't be read."""
    table = parse_table(config.history.retention)
    buffer = needs.buffer(workload, config, outage_s)
    kafka = needs.kafka(workload, config)
    store = needs.store(workload, config, table)
    told = verdicts(workload, config, buffer, kafka, store)
    return Plan(workload, needs.bandwidth(workload), kafka, store, buffer, told, tuple(_unknown(workload, table)))


def _unknown(workload: Workload, table: RetentionTable) -> list[str]:
    told = []
    if workload.interval_s > 1 + 0.1:
        told.append(f"The busiest second: what was read has a figure each {span(workload.interval_s)} only.")
    if workload.ratio is None:
        told.append("How well the data compresses: journal and store are given as if not at all. `--ratio`, or a pass-through, tells it.")
    if workload.overwrites is None:
        told.append(f"What overwrites save: {workload.overwrites_unknown}. A trace of blkparse, or a pass-through, tells it.")
    else:
        longest = max((step.span_ns // 10**9 for step in table.steps), default=0)
        seen = {one.window_s for one in workload.overwrites}
        missing = [step.span_ns // 10**9 for step in table.steps if step.span_ns // 10**9 not in seen]
        if missing:
            spans = ", ".join(span(one) for one in missing)
            told.append(f"What overwrites save in a fold of {spans}: it takes as long a watch, {span(longest)} for all; bounds are given.")
    if workload.size_bytes is None:
        told.append("The volume's size, and with it the first copy and the snapshot. `--size` tells it.")
    if workload.seconds < SHORT_S:
        told.append(f"Whether these {span(round(workload.seconds))} are like a whole day: what is given a day takes them for that.")
    return told
