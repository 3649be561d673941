"""The collector: reads the reports when Prometheus asks, and makes samples of what they say and is known.

A value that may not be true is left out: facts of a process that is dead, or whose report is older than `FRESH_S_MAX`, and facts that are
None. What is left of a silent process is `hostoffload_process_up` and the age of its report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hostoffload.local_state import LocalState, Report
from hostoffload.metrics import table
from hostoffload.metrics.scope import Scope, age_s, is_fresh

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Samples = dict[str, dict[tuple[str, ...], float]]
"""By metric, then by label values in the table's order: no two samples are of one name and labels, which Prometheus would refuse."""


class ReportCollector(Collector):
    """Collect what one endpoint tells. Thread-safe: nothing is kept."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the table that has a sample now."""
        samples = collected(self._scope, self._scope.read(), time.time_ns())
        for one in table.METRICS:
            if found := samples.get(one.name):
                family = _FAMILIES[one.kind](one.name, one.meaning, labels=one.labels)
                for labels, value in sorted(found.items()):
                    family.add_metric(labels, value)
                yield family


_FAMILIES: dict[str, Any] = {table.GAUGE: GaugeMetricFamily, table.COUNTER: CounterMetricFamily}


def registry_of(scope: Scope) -> CollectorRegistry:
    """Return a registry that has this collector alone: nothing of prometheus_client's own about this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReportCollector(scope))
    return registry


def collected(scope: Scope, local: LocalState, now_ns: int) -> Samples:
    """Return the samples that this state of the folder gives at this time."""
    samples: Samples = {"hostoffload_build_info": {(version("hostoffload"),): 1.0}}
    reports = scope.reports(local)
    _add_processes(samples, scope, local, reports, now_ns)
    fresh = [one for one in reports if is_fresh(one, now_ns)]
    for metric in table.METRICS:
        for fact in metric.facts:
            for report in fresh:
                if report.kind == fact.kind:
                    _add_volumes(samples, metric, fact, report)
    return samples


def _add_volumes(samples: Samples, metric: table.Metric, fact: table.Fact, report: Report) -> None:
    """Add what a report says of each volume; what a newer one of that kind has said before stays."""
    found = samples.setdefault(metric.name, {})
    for volume, facts in report.volumes.items():
        value = fact.read(facts)
        if value is not None:
            known = {"volume": volume, "target": report.instance, **fact.labels}
            found.setdefault(tuple(known[label] for label in metric.labels), value)


def _add_processes(samples: Samples, scope: Scope, local: LocalState, reports: list[Report], now_ns: int) -> None:
    def add(name: str, value: float | None) -> None:
        if value is not None:
            samples.setdefault(name, {})[labels] = value

    ages = {one.pid: age_s(one, now_ns) for one in reports}
    for process in scope.processes(local):
        labels = process.kind, process.name
        add("hostoffload_process_up", float(process.pid is not None))
        if scope.is_supervised and process.kind != "supervisor":
            add("hostoffload_process_restarts", process.restarts)
        if process.pid is not None:
            add("hostoffload_process_start_timestamp_seconds", process.since)
            add("hostoffload_process_resident_memory_bytes", _resident_bytes(process.pid))
            add("hostoffload_process_cpu_seconds", _cpu_s(process.pid))
            add("hostoffload_report_age_seconds", ages.get(process.pid))


def _resident_bytes(pid: int) -> float | None:
    """Return the resident memory of a process (proc(5), statm), None if it can't be seen."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None


def _cpu_s(pid: int) -> float | None:
    """Return the processor time of a process (proc(5), stat: fields 14 and 15), None if it can't be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    except (OSError, IndexError, ValueError):
        return None
