"""How a round of verification stands: pure functions of what the state folder tells. Used by `verify`.

A round is over when every target without a delay has said how it ended. It is interrupted when one of them compared only a part of it, or
when the agent or a target that began it runs no more or lost order: then nothing is proved, and another round has to be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hostoffload.in_sync import DATA
from hostoffload.local_state import LocalState, Report
from stream.errors import RetryError


@dataclass(frozen=True, slots=True)
class Parties:
    """The processes, by pid, that take part in a round, and since when the mode is what it is; if any of that changes the round is lost."""

    capture: int
    targets: Mapping[str, int]
    mode_since: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """`ended` has what each target that compared all of it says of the round, `partly` what one says that could not; `interrupted` why it
    can't be completed any more, `replaced_by` the round that somebody else asked for meanwhile. `captured` and `applied` are positions, the
    latter of the target furthest behind."""

    ended: Mapping[str, Mapping[str, Any]]
    partly: Mapping[str, Mapping[str, Any]]
    over: bool
    interrupted: str | None = None
    replaced_by: str | None = None
    percent: float = 0.0
    captured: str | None = None
    applied: str | None = None

    @property
    def mismatches(self) -> int:
        return sum(one["mismatches"] for one in self.ended.values())

    @property
    def equal(self) -> bool:
        return self.over and not self.mismatches

    @property
    def proved_position(self) -> str | None:
        """Return the position at which every target was proved equal."""
        return min(one["position"] for one in self.ended.values()) if self.equal else None


def parties(local: LocalState, volume: str) -> Parties:
    """Return who would take part in a round now. Raises RetryError when there is no agent here, or nothing is heard of a target."""
    capture = _alive(local.newest("capture", volume))
    if capture is None:
        raise RetryError(f"No agent serves {volume} on this machine", hint="Run `hostoffload up`, or `hostoffload agent run`.")
    targets = local.prompt_targets(volume)
    if not targets:
        raise RetryError(f"{volume} has no replica without a delay", hint="Only those are compared with the source.")
    found = {name: report.pid for name, told in targets.items() if (report := _alive(told)) is not None and report.pid}
    away = sorted(targets.keys() - found.keys())
    if away:
        raise RetryError(
            f"The target {', '.join(away)} of {volume} does not run, or is not heard of",
            hint="Run `hostoffload up`, or `hostoffload target run`; on another machine look there.",
        )
    return Parties(capture.pid, found, capture.volumes[volume].get("mode_since"))


def not_ready(local: LocalState, volume: str) -> str | None:
    """Return why a round that began now would prove nothing, None if it may begin."""
    capture = local.newest("capture", volume)
    facts = capture.volumes[volume] if capture is not None and capture.alive else {}
    if facts.get("mode") != DATA:
        reason = facts.get("error") or facts.get("mode_reason")
        return f"mode is {facts.get('mode')}" + (f" ({reason})" if reason else "")
    for name, report in local.prompt_targets(volume).items():
        told = report.volumes[volume] if report is not None else {}
        if told.get("error"):
            return f"the target {name} stopped: {told['error']}"
        if told.get("open_gaps"):
            return f"a gap is open at the target {name}"
    return None


def standing(local: LocalState, volume: str, round_id: str, began: Parties) -> Standing:
    """Return how far a round is that these processes began."""
    told = {name: report.volumes[volume] for name, report in local.prompt_targets(volume).items() if report is not None}
    mine = {name: _ending(facts, round_id) for name, facts in told.items() if name in began.targets}
    ended = {name: one for name, one in mine.items() if one is not None and one["complete"]}
    partly = {name: one for name, one in mine.items() if one is not None and not one["complete"]}
    over = len(ended) == len(began.targets)
    capture = local.newest("capture", volume)
    return Standing(
        ended,
        partly,
        over,
        None if over else _interruption(local, volume, began, partly),
        next((found for name in partly if (found := _asked_round(told[name], volume)) is not None), None),
        min((100.0 if name in ended else _percent(told.get(name, {}), round_id) for name in began.targets), default=0.0),
        capture.volumes[volume].get("position") if capture is not None else None,
        min((told[name].get("position") or "" for name in began.targets if name in told), default=None),
    )


def _ending(facts: Mapping[str, Any], round_id: str) -> Mapping[str, Any] | None:
    """Return how the round ended at a target, None if it has not; a complete one counts."""
    mine = [one for one in facts.get("verify_ended", ()) if one["round"] == round_id]
    return max(mine, key=lambda one: one["complete"], default=None)


def _percent(facts: Mapping[str, Any], round_id: str) -> float:
    return float(facts.get("verify_percent") or 0.0) if facts.get("verify_round") == round_id else 0.0


def _asked_round(facts: Mapping[str, Any], volume: str) -> str | None:
    """Return the round that runs at a target, if somebody asked for it: those of the background have names of their own."""
    running = facts.get("verify_round") or ""
    return running if facts.get("verify_percent") is not None and running.startswith(f"verify-{volume}-") else None


def _interruption(local: LocalState, volume: str, began: Parties, partly: Mapping[str, Any]) -> str | None:
    if partly:
        return f"the target {', '.join(sorted(partly))} could not compare all of it"
    capture = _alive(local.newest("capture", volume))
    if capture is None or capture.pid != began.capture:
        return "the agent does not run any more, or was started again"
    facts = capture.volumes[volume]
    if (facts.get("mode"), facts.get("mode_since")) != (DATA, began.mode_since):
        return f"mode is {facts.get('mode')}, or was another meanwhile"
    now = {name: report.pid for name, told in local.prompt_targets(volume).items() if (report := _alive(told)) is not None}
    if now != began.targets:
        return "a target does not run any more, or was started again"
    return None


def _alive(report: Report | None) -> Report | None:
    return report if report is not None and report.alive else None
