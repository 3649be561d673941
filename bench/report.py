"""A run's results on stdout, as tables, and in a file, as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.results import (
    END_TO_END_MB_PER_S_MIN,
    RATIO_LOADS,
    RATIO_MIN,
    RPO_P50_MS_MAX,
    RPO_P99_MS_MAX,
    Comparison,
    Lag,
    Results,
    Throughput,
)

WIDTH = 110


def show(results: Results) -> None:
    """Print everything measured, what was missed, and the key figure as the last line."""
    console = Console(width=WIDTH, highlight=False)
    if results.saturated:
        console.print(_saturated(results.saturated))
    if results.paced:
        console.print(_paced(results.paced))
    if results.throughput is not None or results.lags:
        console.print(_replication(results.throughput, results.lags))
    if results.busy:
        load, cpus = results.machine["load_before"][0], results.machine["cpus"]
        console.print(f"The machine was busy before the run (load {load:.1f} on {cpus} processors): a goal missed may be met when idle.")
    for reason in results.skipped:
        console.print(f"not measured: {reason}")
    if results.error is not None:
        console.print(f"ENDED EARLY  {results.error}")
    for miss in results.misses():
        console.print(f"MISSED  {miss}")
    print(results.key_figure(), flush=True)


def save(results: Results, folder: Path) -> Path:
    """Write the results as `<time>.json` into the folder; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(results.as_json(), indent=1) + "\n", encoding="utf-8")
    return path


def _saturated(comparisons: list[Comparison]) -> Table:
    table = Table(title="Saturated random writes, medians of the rounds (÷: median of the rounds' ratios to nbdkit)")
    for heading in ("load", "server", "writes/s", "MB/s", "÷ nbdkit", "goal", "durable MB/s", "CPU s/GB"):
        table.add_column(heading, justify="left" if heading in ("load", "server") else "right")
    for one in comparisons:
        for index, server in enumerate(one.servers):
            table.add_row(
                one.load if index == 0 else "",
                server,
                f"{one.median(server, 'writes_per_s'):,.0f}",
                f"{one.median(server, 'mb_per_s'):,.0f}",
                "" if index == 0 else f"{one.ratio(server):.2f}",
                f"≥ {RATIO_MIN}" if index == 1 and one.load in RATIO_LOADS else "",
                "" if index == 0 else f"{one.median(server, 'durable_mb_per_s'):,.0f}",
                f"{one.median(server, 'cpu_s_per_gb'):.2f}",
                end_section=server == one.servers[-1],
            )
    return table


def _paced(comparisons: list[Comparison]) -> Table:
    table = Table(title="Latency at a fixed rate, µs")
    for heading in ("load", "server", "writes/s", "p50", "added", "p99", "added"):
        table.add_column(heading, justify="left" if heading in ("load", "server") else "right")
    for one in comparisons:
        for index, server in enumerate(one.servers):
            table.add_row(
                one.load if index == 0 else "",
                server,
                f"{one.median(server, 'writes_per_s'):,.0f}",
                f"{one.median(server, 'p50_us'):.0f}",
                "" if index == 0 else f"{one.added_us(server, 'p50_us'):+.0f}",
                f"{one.median(server, 'p99_us'):.0f}",
                "" if index == 0 else f"{one.added_us(server, 'p99_us'):+.0f}",
                end_section=server == one.servers[-1],
            )
    return table


def _replication(throughput: Throughput | None, lags: list[Lag]) -> Table:
    table = Table(title="To the replica: agent, broker, CX and target on this machine")
    for heading in ("what", "measured", "goal"):
        table.add_column(heading)
    if throughput is not None:
        told = f"{throughput.mb_per_s:.0f} MB/s ({throughput.bytes / 1e6:.0f} MB: captured {throughput.captured_s:.1f} s"
        told += f", in Kafka {throughput.published_s:.1f} s, applied {throughput.applied_s:.1f} s)"
        table.add_row("64k writes, saturated", told, f"≥ {END_TO_END_MB_PER_S_MIN:.0f} MB/s")
    for index, lag in enumerate(lags):
        told = f"RPO lag p50 {lag.p50_ms:.1f} ms, p99 {lag.p99_ms:.1f} ms, max {lag.max_ms:.0f} ms"
        told += f" ({lag.records:,} records, {lag.mb_per_s:.1f} MB/s)"
        table.add_row(lag.load, told, f"p50 ≤ {RPO_P50_MS_MAX:.0f}, p99 ≤ {RPO_P99_MS_MAX:.0f} ms" if index == 0 else "")
    return table
