"""The broker of a run: one of its own, on the same disk, gone afterwards; or one that is named and that nobody else uses."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.processes import Process
from hostoffload.broker import Broker, choose
from stream.config import KafkaConfig
from stream.control import ControlWriter, VolumeDeclaration
from stream.errors import HostoffloadError, RetryError
from stream.topics import Topics, data_topics, shared_topics

START_S = 90.0
STOP_S = 20.0
LOCAL_KINDS = ("jars", "docker")


@contextmanager
def broker(folder: Path, bootstrap: str | None, say: Callable[[str], None]) -> Iterator[KafkaConfig]:
    """Yield the settings of a broker that is ready. Raises RetryError when there is none to be had."""
    chosen = _choose(folder, bootstrap, say)
    child = None
    try:
        setpriv = shutil.which("setpriv")
        if chosen.kind == "jars" and setpriv is not None:
            chosen.prepare()
            command = [setpriv, "--pdeathsig", "KILL", *chosen.argv()]
            child = Process("broker", command, folder / "broker.out", chosen.environment())
            chosen.wait_ready(START_S)
        else:
            chosen.start(START_S)
        config = KafkaConfig(bootstrap=chosen.bootstrap)
        Topics(config).ensure(shared_topics(config))
        yield config
    finally:
        chosen.stop(STOP_S)
        if child is not None:
            child.stop()


def declare(config: KafkaConfig, declaration: VolumeDeclaration) -> VolumeDeclaration:
    """Make the volume's topics and declare it; return the declaration as it stands in `ho.control`."""
    Topics(config).ensure(data_topics(declaration.volume, config))
    return _put(config, replace(declaration, declared_at_ns=time.time_ns()))


def withdraw(config: KafkaConfig, declaration: VolumeDeclaration) -> None:
    """Declare the volume removed and delete its topics, so that nothing of it burdens what is measured next."""
    _put(config, replace(declaration, state="removed"))
    Topics(config).delete([spec.name for spec in data_topics(declaration.volume, config)])


def environment(base: Mapping[str, str], config: KafkaConfig | None, agent: str) -> dict[str, str]:
    """Return the environment of the measured processes: the caller's own settings of hostoffload do not count."""
    plain = {name: value for name, value in base.items() if not name.startswith("HOSTOFFLOAD_")}
    plain |= {"HOSTOFFLOAD_AGENT_NAME": agent, "HOSTOFFLOAD_LOG_LEVEL": "warning", "HOSTOFFLOAD_AGENT_VERIFY_BYTES_PER_S": "0"}
    plain |= {"HOSTOFFLOAD_AGENT_OVERFLOW": "throttle", "HOSTOFFLOAD_AGENT_THROTTLE_S_MAX": "600"}  # what is measured is captured in order
    return plain if config is None else plain | {"HOSTOFFLOAD_KAFKA_BOOTSTRAP": config.bootstrap}


def _put(config: KafkaConfig, declaration: VolumeDeclaration) -> VolumeDeclaration:
    writer = ControlWriter(config)
    try:
        writer.put(declaration)
    finally:
        writer.close()
    return declaration


def _choose(folder: Path, bootstrap: str | None, say: Callable[[str], None]) -> Broker:
    if bootstrap is not None:
        return choose(folder, bootstrap=bootstrap, force=None, say=say)
    reasons = []
    for kind in LOCAL_KINDS:
        try:
            return choose(folder, bootstrap=None, force=kind, say=say)
        except HostoffloadError as error:
            reasons.append(error.sentence)
    raise RetryError(f"No Kafka for the benchmark: {' '.join(reasons)}", hint="Install Java and Maven, or Docker, or use --bootstrap.")
