"""Whether everything that `up` started is ready, and if not, what is lacking and why.

Ready means: each supervised process runs and has reported since it started, and the NBD server greets. Read from the state folder only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hostoffload import layout, listeners
from hostoffload.local_state import LocalState, Supervised
from hostoffload.services import error_file
from hostoffload.state_lock import ROLE_AGENT
from stream.errors import ConfigError, HostoffloadError, RetryError

GREETING_S_MAX = 1.0
RESTARTS_MAX = 5
NOT_NEEDED = frozenset({"export", "metrics"})  # an export that can't be opened keeps nothing else from working, nor does an address


def lacking(state_dir: Path, local: LocalState) -> list[str]:
    """Return what is not ready yet, in words for the user; empty if all is."""
    if local.supervisor is None:
        return ["supervisor"]
    waiting = [one.name for one in local.supervisor.processes if one.kind not in NOT_NEEDED and not _reported(one, local)]
    if not waiting and not _serves(layout.nbd_socket(state_dir), local.supervisor.role):
        return ["NBD server"]
    return waiting


def _serves(socket: Path, role: str) -> bool:
    """Tell whether the NBD server greets; one of `agent run` may have its sockets from outside, where nobody here knows them."""
    return listeners.answers(socket, GREETING_S_MAX) or (role == ROLE_AGENT and not listeners.listens(socket, GREETING_S_MAX))


def failure(state_dir: Path, local: LocalState, restarts_before: dict[str, int]) -> HostoffloadError | None:
    """Return why waiting is of no use: a process refused its config, or it ends again and again."""
    supervised = [one for one in local.supervisor.processes if one.kind not in NOT_NEEDED] if local.supervisor is not None else []
    for name in ["supervisor"] if local.supervisor is None else [one.name for one in supervised if one.pid is None]:
        told = left_behind(error_file(state_dir, name))
        if told is not None and told.exit_code == ConfigError.exit_code:
            return told
    for one in _restless(supervised, restarts_before):
        told = left_behind(error_file(state_dir, one.name))
        return told or RetryError(
            f"The {one.name} process ends again and again ({one.failure or f'exit code {one.exit_code}'})",
            hint=f"Read {layout.log_dir(state_dir) / one.name}.log; `hostoffload down` stops the rest.",
        )
    return None


def _reported(process: Supervised, local: LocalState) -> bool:
    if process.kind == "broker":
        return process.pid is not None
    return any(report.alive and report.pid == process.pid for report in local.of_kind(process.kind))


def _restless(processes: Iterable[Supervised], before: dict[str, int]) -> list[Supervised]:
    return [one for one in processes if one.restarts - before.setdefault(one.name, one.restarts) >= RESTARTS_MAX]


def left_behind(path: Path) -> HostoffloadError | None:
    """Return the error that a service wrote before it ended, None if it wrote none."""
    try:
        told = json.loads(path.read_bytes())
        kind = ConfigError if told["exit_code"] == ConfigError.exit_code else RetryError
        return kind(told["sentence"], hint=told["hint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
