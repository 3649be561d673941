"""The campaign's outcome for people (a table, and the figure as the last line) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.plan import PROCESSES

KINDS = ("kill", "stop", "restart", "reset", "drop")


def show(facts: Mapping[str, Any], failures: list[str]) -> str:
    """Return the table; an outcome that broke off shows what it has."""
    lines = [f"{'fault':10}" + "".join(f"{process:>12}" for process in PROCESSES) + f"{'all':>8}"]
    for kind in KINDS:
        met = facts.get("faults", {}).get(kind, {})
        lines.append(f"{kind:10}" + "".join(f"{met.get(process, 0):12}" for process in PROCESSES) + f"{sum(met.values()):8}")
    copies = facts.get("copies", {})
    lines.append(f"{'copies':10}" + "".join(f"{copies.get(process, {}).get('times', 0):12}" for process in PROCESSES))
    lines.append(f"{'  KiB':10}" + "".join(f"{copies.get(process, {}).get('bytes', 0) >> 10:12}" for process in PROCESSES))
    gaps = ", ".join(f"{reason} {count}" for reason, count in facts.get("gaps", {}).items()) or "none"
    mended = copies.get("announced-gap", {}).get("bytes", 0)
    lines += ["", f"gaps by reason      {gaps}; {mended >> 20} MiB copied to mend them"]
    lines.append(f"away from DATA      {_spread(facts.get('away_from_data'))}")
    lines.append(f"replica caught up   {_spread(facts.get('caught_up'))} after the faults of an episode")
    load = facts.get("load")
    if load:
        fio = f"{load['fio_writes']} writes of fio ({load['fio_bytes'] >> 20} MiB, the longest took {load['fio_longest_ms']} ms)"
        lines.append(f"load                {fio}, {load['client_writes']} of other clients, {load['reconnects']} reconnects")
    if "seconds" in facts:
        passed_over = len(facts.get("passed_over", []))
        lines.append(f"time                {facts['seconds']} s of faults; {passed_over} faults found no process to meet")
    return "\n".join([*lines, *(f"FAILED: {failure}" for failure in failures)])


def save(path: Path, facts: Mapping[str, Any], failures: list[str]) -> None:
    """Write everything that is known as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(facts) | {"failures": failures}, indent=1) + "\n", encoding="utf-8")


def figure(facts: Mapping[str, Any]) -> str:
    """Return the line that the campaign ends with."""
    return (
        f"chaos: {facts['kills']} kills, {facts['bytes_differ']} bytes differ, "
        f"{facts['resyncs_after_innocent']} resyncs after kills of publisher, cx, target (seed {facts['seed']})"
    )


def _spread(told: Mapping[str, Any] | None) -> str:
    if not told or not told["times"]:
        return "never"
    return f"{told['times']} times, median {told['median_s']} s, max {told['max_s']} s"
