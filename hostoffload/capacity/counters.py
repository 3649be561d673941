"""Counters by interval: the tables of `iostat -x`, and snapshots of /proc/diskstats (Linux, Documentation/admin-guide/iostats.rst).

Neither tells extents, so overwrites stay unknown. The first table of iostat is the mean since the boot and is passed over; the first
snapshot is where counting begins. How long an interval is follows from the times in the trace (`iostat -t`; a line of seconds since
1970, as `date +%s.%N` prints, before each snapshot), or is told by the user.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hostoffload.capacity.workload import Interval, Workload
from stream.errors import ConfigError

TABLE = re.compile(r"Device:?\s+\S")
COUNTERS = re.compile(r"\s*\d+\s+\d+\s+\S+(?:\s+\d+){11,}\s*$")
SECTOR_BYTES = 512
NO_EXTENTS = "counters tell no extents"
_EPOCH = re.compile(r"\s*\d{9,11}(?:\.\d+)?\s*$")
_UNITS = {"wkB/s": 1024, "wMB/s": 1 << 20, "wsec/s": SECTOR_BYTES}
_TRIM_UNITS = {"dkB/s": 1024, "dMB/s": 1 << 20, "dsec/s": SECTOR_BYTES}
_TIMES = ("%Y-%m-%dT%H:%M:%S%z", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d/%m/%y %H:%M:%S", "%d.%m.%Y %H:%M:%S")
_NOT_TOLD = "the time between two reports is not told"


def source_of(form: str, device: str | None, devices: Sequence[str]) -> str:
    """Return what a workload of these devices is called. Raises ConfigError unless it is one."""
    if device is None and len(devices) > 1:
        told = ", ".join(devices[:6]) + (", ..." if len(devices) > 6 else "")
        raise ConfigError(f"The trace has more than one device: {told}", hint=f"Say which: --device {devices[0]}")
    if device is not None and device not in devices:
        raise ConfigError(f"The trace has no device {device}", hint=f"It has: {', '.join(devices) or 'none'}.")
    return f"{form} of {devices[0] if device is None else device}"


class IostatReader:
    """Read the tables: a header that begins with `Device`, a line a device, until something else comes."""

    form = "iostat -x"

    def __init__(self, device: str | None, interval_s: float | None) -> None:
        self._device, self._given_s = device, interval_s
        self._columns: list[str] = []
        self._tables = 0
        self._time: datetime | None = None
        self._times: list[datetime | None] = []
        self._rows: dict[str, list[tuple[int, float, float, float]]] = {}
        self._inside_cpu = False

    def take(self, line: str) -> str | None:
        """Take a line; return why it is bad, None if it is not."""
        words = line.split()
        if not words or words[0] == "Linux" or self._inside_cpu:
            self._inside_cpu = False
            return None
        if words[0] == "avg-cpu:":
            self._columns, self._inside_cpu = [], True
            return None
        if TABLE.match(line):
            return self._header(words)
        if (found := _time(line.strip())) is not None:
            self._time, self._columns = found, []
            return None
        return self._row(words) if self._columns else "it stands in no table"

    def finish(self) -> tuple[Workload | None, tuple[str, ...]]:
        """Return the workload of the tables behind the first."""
        if not self._rows:
            return None, ()
        source = source_of(self.form, self._device, sorted(self._rows))
        rows = [row for row in self._rows[source.removeprefix(f"{self.form} of ")] if row[0] > 0]
        if not rows:
            return None, ("its only table is the mean since the boot",)
        intervals, trimmed, notes = [], 0.0, ["the first table, the mean since the boot, is left out"]
        for table, writes, payload, trims in rows:
            seconds = self._given_s or _between(self._times[table - 1], self._times[table])
            if seconds is None:
                raise ConfigError(f"The trace is of iostat, and {_NOT_TOLD}", hint="Say it with --interval SECONDS, or run iostat with -t.")
            intervals.append(Interval(seconds, round(payload * seconds), round(writes * seconds)))
            trimmed += trims * seconds
        return Workload(source, intervals, None, NO_EXTENTS, trimmed_bytes=round(trimmed)), tuple(notes)

    def _header(self, words: list[str]) -> str | None:
        if "w/s" not in words or not _UNITS.keys() & set(words):
            self._columns = []
            return "it has no columns w/s and wkB/s: was iostat run with -x?"
        self._columns = words
        self._times.append(self._time)
        self._tables += 1
        return None

    def _row(self, words: list[str]) -> str | None:
        if len(words) != len(self._columns):
            return f"{len(words)} columns stand under {len(self._columns)}"
        try:
            values = {name: float(word.replace(",", ".")) for name, word in zip(self._columns[1:], words[1:], strict=True)}
        except ValueError:
            return "a column is no number"
        payload, trims = _bytes(values, _UNITS), _bytes(values, _TRIM_UNITS)
        if min(values["w/s"], payload, trims) < 0:
            return "a rate is below zero"
        self._rows.setdefault(words[0], []).append((self._tables - 1, values["w/s"], payload, trims))
        return None


class DiskstatsReader:
    """Read snapshots: what was written between two lines of the device."""

    form = "/proc/diskstats"

    def __init__(self, device: str | None, interval_s: float | None) -> None:
        self._device, self._given_s = device, interval_s
        self._time_s: float | None = None
        self._last: dict[str, tuple[float | None, DiskCounters]] = {}
        self._intervals: dict[str, list[Interval]] = {}
        self._trimmed: dict[str, int] = {}

    def take(self, line: str) -> str | None:
        """Take a line; return why it is bad, None if it is not. Raises ConfigError where nothing tells the time."""
        if not line.strip():
            return None
        if _EPOCH.match(line):
            self._time_s = float(line)
            return None
        found = DiskCounters.parse(line)
        if found is None:
            return "it is no line of /proc/diskstats"
        if self._device is not None and found.name != self._device:
            return None
        before = self._last.get(found.name)
        self._last[found.name] = self._time_s, found
        return None if before is None else self._between(before[0], before[1], found)

    def finish(self) -> tuple[Workload | None, tuple[str, ...]]:
        """Return the workload from the first snapshot to the last."""
        names = sorted(self._last)
        if not names:
            return None, (f"there is no line of {self._device}",)
        if self._device is None:  # a disk that nobody wrote to is no reason to ask
            names = [name for name in names if any(one.writes for one in self._intervals.get(name, ()))] or names
        source = source_of(self.form, self._device, names)
        name = source.removeprefix(f"{self.form} of ")
        if not self._intervals.get(name):
            return None, ("there is one snapshot alone, and two make an interval",)
        return Workload(source, self._intervals[name], None, NO_EXTENTS, trimmed_bytes=self._trimmed.get(name, 0)), ()

    def _between(self, before_s: float | None, before: DiskCounters, now: DiskCounters) -> str | None:
        seconds = self._given_s
        if seconds is None:
            if before_s is None or self._time_s is None:
                raise ConfigError(f"The trace is of /proc/diskstats, and {_NOT_TOLD}", hint="Say it with --interval SECONDS.")
            seconds = self._time_s - before_s
        if seconds <= 0:
            return "no time has passed since the snapshot before"
        interval = now.since(before, seconds)
        if interval is None:
            return "the counters went back: was the machine restarted?"
        self._intervals.setdefault(now.name, []).append(interval)
        self._trimmed[now.name] = self._trimmed.get(now.name, 0) + now.trimmed_bytes - before.trimmed_bytes
        return None


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """One line of /proc/diskstats, as far as it is of use here; `number` is major and minor."""

    number: tuple[int, int]
    name: str
    writes: int
    written_bytes: int
    trimmed_bytes: int

    @classmethod
    def parse(cls, line: str) -> DiskCounters | None:
        """Return what the line says, None if it is none."""
        if not COUNTERS.match(line):
            return None
        words = line.split()
        trimmed = int(words[16]) * SECTOR_BYTES if len(words) > 16 else 0
        return cls((int(words[0]), int(words[1])), words[2], int(words[7]), int(words[9]) * SECTOR_BYTES, trimmed)

    def since(self, before: DiskCounters, seconds: float) -> Interval | None:
        """Return what was written since, None if a counter went back."""
        if self.writes < before.writes or self.written_bytes < before.written_bytes or self.trimmed_bytes < before.trimmed_bytes:
            return None
        return Interval(seconds, self.written_bytes - before.written_bytes, self.writes - before.writes)


def _bytes(values: dict[str, float], units: dict[str, int]) -> float:
    return sum(values[name] * unit for name, unit in units.items() if name in values)


def _time(text: str) -> datetime | None:
    """Return the time that a line of `iostat -t` tells, None if it is none."""
    for form in _TIMES:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    return None


def _between(before: datetime | None, now: datetime | None) -> float | None:
    """Return the seconds between two tables, None if they are not told."""
    if before is None or now is None:
        return None
    seconds = now.timestamp() - before.timestamp()
    return seconds if seconds > 0 else None
