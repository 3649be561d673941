"""`python -m tests.simulation`: many seeds and all canaries, or one seed again. The last line is the figure."""

from __future__ import annotations

import argparse
import os
import sys
import time

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of a set of strings must not differ from run to run
    os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})

from tests.simulation.report import run_canaries, run_one, run_seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one alone, and tell its whole story")
    parser.add_argument("--canary", help="plant this bug; without --seed, look for a seed that catches it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--without-canaries", action="store_true", help="run the seeds alone")
    told = parser.parse_args()
    began_s = time.monotonic()
    if told.seed is not None:
        return run_one(told.seed, told.canary)
    if told.canary is not None:
        return run_canaries(told.jobs, began_s, [told.canary])
    failed = run_seeds(range(told.first, told.first + told.seeds), told.jobs, began_s)
    if told.without_canaries:
        return failed
    return max(failed, run_canaries(told.jobs, began_s))


if __name__ == "__main__":
    sys.exit(main())
