"""`python -m bench.activity_log [FOLDER]`: what the activity log costs a write, and a sweep, on the disk of that folder.

Prints one figure a line. A hit is a write in a region that is set; a miss waits for the disk; a sweep takes the interpreter from writers.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.activity_log import SWEEP_INTERVAL_S, ActivityLog
from agent.generations import CLEAR_AFTER_S, Standing
from agent.source import SourceIdentity
from agent.state_file import HOST_FILES

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
HITS = 1_000_000
MISSES = 1_000
THREADS = 8


def main() -> int:
    """Measure; return the exit code."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        path = Path(folder) / "bench.activity"
        say("hit, 4 KiB", hit(made(path, 10 * GIB), 4096), "ns")
        say("hit, across two regions", hit(made(path, 10 * GIB), 2 * MIB), "ns")
        say("the disk alone: 4 KiB and fdatasync, p50", disk(path), "us")
        alone = misses(made(path, 10 * GIB), 1)
        say("miss, one writer, p50", statistics.median(alone) / 1e3, "us")
        say("miss, one writer, p99", sorted(alone)[len(alone) * 99 // 100] / 1e3, "us")
        began_ns = time.perf_counter_ns()
        count = len(misses(made(path, 10 * GIB), THREADS))
        say(f"misses, {THREADS} writers", count / (time.perf_counter_ns() - began_ns) * 1e9, "a second")
        say("sequential write, each MiB", sequential(made(path, 10 * GIB)), "us")
        for name, size, touched in (("10 GiB, all touched", 10 * GIB, 5_000), ("10 TiB, 100,000 touched", 10 * TIB, 100_000)):
            seen, cleared = sweeps(made(path, size), size, touched)
            say(f"sweep that sees, {name}", seen, "ms")
            say(f"sweep that clears, {name}", cleared, "ms")
        log = made(path, 10 * TIB)
        say("owe 10 TiB", timed(lambda: log.owe(0, 10 * TIB)) / 1e6, "ms")
        log.close()
        say("open 10 TiB", timed(lambda: ActivityLog.open(path, "bench", SourceIdentity(1, 10 * TIB, 0))) / 1e6, "ms")
    return 0


def say(what: str, figure: float, unit: str) -> None:
    print(f"{what:40} {figure:10.1f} {unit}")


def timed(run: Callable[[], object]) -> int:
    """Return how many nanoseconds it took."""
    began_ns = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - began_ns


def made(path: Path, size_bytes: int) -> ActivityLog:
    return ActivityLog.create(path, "bench", SourceIdentity(1, size_bytes, 0), owed=False)


def hit(log: ActivityLog, length_bytes: int) -> float:
    """Return nanoseconds a hit, the loop's own taken off; the best of five."""
    touch, start, end = log.touch, 5 * MIB - length_bytes // 2 + 2048, 5 * MIB + length_bytes // 2 + 2048
    touch(start, end)

    def touches() -> None:
        for _ in range(HITS):
            touch(start, end)

    def nothing() -> None:
        for _ in range(HITS):
            pass

    return min(timed(touches) - timed(nothing) for _ in range(5)) / HITS


def disk(path: Path) -> float:
    """Return microseconds of what a miss can't do without."""
    file, page = HOST_FILES.open(path), bytes(4096)

    def write() -> None:
        file.pwrite(4096, page)
        file.fdatasync()

    took = [timed(write) for _ in range(MISSES)]
    file.close()
    return statistics.median(took) / 1e3


def misses(log: ActivityLog, threads: int) -> list[int]:
    """Return the nanoseconds of each miss, of so many writers at once; no region has a neighbour that is set."""
    took: list[int] = []

    def write(writer: int) -> None:
        for number in range(writer, MISSES, threads):
            took.append(timed(lambda number=number: log.touch(number * 2 * MIB, number * 2 * MIB + 4096)))

    running = [threading.Thread(target=write, args=(writer,)) for writer in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return took


def sequential(log: ActivityLog) -> float:
    """Return microseconds for each MiB of a writer that goes through the volume."""

    def write() -> None:
        for start in range(0, 4 * GIB, 64 << 10):
            log.touch(start, start + (64 << 10))

    return timed(write) / 4096 / 1e3


def sweeps(log: ActivityLog, size_bytes: int, touched: int) -> tuple[float, float]:
    """Return the milliseconds of a sweep that sees so many touched regions, and of the one that clears them."""
    regions = random.Random(1).sample(range(size_bytes // MIB), touched)
    log.owe_all((region * MIB, (region + 1) * MIB) for region in regions)
    standing = Standing(1, 1, [], bytes(size_bytes // MIB * 2))
    took = [
        timed(lambda now_s=now_s: log.sweep(now_s, lambda: standing, lambda: None))
        for now_s in (0.0, SWEEP_INTERVAL_S, CLEAR_AFTER_S + 3 * SWEEP_INTERVAL_S)
    ]
    assert log.regions() == []
    return took[0] / 1e6, took[2] / 1e6


if __name__ == "__main__":
    sys.exit(main())
