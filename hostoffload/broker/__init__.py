"""A real Apache Kafka for one machine: named by the operator, in Docker, or as a JVM from Maven's jars.

The command line and the supervisor call `choose` to decide, `recorded` for what the state folder already has, `current` for a report.
Nothing is asked of a broker in `current` but one ping with a time limit, so that a dead one never delays a report.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hostoffload.broker import process
from hostoffload.broker.docker_broker import DockerBroker, image
from hostoffload.broker.engine import Engine
from hostoffload.broker.external import ExternalBroker
from hostoffload.broker.folder import BrokerFolder
from hostoffload.broker.interface import Broker, BrokerStatus
from hostoffload.broker.jars import KafkaJars, cache_dir
from hostoffload.broker.java_broker import JavaBroker, missing
from hostoffload.broker.plan import Wish, plan
from hostoffload.broker.probe import ping
from hostoffload.broker.settings import BrokerSettings
from stream.config import KafkaConfig
from stream.errors import ConfigError
from stream.security import uses_tls

__all__ = ["Broker", "BrokerSettings", "BrokerStatus", "choose", "current", "recorded"]

DEFAULT_SETTINGS = BrokerSettings()
PLAIN = KafkaConfig()


def choose(
    state_dir: Path,
    *,
    bootstrap: str | None,
    force: str | None,
    say: Callable[[str], None],
    settings: BrokerSettings = DEFAULT_SETTINGS,
    client: KafkaConfig = PLAIN,
) -> Broker:
    """Decide which broker this state folder uses; nothing is started, but an image may be pulled.

    `bootstrap` is what --bootstrap gave; without it and without `force` (`docker` or `jars`) the variable KAFKA_BOOTSTRAP counts,
    unless a broker of this folder runs.
    `say` gets progress and why a kind was passed over; `client` says how we prove ourselves to an external broker.
    Raises ConfigError when nothing works, with a hint how to get it, and when a local broker, which is plain, is to be used with TLS.
    """
    folder = BrokerFolder(state_dir)
    state = folder.load()
    running = state is not None and state.port is not None and process.find(folder.properties) is not None
    wish = Wish(
        bootstrap=bootstrap or None,
        environment=os.environ.get("KAFKA_BOOTSTRAP") or None,
        force=force,
        recorded=state.kind if state else None,
        recorded_bootstrap=state.bootstrap if state else None,
        running=state.bootstrap if state and running else None,
    )
    decision = plan(wish, _Machine(say), say)
    if decision.kind != "external" and client.security_protocol != PLAIN.security_protocol:
        raise ConfigError(
            f"A broker of this machine speaks plain text, and kafka.security_protocol is {client.security_protocol}",
            hint="Name the Kafka that it is for by kafka.bootstrap or --bootstrap.",
        )
    return _make(decision.kind, decision.bootstrap, folder, settings, say, client)


def recorded(
    state_dir: Path, *, say: Callable[[str], None], settings: BrokerSettings = DEFAULT_SETTINGS, client: KafkaConfig = PLAIN
) -> Broker | None:
    """Return the broker that this state folder used last, to stop it or ask it; None if there never was one. Asks nobody."""
    folder = BrokerFolder(state_dir)
    state = folder.load()
    return _make(state.kind, state.bootstrap, folder, settings, say, client) if state else None


def current(state_dir: Path, client: KafkaConfig = PLAIN) -> BrokerStatus | None:
    """Report the folder's broker from the state folder, the process table and one ping; None if there never was one.

    Answers within 0.2 s, a dead or frozen broker included.
    """
    folder = BrokerFolder(state_dir)
    state = folder.load()
    if state is None:
        return None
    if state.kind == "external":
        return BrokerStatus(state.kind, state.bootstrap, None, ping(state.bootstrap, tls=uses_tls(client)))
    pid = process.find(folder.properties)
    return BrokerStatus(state.kind, state.bootstrap, pid, pid is not None and ping(state.bootstrap))


class _Machine:
    """The tools of this machine, for the plan."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def lacks(self, kind: str) -> str | None:
        if kind == "docker":
            return Engine().lacks(image(), self._say)
        return missing(KafkaJars(cache_dir()))


def _make(
    kind: str, bootstrap: str | None, folder: BrokerFolder, settings: BrokerSettings, say: Callable[[str], None], client: KafkaConfig
) -> Broker:
    if kind == "external":
        assert bootstrap is not None
        return ExternalBroker(folder, bootstrap, client)
    if kind == "docker":
        return DockerBroker(folder, settings, say, Engine(), image())
    return JavaBroker(folder, settings, say, KafkaJars(cache_dir()))
