"""What one endpoint tells of: one service, or all that runs on a state folder; and how fresh what it tells must be.

`up` tells of the supervisor and everything under it, `agent` of capture, publisher and their supervisor, `cx` and `target` of their own
process alone, because others may share the state folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hostoffload.local_state import LocalState, Report, Supervised, read
from hostoffload.process import ProcessId

FRESH_S_MAX = 10.0
"""A report that is older says nothing about now: services report at least once a second."""

_KINDS = {"agent": ("capture", "publisher"), "cx": ("cx",), "target": ("target",), "up": ("capture", "publisher", "cx", "target")}
UNSUPERVISED = frozenset({"export", "metrics"})
"""What a supervisor runs beside the services: it reports nothing, and nothing is lost without it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """`service` is a key of the config's [metrics]; `name` is what the process calls itself in its log."""

    service: str
    name: str
    state_dir: Path
    started_at: float = field(default_factory=lambda: _started_at(os.getpid()))

    @property
    def is_supervised(self) -> bool:
        """Tell whether a supervisor keeps the processes that this endpoint tells of."""
        return self.service in ("up", "agent")

    def read(self) -> LocalState:
        """Read what the state folder tells now."""
        return read(self.state_dir)

    def reports(self, local: LocalState) -> list[Report]:
        """Return the reports of living processes that this endpoint tells of, the newest first."""
        mine = [one for one in local.reports if one.alive and one.kind in _KINDS[self.service]]
        if not self.is_supervised:
            mine = [one for one in mine if one.pid == os.getpid()]
        return sorted(mine, key=lambda one: -one.at_ns)

    def processes(self, local: LocalState) -> Iterator[Supervised]:
        """Yield the processes that this endpoint tells of, those that are down included: their pid is None."""
        if not self.is_supervised:
            yield Supervised(self.service, self.name, os.getpid(), self.started_at, 0, None, None)
            return
        supervisor = local.supervisor
        pid, since = (supervisor.pid, supervisor.since) if supervisor is not None else (None, None)
        yield Supervised("supervisor", "supervisor", pid, since, 0, None, None)
        yield from (one for one in (supervisor.processes if supervisor is not None else local.orphans) if one.kind not in UNSUPERVISED)


def age_s(report: Report, now_ns: int) -> float:
    """Return how old a report is, in s. It is of this machine's clock; one that was set back makes no report younger than new."""
    return max(0.0, (now_ns - report.at_ns) / 1e9)


def is_fresh(report: Report, now_ns: int) -> bool:
    """Tell whether what a report says may be taken for now."""
    return age_s(report, now_ns) <= FRESH_S_MAX


def _started_at(pid: int) -> float:
    found = ProcessId.of(pid)
    return found.started_at if found is not None else 0.0
