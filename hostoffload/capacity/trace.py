"""Traces: a workload out of the text of `blkparse`, of `iostat -x`, or of snapshots of /proc/diskstats.

The form is found out from the first lines. A line that can't be read is counted, the first ones are named, and reading goes on; only a
trace of which nothing is left is an error. Reads a line at a time; memory is that of `overwrites` and 16 bytes a second of the trace.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Protocol

from hostoffload.capacity.blkparse import EVENT, BlkparseReader
from hostoffload.capacity.counters import COUNTERS, TABLE, DiskstatsReader, IostatReader
from hostoffload.capacity.workload import Workload
from stream.errors import ConfigError

LOOK_LINES = 10_000
"""So many lines decide on the form, and on the action of blkparse's that is counted."""
BAD_LINES_NAMED = 5
_HINT = "It may be the text of blkparse, of iostat -x (best with -t), or snapshots of /proc/diskstats, one behind the other."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user says of a trace. `device` as the trace names it, None: the only one; `interval_s` None: told by the trace."""

    device: str | None = None
    interval_s: float | None = None
    windows_s: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that can't be read, and why."""

    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Trace:
    """What was read. `bad` has the first of the `bad_lines`; `notes` say what was left out or taken for granted."""

    workload: Workload
    form: str
    lines: int
    bad_lines: int
    bad: tuple[BadLine, ...]
    notes: tuple[str, ...] = field(default=())


class Reader(Protocol):
    """One form. `take` returns why a line is bad, None if it is well or none of its business."""

    form: str

    def take(self, line: str) -> str | None: ...

    def finish(self) -> tuple[Workload | None, tuple[str, ...]]:
        """Return the workload, None if nothing was there, and the notes."""


def read_trace(lines: Iterable[str], name: str, wanted: Wanted) -> Trace:
    """Read all lines; `name` is what errors call the trace. Raises ConfigError: no known form, several devices, nothing left."""
    source = iter(lines)
    first = list(islice(source, LOOK_LINES))
    reader = _reader(first, name, wanted)
    count, bad_lines, bad = 0, 0, []
    for count, line in enumerate(chain(first, source), 1):
        why = reader.take(line.rstrip("\r\n"))
        if why is not None:
            bad_lines += 1
            if len(bad) < BAD_LINES_NAMED:
                bad.append(BadLine(count, why))
    workload, notes = reader.finish()
    if workload is None:
        told = f"{bad_lines} of {count} lines can't be read, the first is line {bad[0].number}: {bad[0].why}" if bad else _none_left(notes)
        raise ConfigError(f"Nothing is left of {name} as {reader.form}: {told}", hint=_HINT)
    return Trace(workload, reader.form, count, bad_lines, tuple(bad), notes)


def _none_left(notes: tuple[str, ...]) -> str:
    return notes[-1] if notes else "there is no line of the device"


def _reader(first: list[str], name: str, wanted: Wanted) -> Reader:
    """Return the reader of the form that most of the first lines have."""
    forms: dict[re.Pattern[str], Callable[[], Reader]] = {
        EVENT: lambda: BlkparseReader(first, wanted.device, wanted.windows_s),
        TABLE: lambda: IostatReader(wanted.device, wanted.interval_s),
        COUNTERS: lambda: DiskstatsReader(wanted.device, wanted.interval_s),
    }
    found = {pattern: sum(pattern.match(line) is not None for line in first) for pattern in forms}
    best = max(found, key=lambda pattern: found[pattern])
    if not found[best]:
        what = "is empty" if not any(line.strip() for line in first) else "has no form that is known"
        raise ConfigError(f"{name} {what}", hint=_HINT)
    return forms[best]()
