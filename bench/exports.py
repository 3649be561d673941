"""`python -m bench.exports [FOLDER] [--writes N] [--points N] [--at-once N]`: many points of a long history opened at once, one restored.

A history of random writes of 4 KiB that is not folded, the worst case, on the disk of that folder. Each point is served over NBD and read
from by a client; ready is when the client has its first block. The last lines are those of `hostoffload export` commands started at
once: there the starting of interpreters counts, which is why what opens many points does it in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.history import say
from history.reader import list_segments
from history.store import open_store
from hostoffload import layout
from nbd.client import Client
from recovery.export import Export
from recovery.opening import Opener
from stream.config import Config
from stream.position import Position
from tests.history_load import LongHistory

VOLUME = "v1"
VOLUME_BYTES = 1 << 30
BLOCK_BYTES = 4096
SEGMENT_BYTES = 32 << 20
READY_S_MAX = 1.0
RSS_BYTES_MAX = 256 << 20


def main() -> int:
    """Measure; return the exit code: 1 if a point was ready too late or a command took too much memory."""
    parser = argparse.ArgumentParser(prog="bench.exports")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        state = Path(folder)
        layout.make(state)
        _apart(partial(make_history, state, options.writes))
        good = _apart(partial(open_many, state, options.points, options.at_once))
        good &= restore(state)
        good &= commands(state, options.at_once)
    return 0 if good else 1


def make_history(state: Path, writes: int) -> bool:
    """Store a history of random writes."""
    made = LongHistory(open_store(str(state / "store")), 1, VOLUME_BYTES, (4096, 4096), segment_bytes=SEGMENT_BYTES, record_ns=200_000)
    made.write_all(writes, 1)
    return True


def open_many(state: Path, points: int, at_once: int) -> bool:
    """Open that many random points, `at_once` at any time; tell whether each was ready in time."""
    store = open_store(str(state / "store"))
    last = list_segments(store, VOLUME)[-1].last
    dice = random.Random(7)
    wanted = [Position(last.epoch, dice.randrange(2, last.sequence)) for _ in range(points)]
    with Opener(Config(), VOLUME, store=store) as opener:

        def ready_s(number: int) -> float:
            began_s = time.perf_counter()
            with Export(opener.open_at(wanted[number]), state / "run" / f"{number}.sock", None, print) as export:
                export.start()
                with Client(export.uri) as client:
                    client.read(random.Random(number).randrange(VOLUME_BYTES // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)
                    return time.perf_counter() - began_s

        with ThreadPoolExecutor(at_once) as pool:
            took_s = sorted(pool.map(ready_s, range(points)))
    name = f"{points} points of {len(list_segments(store, VOLUME))} segments, {at_once} at once"
    say(f"{name}: ready, p50", statistics.median(took_s) * 1e3, "ms")
    say(f"{name}: ready, p99", took_s[len(took_s) * 99 // 100] * 1e3, "ms")
    say(f"{name}: ready, slowest", took_s[-1] * 1e3, "ms")
    say(f"{name}: memory of the process at most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "MB")
    return took_s[-1] <= READY_S_MAX


def restore(state: Path) -> bool:
    """Restore the newest point by the command a user has; tell whether its memory kept small."""
    last = list_segments(open_store(str(state / "store")), VOLUME)[-1].last
    command = [sys.executable, "-m", "hostoffload", "--state", str(state), "restore", VOLUME, "--at", str(last)]
    command += ["--to", str(state / "restored")]
    began_s = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(running.pid, 0)
    if status:
        raise SystemExit("the restore failed")
    say("a restore, verified: of the volume", VOLUME_BYTES / 1e6 / (time.perf_counter() - began_s), "MB/s")
    return _is_small("a restore", used)


def commands(state: Path, at_once: int) -> bool:
    """Start that many commands at one moment, and say when the last was ready; tell whether the memory of each kept small."""
    last = list_segments(open_store(str(state / "store")), VOLUME)[-1].last
    dice = random.Random(8)
    began_s, took_s, running = time.perf_counter(), [], []
    for _ in range(at_once):
        position = Position(last.epoch, dice.randrange(2, last.sequence))
        command = [sys.executable, "-m", "hostoffload", "--state", str(state), "export", VOLUME, "--at", str(position)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    for one in running:
        assert one.stdout is not None
        if not one.stdout.readline():
            raise SystemExit("an export ended before it was ready")
        took_s.append(time.perf_counter() - began_s)
    say(f"{at_once} commands started at once: ready, last of them", max(took_s) * 1e3, "ms")
    for one in running:
        one.terminate()
    used = [os.wait4(one.pid, 0)[2] for one in running]
    return _is_small(f"{at_once} commands", max(used, key=lambda one: one.ru_maxrss))


def _is_small(name: str, used: resource.struct_rusage) -> bool:
    say(f"{name}: memory of the process at most", used.ru_maxrss / 1e3, "MB")
    return used.ru_maxrss * 1024 <= RSS_BYTES_MAX


def _apart(measure: partial[bool]) -> bool:
    """Measure in a process of its own, whose memory is its own; tell what it says."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure)


if __name__ == "__main__":
    sys.exit(main())
