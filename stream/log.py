"""Logs: an event name and fields, as text or JSON, one line an event.

A line of JSON has `at` (seconds since 1970), `level`, `service`, `event`, and the fields under their own names, numbers as numbers; a field
that has one of those names gets an underscore behind it. `trace` is the traceback of a bug.

Call `configure` once in a process's main; everywhere else `logging.getLogger(__name__)` with an event name as the message and
the fields in `extra={"fields": {...}}` through `event`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from stream.config import LogConfig

REPEAT_INTERVAL_S = 10.0


def configure(config: LogConfig, process: str) -> None:
    """Send the lines of this process to stderr in the wanted form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonForm(process) if config.format == "json" else _TextForm(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())


def event(logger: logging.Logger, level: int, name: str, **fields: Any) -> None:
    """Write one event with its fields; those that are None are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, name, extra={"fields": {key: value for key, value in fields.items() if value is not None}})


class Repeats:
    """Let one event of a kind through in `REPEAT_INTERVAL_S` and count the others."""

    def __init__(self, interval_s: float = REPEAT_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._next: dict[str, float] = {}
        self._hidden: dict[str, int] = {}

    def event(self, logger: logging.Logger, level: int, name: str, **fields: Any) -> None:
        now_s = time.monotonic()
        if now_s < self._next.get(name, 0.0):
            self._hidden[name] = self._hidden.get(name, 0) + 1
            return
        self._next[name] = now_s + self._interval_s
        event(logger, level, name, **fields, hidden=self._hidden.pop(name, None))


class _TextForm(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        line = f"{when} {record.levelname.lower()} {self._process} {record.getMessage()}{' ' if fields else ''}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonForm(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": record.created,
            "level": record.levelname.lower(),
            "service": self._process,
            "event": record.getMessage(),
        }
        for key, value in getattr(record, "fields", {}).items():
            line[f"{key}_" if key in line else key] = value if isinstance(value, bool | int | float) else str(value)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)
