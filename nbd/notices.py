"""Log lines about clients, so few that a client that fails again and again can't fill a disk.

An event name and fields a line, on the logger "nbd". Lines of one event above the limit are counted and told with the next one.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic

LINES_MAX = 10
"""Lines of one event in each period."""

PERIOD_S = 10.0

log = logging.getLogger("nbd")

_lock = threading.Lock()
_seen: dict[str, tuple[float, int]] = {}


def warn(event: str, **fields: object) -> None:
    """Log a warning unless this event had its share."""
    now = monotonic()
    with _lock:
        since, count = _seen.get(event, (now, 0))
        if now - since > PERIOD_S:
            fields |= {"suppressed": count - LINES_MAX} if count > LINES_MAX else {}
            since, count = now, 0
        _seen[event] = since, count + 1
    if count < LINES_MAX:
        log.warning(_line(event, fields))


def inform(event: str, **fields: object) -> None:
    """Log what normally happens."""
    if log.isEnabledFor(logging.INFO):
        log.info(_line(event, fields))


def _line(event: str, fields: dict[str, object]) -> str:
    return " ".join([event, *(f"{key}={value}" for key, value in fields.items() if value is not None)])
