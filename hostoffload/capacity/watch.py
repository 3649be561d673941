"""The watch over a block device's counters: once a second, and nobody is disturbed. Its writes are those that reach the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hostoffload.capacity.counters import NO_EXTENTS, DiskCounters
from hostoffload.capacity.workload import Interval, Workload
from stream.errors import ConfigError, RetryError

DISKSTATS = Path("/proc/diskstats")
SAMPLE_INTERVAL_S = 1.0


def watch_counters(
    number: tuple[int, int],
    seconds: float,
    stop: threading.Event,
    *,
    read: Callable[[], Iterable[str]] = lambda: DISKSTATS.read_text(encoding="ascii").splitlines(),
    clock: Callable[[], float] = time.monotonic,
    size_bytes: int | None = None,
) -> Workload:
    """Look at the counters of a block device (major, minor) once a second.

    Raises ConfigError if the kernel has none, RetryError if the device goes away.
    """
    begun_s = last_s = clock()
    last = first = _find(number, read)
    if first is None:
        raise ConfigError(f"The kernel counts nothing for device {number[0]}:{number[1]}", hint="Serve it over NBD instead: --serve.")
    intervals: list[Interval] = []
    while (left_s := begun_s + seconds - clock()) > 0 and not stop.is_set():
        ticks = len(intervals) + 1
        stop.wait(max(0.0, min(left_s, begun_s + ticks * SAMPLE_INTERVAL_S - clock())))
        now_s, found = clock(), _find(number, read)
        interval = found.since(last, now_s - last_s) if found is not None and now_s > last_s else None
        if interval is None:
            raise RetryError(f"The device {first.name} went away while it was watched", hint="Try again when it stays.")
        intervals.append(interval)
        last, last_s = found, now_s
    if not intervals:
        raise ConfigError("Nothing was watched", hint="Let it watch for longer: --for SECONDS.")
    trimmed = last.trimmed_bytes - first.trimmed_bytes
    return Workload(f"/proc/diskstats of {first.name}", intervals, None, NO_EXTENTS, size_bytes=size_bytes, trimmed_bytes=trimmed)


def _find(number: tuple[int, int], read: Callable[[], Iterable[str]]) -> DiskCounters | None:
    return next((found for line in read() if (found := DiskCounters.parse(line)) is not None and found.number == number), None)
