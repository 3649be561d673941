"""Where a replica is kept: by which target, whether that one is on this machine, and how long a store backs its delay.

Used by `volume add`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hostoffload import layout, local_state
from hostoffload.context import Context
from hostoffload.services import check_target_name, further_targets
from stream.config import Config


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """A target: `here` if it is this machine's, by the config or because it runs on this state folder; `runs` if it does now."""

    name: str
    here: bool
    runs: bool


def target_of(context: Context, config: Config, named: str | None) -> NamedTarget:
    """Return the target that is meant; the config's own if none is named. Raises ConfigError."""
    name = config.target.name if named in (None, config.target.name) else check_target_name(named)
    running = {report.instance for report in local_state.read(context.state_dir).of_kind("target") if report.alive}
    return NamedTarget(name, name in (running | {config.target.name, *further_targets(config)}), name in running)


def kept_by_store_s(context: Context, config: Config) -> float | None:
    """Return how long the store keeps every write, None where there is no store to read. Raises ConfigError."""
    from cx_consumers.target_delay import stored_s

    return stored_s(config, has_store=bool(config.cx.store_url) or layout.store_dir(context.state_dir).is_dir())
