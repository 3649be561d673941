"""A share of the simulation's seeds, and all canaries, as `make sim` runs them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.canaries import CANARIES

pytestmark = pytest.mark.slow

SEEDS = 500
LIMIT_S = 600
FAILED_ONCE = (5078, 5101, 5210, 5337, 6108, 20251, 22473, 22920, 24353, 24586)
"""Each showed a fault of the product that was then mended; its story changes with every change of the code, so others are run too."""


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words], capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_every_planted_bug_is_caught() -> None:
    assert f"{len(CANARIES)} of {len(CANARIES)} canaries caught" in run("--seeds", "0")


def test_no_seed_diverges() -> None:
    assert f"{SEEDS} seeds passed, 0 failed" in run("--seeds", str(SEEDS), "--without-canaries")


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_seed_that_failed_once(seed: int) -> None:
    assert f"seed {seed} passed" in run("--seed", str(seed))
