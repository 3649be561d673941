"""Whether a replica has everything: the condition of `wait --in-sync`, as a pure function of what the state folder tells.

In sync means: mode is DATA, nothing is owed, no gap is open, no target knows of bytes that differ, and every target without a delay has
applied what was captured when it was asked, and what was owed then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hostoffload.local_state import LocalState

DATA = "DATA"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`goal` is the position to reach, None as long as the copy of something owed has none; `lacking` says what is not so yet, None if all
    is."""

    goal: str | None
    lacking: str | None
    percent: float | None = None
    eta_s: float | None = None


def judge(local: LocalState, volume: str, asked_at_ns: int, goal: str | None) -> Verdict:
    """Return how far it is. The goal is taken once, from the first report of nothing owed that capture wrote after the question."""
    report = local.newest("capture", volume)
    if report is None or not report.alive:
        return Verdict(goal, "the agent does not serve the volume")
    if report.at_ns < asked_at_ns:
        return Verdict(goal, "the agent has not reported yet")
    capture = report.volumes[volume]
    if goal is None and capture.get("mode") == DATA and capture.get("owed_bytes") == 0:
        goal = capture["position"]
    targets = [None if one is None else one.volumes[volume] for one in local.prompt_targets(volume).values()]
    lacking = _lacking(capture, targets, goal)
    if capture.get("mode") == DATA:
        return Verdict(goal, lacking)
    return Verdict(goal, lacking, capture.get("sync_percent"), capture.get("eta_s"))


def _lacking(capture: Mapping[str, Any], targets: list[Mapping[str, Any] | None], goal: str | None) -> str | None:
    if capture.get("mode") != DATA:
        reason = capture.get("error") or capture.get("mode_reason")
        return f"mode is {capture.get('mode')}" + (f" ({reason})" if reason else "")
    if capture.get("owed_bytes") != 0:
        return f"{capture.get('owed_bytes')} bytes are owed"
    if not targets or None in targets:
        return "a target has not reported yet"
    for facts in targets:
        assert facts is not None and goal is not None
        if facts.get("error"):
            return f"the target stopped: {facts['error']}"
        if facts["position"] < goal:
            return f"applied is {facts['position']}, wanted {goal}"
        if facts.get("open_gaps") != 0:
            return "a gap is open at the target"
        if facts.get("repairs_open"):
            return "the target waits for the repair of what verification found to differ"
    return None

