"""The plan: the same for the same seed, exactly as many kills as asked for, everybody's turn, and capture left alone in the quiet part."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.plan import CUTS, FAULTS, PROCESSES, plan


@pytest.mark.parametrize("seed", range(20))
def test_plan_does_what_is_asked_for(seed: int) -> None:
    episodes = plan(seed, 170.0, 100)
    faults = [fault for episode in episodes for fault in episode.faults]
    kills = Counter(fault.process for fault in faults if fault.kind == "kill")
    assert kills.total() == 100
    assert min(kills[process] for process in PROCESSES) >= 10
    assert {fault.kind for fault in faults} == {"kill", "stop", "restart", *CUTS}
    assert sorted(episodes, key=lambda one: one.at_s) == episodes and episodes[-1].at_s < 170.0
    quiet = [episode for episode in episodes if episode.quiet]
    assert quiet == episodes[: len(quiet)] and 10 < len(quiet) < len(episodes) / 2
    assert all(fault.process != "capture" for episode in quiet for fault in episode.faults)
    assert episodes[len(quiet)].settle, "the quiet part must be over before capture is touched"


def test_plan_repeats_itself() -> None:
    assert plan(42, 170.0, 100) == plan(42, 170.0, 100)
    assert plan(42, 170.0, 100) != plan(43, 170.0, 100)


@pytest.mark.parametrize("kind", FAULTS)
def test_plan_of_one_kind(kind: str) -> None:
    faults = [fault for episode in plan(1, 60.0, 40 if kind == "kill" else 0, (kind,)) for fault in episode.faults]
    assert {fault.kind for fault in faults} <= (set(CUTS) if kind == "cut" else {kind})
    assert len(faults) == 40 if kind == "kill" else len(faults) >= 20
