"""Metrics and health over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts services.

Everything is read from the reports that the services write anyway (`stream.report`), when somebody asks: no service counts anything for
it. `start` is called by the commands of the services; one address tells of one service, or of all that `up` runs.
"""

from __future__ import annotations

from pathlib import Path

from hostoffload.listeners import parse_listen
from stream.config import Config

EXAMPLE_PORT = 9640


def address_of(config: Config, service: str) -> tuple[str, int] | None:
    """Return where a service (`up`, `agent`, `cx` or `target`) is to tell its metrics, None for nowhere. Raises ConfigError."""
    return parse_listen(getattr(config.metrics, service), f"metrics.{service}", EXAMPLE_PORT)


def start(config: Config, service: str, state_dir: Path, name: str) -> None:
    """Serve the metrics of this process, which is `name`, from a thread of its own if the config has an address. Raises ConfigError.

    An address that can't be had is said in the log and tried again: it keeps no service from its work.
    """
    address = address_of(config, service)
    if address is None:
        return
    from hostoffload.metrics.endpoint import Endpoint  # prometheus_client: 60 ms, for those who want it
    from hostoffload.metrics.scope import Scope

    Endpoint(address, Scope(service, name, state_dir)).start()
