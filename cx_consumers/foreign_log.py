"""The logs of Faust and aiokafka, made bearable: warnings and errors only, and each line of their code once in a while.

While a broker is away they write a dozen lines a second. Called once, by the process that runs Faust, after its log is configured.
"""

from __future__ import annotations

import logging
import time

PACKAGES = ("faust", "mode", "aiokafka")
INTERVAL_S = 10.0


class RareRepeats(logging.Filter):
    """Let each line of foreign code through once in `INTERVAL_S`, without its traceback: what matters is told by our own events."""

    def __init__(self) -> None:
        super().__init__()
        self._next_s: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[0] not in PACKAGES:
            return True
        place = record.name, record.lineno
        now_s = time.monotonic()
        if now_s < self._next_s.get(place, 0.0):
            return False
        self._next_s[place] = now_s + INTERVAL_S
        record.exc_info = record.exc_text = None
        return True


def quieten() -> None:
    """Set the level of the foreign loggers and thin out what they say."""
    for name in PACKAGES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    rare = RareRepeats()
    for handler in logging.getLogger().handlers:
        handler.addFilter(rare)
