"""A process's report: to a file of the local state folder, which `status` reads whatever else is dead, and to `ho.status`.

The local file is `<state>/status/<kind>-<instance>.json`, replaced atomically:
`{"kind", "instance", "host", "pid", "at_ns", "volumes": {name: {"position": str, fact: value, ...}}}`. On `ho.status` the same
goes as a `ProcessReport`, facts as text: lists and objects as JSON, all else as Python prints it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream.config import host_name
from stream.control import ControlWriter, ProcessReport, VolumeReport
from stream.position import Position

STREAM_INTERVAL_S = 0.1


class Reporter:
    """Report what this process sees; call `report` as often as facts change, the stream hears it every `STREAM_INTERVAL_S` at most.

    The local file is written at once and without fsync: it tells, it promises nothing. `writer` is None for a process without Kafka.
    """

    def __init__(self, state_dir: Path, kind: str, instance: str, writer: ControlWriter | None) -> None:
        self._kind = kind
        self._instance = instance
        self._writer = writer
        self._path = state_dir / "status" / f"{kind}-{instance}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._next_stream_s = 0.0

    def report(self, volumes: Mapping[str, tuple[Position, Mapping[str, Any]]]) -> None:
        """Tell position and facts of each volume."""
        at_ns = time.time_ns()
        told = {
            "kind": self._kind,
            "instance": self._instance,
            "host": host_name(),
            "pid": os.getpid(),
            "at_ns": at_ns,
            "volumes": {name: {"position": str(position), **facts} for name, (position, facts) in volumes.items()},
        }
        new = self._path.with_suffix(f".{os.getpid()}.new")
        new.write_text(json.dumps(told), encoding="utf-8")
        os.replace(new, self._path)
        now_s = time.monotonic()
        if self._writer is not None and now_s >= self._next_stream_s:
            self._next_stream_s = now_s + STREAM_INTERVAL_S
            reports = tuple(
                VolumeReport(name, position, {key: _text(value) for key, value in facts.items() if value is not None})
                for name, (position, facts) in volumes.items()
            )
            self._writer.report(ProcessReport(self._kind, self._instance, host_name(), os.getpid(), at_ns, reports))


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
