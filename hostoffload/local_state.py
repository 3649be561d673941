"""What the state folder tells of a running hostoffload, read at once and without asking anybody: the source of `status`, `wait`, `up`
and `volume`.

Reports of processes are files that outlive them, so each is read with the word whether its writer lives. Nothing here waits, and a file
that is missing or damaged is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostoffload import layout, supervisor_report
from hostoffload.process import PidFile, ProcessId
from stream.config import host_name

HEARD_S_MAX = 10.0  # a target on another machine that was not heard of for longer counts as dead: it reports every second
CLOCK_SLACK_S = 2.0  # a process must not have started later than its report says, as far as clocks and ticks can tell


@dataclass(frozen=True, slots=True)
class Report:
    """The last report of one process; `volumes` has position and facts of each volume it sees."""

    kind: str
    instance: str
    pid: int
    at_ns: int
    alive: bool
    volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Supervised:
    """A process as the supervisor knows it; pid and since are None while it does not run."""

    kind: str
    name: str
    pid: int | None
    since: float | None
    restarts: int
    exit_code: int | None
    failure: str | None


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """The supervisor that runs now."""

    pid: int
    since: float
    role: str
    processes: tuple[Supervised, ...]


@dataclass(frozen=True, slots=True)
class LocalState:
    """Everything known. `declared` maps a volume to the fields of its declaration, removed ones left out; `orphans` are what a killed
    supervisor left running."""

    reports: tuple[Report, ...]
    supervisor: SupervisorFacts | None
    declared: Mapping[str, Mapping[str, Any]]
    orphans: tuple[Supervised, ...] = ()

    def newest(self, kind: str, volume: str) -> Report | None:
        """Return the report of that kind that tells of the volume: from a living process if there is one, the newest of them."""
        telling = [one for one in self.of_kind(kind) if volume in one.volumes]
        return max(telling, key=lambda one: (one.alive, one.at_ns), default=None)

    def of_kind(self, kind: str) -> list[Report]:
        return [one for one in self.reports if one.kind == kind]

    def targets(self, volume: str) -> dict[str, Report]:
        """Return the report of each target that tells of the volume, by its name; of those on other machines what the publisher heard.

        A target that once ran here and was heard of further on runs elsewhere now.
        """
        told = self._heard(volume)
        for report in self.of_kind("target"):
            if volume not in report.volumes:
                continue
            heard = told.get(report.instance)
            if heard is None or report.alive or heard.volumes[volume]["position"] <= report.volumes[volume]["position"]:
                told[report.instance] = report
        return told

    def _heard(self, volume: str) -> dict[str, Report]:
        publisher = self.newest("publisher", volume)
        try:
            heard = json.loads(publisher.volumes[volume].get("targets") or "{}") if publisher is not None else {}
            return {name: _heard_report(publisher, name, volume, facts) for name, facts in heard.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def prompt_targets(self, volume: str) -> dict[str, Report | None]:
        """Return the report of each target without a delay by its name, None for one that has told nothing of the volume."""
        told = self.targets(volume)
        replicas = self.declared.get(volume, {}).get("replicas", ())
        names = [one["target"] for one in replicas if not one.get("delay_s")] if replicas else sorted(told)
        return {name: told.get(name) for name in names}

    def volume_names(self) -> list[str]:
        """Return the declared volumes; if no agent declares any here, those that a living process tells of."""
        if self.declared:
            return sorted(self.declared)
        return sorted({name for one in self.reports if one.alive for name in one.volumes})


def read(state_dir: Path) -> LocalState:
    """Read it all; some 100 µs a file."""
    told = list(_json_files(layout.status_dir(state_dir)))
    reports = tuple(report for one in told if one.get("kind") != "supervisor" and (report := _report(one)) is not None)
    running = supervisor(state_dir)
    return LocalState(reports, running, _declared(state_dir), () if running is not None else tuple(_orphans(state_dir)))


def supervisor(state_dir: Path) -> SupervisorFacts | None:
    """Return what the supervisor says, None if none runs."""
    told = _json(supervisor_report.path_of(state_dir))
    try:
        if told is None or not ProcessId(told["pid"], told["start_ticks"], told["boot"]).alive():
            return None
        processes = tuple(
            Supervised(*(one[key] for key in ("kind", "name", "pid", "since", "restarts", "exit_code", "failure")))
            for one in told["processes"]
        )
        return SupervisorFacts(told["pid"], told["since"], told["role"], processes)
    except (KeyError, TypeError, ValueError):
        return None


def _orphans(state_dir: Path) -> Iterator[Supervised]:
    for path in sorted(layout.run_dir(state_dir).glob("*.json")):
        found = PidFile.read(path)
        if found is not None and found.process.alive():
            yield Supervised(found.kind, found.name, found.process.pid, found.since, found.restarts, None, None)


def _report(told: Mapping[str, Any]) -> Report | None:
    try:
        alive = told["host"] == host_name() and _lives(told["pid"], told["at_ns"])
        return Report(told["kind"], told["instance"], told["pid"], told["at_ns"], alive, told["volumes"])
    except (KeyError, TypeError, ValueError):
        return None


def _heard_report(publisher: Report, name: str, volume: str, facts: Mapping[str, Any]) -> Report:
    """Return what the publisher heard of a target as the report of its process."""
    age_s = facts.get("heard_age_s")
    alive = publisher.alive and age_s is not None and age_s < HEARD_S_MAX
    return Report("target", name, facts.get("pid", 0), publisher.at_ns, alive, {volume: facts})


def _lives(pid: int, at_ns: int) -> bool:
    """Tell whether the process that wrote a report at that time still runs, and not another one under its pid."""
    found = ProcessId.of(pid)
    return found is not None and found.started_at <= at_ns / 1e9 + CLOCK_SLACK_S


def _declared(state_dir: Path) -> dict[str, dict[str, Any]]:
    told = _json(layout.declared_file(state_dir)) or {}
    try:
        return {one["volume"]: one for one in told.get("volumes", ()) if one.get("state") != "removed"}
    except (AttributeError, KeyError, TypeError):
        return {}


def _json_files(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return
    for name in names:
        told = _json(folder / name)
        if told is not None:
            yield told


def _json(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
