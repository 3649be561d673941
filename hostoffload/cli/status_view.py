"""The status as people read it: tables and bars made from the facts of `hostoffload.status.merge`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR_CHARACTERS = 24
UNKNOWN = "-"
_MODE_STYLES = {"DATA": "green", "SYNC": "cyan", "RESYNC": "cyan", "BITMAP": "yellow", "OFFLINE": "red"}


def view(facts: Mapping[str, Any], *, bars: bool) -> RenderableType:
    """Return everything: each volume, the processes, the broker; `bars` for a terminal."""
    parts: list[RenderableType] = [_volume(one, bars) for one in facts["volumes"]] or [Text("no volumes; add one: hostoffload volume add")]
    if facts["processes"]:
        parts.append(_processes(facts["processes"]))
    broker = facts["broker"]
    told = f"{broker['kind']} {broker['bootstrap']}" if broker["kind"] else "none"
    parts.append(Text(f"broker: {told}" + ("" if facts["processes"] else "; no service runs here")))
    return Group(*parts)


def duration(seconds: float | None) -> str:
    """Return a time as people say it."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Return a number of bytes as people say it."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _volume(one: Mapping[str, Any], bars: bool) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", min_width=10)
    table.add_column()
    mode = one["mode"] or UNKNOWN
    told = Text(mode, style=_MODE_STYLES.get(mode, ""))
    told.append("" if one["mode_since"] is None else f" for {duration(max(0.0, time.time() - one['mode_since']))}", style="default")
    told.append(f" ({one['mode_reason']})" if one["mode_reason"] else "", style="default")
    table.add_row(one["volume"], told)
    if one["sync_percent"] is not None and one["sync_percent"] < 100:
        table.add_row("copied", _bar(bars, one["sync_percent"], f"{one['sync_percent']:.1f} %, {duration(one['eta_s'])} to go"))
    table.add_row("source", f"{one['source'] or UNKNOWN}  ->  {one['replica'] or UNKNOWN}")
    table.add_row("uri", one["uri"])
    position = one["position"]
    for stage in ("captured", "published", "journaled", "applied"):
        table.add_row(stage, position[stage] or UNKNOWN)
    lags = f"replica {_milliseconds(one['rpo_ms'])}, stream {_milliseconds(one['rpo_stream_ms'])}"
    table.add_row("RPO", f"{lags}; gaps {UNKNOWN if one['gaps'] is None else one['gaps']}")
    if one["buffer_bytes_max"]:
        used = one["buffer_used_bytes"]
        shown = f"{size(used)} of {size(one['buffer_bytes_max'])}, backlog {size(one['backlog_bytes'])}, lasts {duration(one['outage_s'])}"
        table.add_row("buffer", _bar(bars, 100 * (used or 0) / one["buffer_bytes_max"], shown))
    table.add_row("replica", _replica(one))
    for target in one["targets"] if len(one["targets"]) > 1 else ():
        behind = f", kept {duration(target['delay_s'])} behind" if target["delay_s"] else ""
        table.add_row("target", f"{target['name']}: applied {target['applied'] or UNKNOWN}{behind}")
    table.add_row("proved", _proof(one, bars))
    table.add_row("history", _history(one["history"]))
    table.add_row("", "")
    return table


def _replica(one: Mapping[str, Any]) -> str:
    state = one["replica_state"]
    if state["consistent_at"]:
        return f"consistent at {state['consistent_at']}"
    return f"not consistent until {state['not_until']}" if state["not_until"] else UNKNOWN


def _history(told: Mapping[str, Any]) -> Text:
    """Show how far the store has the history, and what is wrong with it."""
    text = Text(f"stored up to {told['persisted']}" if told["persisted"] else UNKNOWN)
    text.append(f", folded up to {told['folded']}" if told["folded"] else "")
    text.append(f"; {told['different']} chunks differed from the source" if told["different"] else "", style="red")
    return text.append(f"; {told['error']}" if told["error"] else "", style="red")


def _proof(one: Mapping[str, Any], bars: bool) -> RenderableType:
    """Show what verification says: the last proof, how far the round at hand is, and what was found to differ."""
    verify = one["verify"]
    told = f"equal at {one['proved_position']}" if one["proved_position"] else UNKNOWN
    if verify["mismatches"]:
        told += f"; {verify['mismatches']} chunks differed so far, {verify['repairs_open']} not copied again yet"
    if verify["percent"] is None:
        return Text(told)
    return _bar(bars, verify["percent"], f"{told}; round {verify['round']} at {verify['percent']:.1f} %")


def _bar(bars: bool, percent: float, told: str) -> RenderableType:
    if not bars:
        return Text(told)
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=100, completed=min(100.0, percent), width=BAR_CHARACTERS), told)
    return row


def _milliseconds(value: float | None) -> str:
    return UNKNOWN if value is None else duration(value / 1000)


def _processes(processes: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PROCESS", "PID", "UP", "RESTARTS"):
        table.add_column(title)
    now = time.time()
    for one in processes:
        pid = Text(str(one["pid"])) if one["pid"] is not None else Text("not running", style="red")
        since = duration(max(0.0, now - one["since"])) if one["since"] is not None else UNKNOWN
        table.add_row(one["kind"], pid, since, UNKNOWN if one["restarts"] is None else str(one["restarts"]))
    return table
