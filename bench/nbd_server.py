"""Compare `python -m nbd` with `nbdkit file` on the same file, in one run, alternating: the price of the tap without capture.

Prints for each load the best round of both and their ratio (what else runs on the machine only ever takes away; the ratio of the
medians is told too). Exits 1 if a ratio of the chosen loads is below `--goal`. Needs fio and nbdkit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_BYTES = 1 << 30

LOADS = {
    "write 4k QD1": ("randwrite", "4k", 1, {}),
    "write 4k QD32": ("randwrite", "4k", 32, {}),
    "write 64k QD1": ("randwrite", "64k", 1, {}),
    "write 64k QD8": ("randwrite", "64k", 8, {}),
    "write 1M QD1": ("write", "1M", 1, {}),
    "write 1M QD4": ("write", "1M", 4, {}),
    "read 4k QD1": ("randread", "4k", 1, {}),
    "read 4k QD32": ("randread", "4k", 32, {}),
    "read 64k QD8": ("randread", "64k", 8, {}),
    "read 1M QD4": ("read", "1M", 4, {}),
    "cold read 4k QD32": ("randread", "4k", 32, {"cold": True}),
    "mixed 4k QD32": ("randrw", "4k", 32, {}),
    "write+fsync 4k QD1": ("randwrite", "4k", 1, {"fsync": 1}),
    "write+fsync 4k QD32": ("randwrite", "4k", 32, {"fsync": 32}),
    "write 4k QD32, 4 connections": ("randwrite", "4k", 32, {"numjobs": 4}),
}


def main() -> int:
    """Run the loads; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time of one measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server (default %(default)s)")
    parser.add_argument("--load", action="append", help="only loads that begin so (may be given again)")
    parser.add_argument("--goal", type=float, default=0.0, help="least ratio of the chosen loads")
    options = parser.parse_args()
    loads = [name for name in LOADS if not options.load or name.startswith(tuple(options.load))]
    worst = float("inf")
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        image = Path(folder, "image")
        _fill(image)
        with _served(image, Path(folder, "ours"), ours=True) as ours, _served(image, Path(folder, "peer")) as peer:
            for name in loads:
                worst = min(worst, _compare(name, image, ours, peer, options))
    print(f"worst ratio {worst:.2f}")
    return 0 if worst >= options.goal else 1


def _compare(name: str, image: Path, ours: str, peer: str, options: argparse.Namespace) -> float:
    """Measure one load on both, alternating; print and return the ratio."""
    results: dict[str, list[float]] = {ours: [], peer: []}
    for _ in range(options.rounds):
        for uri in (peer, ours):
            results[uri].append(_measure(LOADS[name], image, uri, options.seconds))
    mine, theirs = max(results[ours]), max(results[peer])
    medians = statistics.median(results[ours]) / statistics.median(results[peer])
    print(f"{name:28} nbd {mine:7.0f}  nbdkit {theirs:7.0f} IOPS  ratio {mine / theirs:.2f}  medians {medians:.2f}", flush=True)
    return mine / theirs


def _measure(load: tuple[str, str, int, dict], image: Path, uri: str, seconds: float) -> float:
    """Return IOPS of one run."""
    kind, block, depth, extra = load
    command = ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={kind}", f"--bs={block}"]
    command += [f"--iodepth={depth}", f"--size={FILE_BYTES}", "--time_based", f"--runtime={seconds * 1000:.0f}ms", "--norandommap"]
    command += ["--randrepeat=0", "--group_reporting", "--output-format=json"]
    command += [f"--{key}={extra[key]}" for key in ("fsync", "numjobs") if key in extra]
    if extra.get("cold"):
        _drop_cache(image)
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = json.loads(done[done.index("{") :])["jobs"][0]
    return job["read"]["iops"] + job["write"]["iops"]


def _fill(image: Path) -> None:
    block = os.urandom(1 << 20)
    with image.open("wb") as file:
        for _ in range(FILE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _drop_cache(image: Path) -> None:
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _served(image: Path, sock: Path, *, ours: bool = False) -> Iterator[str]:
    """Serve `image` at `sock`; yield its URI."""
    command = [sys.executable, "-m", "nbd", str(image), "--socket", str(sock)]
    process = subprocess.Popen(command if ours else ["nbdkit", "-f", "-U", str(sock), "file", str(image)])
    try:
        deadline = time.monotonic() + 10
        while not sock.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not come up")
            time.sleep(0.02)
        yield f"nbd+unix:///?socket={sock}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
