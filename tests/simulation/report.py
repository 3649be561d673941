"""What a run of the simulation prints: progress on stderr, findings with the line that repeats them, the figure last."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.simulation.canaries import CANARIES
from tests.simulation.run import WITHOUT, Outcome, run_all, run_here

CANARY_SEEDS_MAX = 200
FAILURES_SHOWN = 5
STORY_LINES_SHOWN = 40


def run_one(seed: int, canary: str | None) -> int:
    """Run one seed in this process and tell its story."""
    outcome = run_here(seed, canary, verbose=True)
    print("\n".join(outcome.story))
    if outcome.error is not None:
        print(f"\n{outcome.error}\nseed {seed} failed after {outcome.cpu_s:.2f} s")
        return 1
    print(f"seed {seed} passed: {outcome.facts}")
    return 0


def run_seeds(seeds: Iterable[int], jobs: int, began_s: float) -> int:
    """Run these seeds; print what failed, and the figure."""
    failed: list[Outcome] = []
    passed, cpu_s = 0, 0.0
    faults: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for outcome in run_all(((seed, None) for seed in seeds), jobs):
        cpu_s += outcome.cpu_s
        if outcome.error is None:
            passed += 1
            faults.update(outcome.facts["faults"])
            seen.update(outcome.facts["seen"])
            totals.update({name: outcome.facts[name] for name in ("records", "epochs", "labels", "virtual_s")})
        else:
            failed.append(outcome)
            if len(failed) <= FAILURES_SHOWN:
                show(outcome)
        if (passed + len(failed)) % 100 == 0:
            print(f"{passed} seeds passed, {len(failed)} failed, {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    print("seen: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    counts = ", ".join(f"{totals[name]} {name}" for name in ("records", "epochs", "labels"))
    print(f"played: {totals['virtual_s']:.0f} s of virtual time, {counts}")
    if failed:
        for one in sorted(failed, key=lambda one: one.seed):
            print(f"failed: make sim SEED={one.seed}: {one.error.strip().splitlines()[0][:200]}")
    took_s = time.monotonic() - began_s
    each_s = cpu_s / max(1, passed + len(failed))
    print(f"sim: {passed} seeds passed, {len(failed)} failed, {each_s:.2f} s each on a core, {took_s:.0f} s in all")
    return 1 if failed else 0


def run_canaries(jobs: int, began_s: float, names: Iterable[str] = ()) -> int:
    """Plant each bug and look for the first seed that shows it; print who survived, and the figure."""
    survived, caught, seeds, failed = [], 0, 0, False
    names = list(names or CANARIES)
    for name in names:
        found: Outcome | None = None
        wanted = ((seed, name) for seed in range(1, CANARY_SEEDS_MAX + 1))
        for outcome in run_all(wanted, jobs, enough=lambda outcome: outcome.error is not None):
            seeds += 1
            if outcome.error is not None and (found is None or outcome.seed < found.seed):
                found = outcome
        if found is not None:
            (clean,) = run_all([(found.seed, WITHOUT + name)], 1)
            if clean.error is not None:
                print(f"canary {name}: seed {found.seed} fails without the bug as well")
                show(clean)
                failed = True
                continue
        if found is None:
            survived.append(name)
            print(f"canary {name} SURVIVED {CANARY_SEEDS_MAX} seeds: {CANARIES[name].story}")
        else:
            caught += 1
            print(f"canary {name}: caught by seed {found.seed}: {found.error.strip().splitlines()[0][:160]}")
    took_s = time.monotonic() - began_s
    print(f"sim: {caught} of {len(names)} canaries caught with {seeds} runs, {took_s:.0f} s in all")
    return 1 if survived or failed else 0


def show(outcome: Outcome) -> None:
    """Print a finding, how it came, and the line that repeats it."""
    print(f"--- seed {outcome.seed}")
    print("\n".join(outcome.story[-STORY_LINES_SHOWN:]))
    print(outcome.error)
    print(f"repeat it with: make sim SEED={outcome.seed}", flush=True)
