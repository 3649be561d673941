"""What the supervisor says of itself: `status/supervisor-local.json`, in the form of every process's report, with its processes added.

`{"kind", "instance", "host", "pid", "start_ticks", "boot", "at_ns", "since", "role", "volumes": {}, "processes": [{"kind", "name", "pid",
"since", "restarts", "exit_code", "failure", "held"}]}`. Written by the supervisor with every change, read by `status`, `up` and `down`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostoffload.process import ProcessId
from stream.config import host_name

if TYPE_CHECKING:
    from hostoffload.supervisor import Ward

INSTANCE = "local"


def path_of(state_dir: Path) -> Path:
    return state_dir / "status" / f"supervisor-{INSTANCE}.json"


class SupervisorReport:
    """Write the report when it differs from the last one."""

    def __init__(self, state_dir: Path, role: str) -> None:
        identity = ProcessId.of(os.getpid())
        assert identity is not None
        self._path = path_of(state_dir)
        self._fixed = {
            "kind": "supervisor",
            "instance": INSTANCE,
            "host": host_name(),
            "pid": identity.pid,
            "start_ticks": identity.start_ticks,
            "boot": identity.boot,
            "since": time.time(),
            "role": role,
            "volumes": {},
        }
        self._written: list[dict[str, Any]] | None = None

    def write(self, wards: Sequence[Ward]) -> None:
        processes = [
            {
                "kind": ward.spec.kind,
                "name": ward.spec.name,
                "pid": ward.handle.id.pid if ward.handle is not None else None,
                "since": ward.since if ward.handle is not None else None,
                "restarts": ward.restarts,
                "exit_code": ward.exit_code,
                "failure": ward.failure,
                "held": ward.held,
            }
            for ward in wards
        ]
        if processes == self._written:
            return
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._fixed | {"at_ns": time.time_ns(), "processes": processes}), encoding="utf-8")
        os.replace(new, self._path)
        self._written = processes

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
