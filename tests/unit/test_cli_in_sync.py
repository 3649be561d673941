"""When a replica counts as in sync: every condition of design section 10 alone keeps it from being so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hostoffload.in_sync import judge
from hostoffload.local_state import LocalState, Report

ASKED_NS = 1000
CAPTURED = "00000001-0000000000000009"
CAPTURE = {"position": CAPTURED, "mode": "DATA", "owed_bytes": 0}
TARGET = {"position": CAPTURED, "open_gaps": 0}
DECLARED = {"replicas": [{"target": "target", "path": "/b", "delay_s": 0.0}]}


def local(
    capture: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    *,
    at_ns: int = ASKED_NS,
    alive: bool = True,
    **declared: Any,
) -> LocalState:
    reports = (
        Report("capture", "host", 1, at_ns, alive, {"db": CAPTURE | (capture or {})}),
        Report("target", "target", 2, 1, True, {"db": TARGET | (target or {})}),
    )
    return LocalState(reports, None, {"db": DECLARED | declared})


def test_all_applied_is_in_sync() -> None:
    verdict = judge(local(), "db", ASKED_NS, None)
    assert (verdict.goal, verdict.lacking) == (CAPTURED, None)


@pytest.mark.parametrize(
    ("seen", "lacking"),
    [
        (local({"mode": "SYNC", "mode_reason": "first copy"}), "mode is SYNC (first copy)"),
        (local({"mode": "OFFLINE", "error": "held by process 9"}), "mode is OFFLINE (held by process 9)"),
        (local({"owed_bytes": 4096}), "4096 bytes are owed"),
        (local({"owed_bytes": None}), "None bytes are owed"),
        (local(target={"open_gaps": 1}), "a gap is open"),
        (local(target={"position": "00000001-0000000000000008"}), "wanted 00000001-0000000000000009"),
        (local(target={"repairs_open": 1}), "waits for the repair"),
        (local(target={"error": "wrong bytes"}), "the target stopped: wrong bytes"),
        (local(replicas=[*DECLARED["replicas"], {"target": "second", "path": "/c", "delay_s": 0.0}]), "has not reported"),
        (local(at_ns=ASKED_NS - 1), "has not reported yet"),
        (local(alive=False), "does not serve"),
        (LocalState((), None, {"db": DECLARED}), "does not serve"),
    ],
)
def test_each_condition_alone_keeps_it_waiting(seen: LocalState, lacking: str) -> None:
    assert lacking in str(judge(seen, "db", ASKED_NS, None).lacking)


def test_the_goal_stays_what_was_captured_when_it_was_asked() -> None:
    goal = judge(local(target={"position": "00000001-0000000000000001"}), "db", ASKED_NS, None).goal
    later = local({"position": "00000001-0000000000000500"})
    verdict = judge(later, "db", ASKED_NS, goal)
    assert (verdict.goal, verdict.lacking) == (CAPTURED, None)


@pytest.mark.parametrize("owing", [{"owed_bytes": 4096}, {"mode": "RESYNC"}])
def test_what_is_owed_is_waited_for_until_its_copy_is_applied(owing: dict[str, Any]) -> None:
    """The copy of something owed gets its position after the question; a goal from before would be reached without it."""
    goal = judge(local(owing), "db", ASKED_NS, None).goal
    assert goal is None
    copied_at = "00000001-0000000000000010"
    verdict = judge(local({"position": copied_at}), "db", ASKED_NS, goal)
    assert (verdict.goal, verdict.lacking) == (copied_at, f"applied is {CAPTURED}, wanted {copied_at}")


def test_a_target_on_another_machine_is_waited_for() -> None:
    replicas = [*DECLARED["replicas"], {"target": "far", "path": "/c", "delay_s": 0.0}]
    known = local(replicas=replicas)

    def heard(**facts: Any) -> LocalState:
        told = {"targets": json.dumps({"far": {"position": CAPTURED, "open_gaps": 0} | facts})}
        return replace(known, reports=(*known.reports, Report("publisher", "host", 9, ASKED_NS + 1, True, {"db": told})))

    assert judge(heard(), "db", ASKED_NS, None).lacking is None
    assert "applied is" in judge(heard(position="00000001-0000000000000001"), "db", ASKED_NS, None).lacking
    assert "a gap is open" in judge(heard(open_gaps=1), "db", ASKED_NS, None).lacking


def test_a_target_that_once_ran_here_is_followed_to_another_machine() -> None:
    replicas = [*DECLARED["replicas"], {"target": "far", "path": "/c", "delay_s": 0.0}]
    known = local(replicas=replicas)
    left = Report("target", "far", 5, ASKED_NS - 9, False, {"db": {"position": "00000001-0000000000000001", "open_gaps": 0}})
    told = {"targets": json.dumps({"far": {"position": CAPTURED, "open_gaps": 0}})}
    heard = Report("publisher", "host", 9, ASKED_NS + 1, True, {"db": told})
    seen = replace(known, reports=(*known.reports, left, heard))
    assert judge(seen, "db", ASKED_NS, None).lacking is None
    ended = replace(left, volumes={"db": {"position": CAPTURED, "open_gaps": 0}})
    assert not replace(seen, reports=(*known.reports, ended, heard)).targets("db")["far"].alive


def test_a_delayed_replica_is_not_waited_for() -> None:
    replicas = [*DECLARED["replicas"], {"target": "late", "path": "/c", "delay_s": 3600.0}]
    assert judge(local(replicas=replicas), "db", ASKED_NS, None).lacking is None
