"""How far a replica may stay behind: not longer than journal and store keep what it waits for (design rule 25). Pure."""

from __future__ import annotations

import math

from history.retention_table import FOR_EVER, parse_table
from stream.config import Config, KafkaConfig
from stream.errors import ConfigError

DELAY_S_MAX = 366 * 86400.0


def stored_s(config: Config, *, has_store: bool) -> float | None:
    """Return how long a store keeps every write, None where there is none. Raises ConfigError."""
    any_write_ns = parse_table(config.history.retention).any_write_ns
    if not has_store:
        return None
    return math.inf if any_write_ns >= FOR_EVER else any_write_ns / 1e9


def check_delay(delay_s: float, config: KafkaConfig, *, stored_s: float | None) -> None:
    """Refuse a delay that outlasts both; `stored_s` is what the function of that name says. Raises ConfigError."""
    if not 0 <= delay_s <= DELAY_S_MAX:
        raise ConfigError(f"A delay of {delay_s:g} s is out of range", hint=f"0 to {DELAY_S_MAX:.0f} seconds.", got=delay_s)
    kept_s = math.inf if config.retention_ms < 0 else config.retention_ms / 1000
    if not delay_s or delay_s < max(kept_s, stored_s or 0.0):
        return
    by = "the journal keeps" if stored_s is None else "journal and store keep"
    raise ConfigError(
        f"A delay of {delay_s:.0f} s is longer than {by}: {max(kept_s, stored_s or 0.0):.0f} s",
        hint="Shorten it, raise kafka.retention_ms, or have a store keep every write as long (cx.store_url, history.retention).",
        expected=max(kept_s, stored_s or 0.0),
        got=delay_s,
    )
