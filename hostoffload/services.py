"""Which processes make up a running hostoffload: the lists that `up` and `agent run` hand to the supervisor.

Stopped in the order of their ranks: capture first (it waits until the publisher has delivered what it captured), then the publisher, CX,
target, the broker last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hostoffload import exports
from hostoffload.context import Context
from hostoffload.supervisor import ProcessSpec
from stream.config import Config, host_name
from stream.errors import ConfigError

if TYPE_CHECKING:
    from hostoffload.broker import Broker  # 40 ms, for every command

BROKER_STOP_S = 20.0
EXPORT_STOP_S = 8.0
BEHIND_AGENT = 5  # niceness of what would run on other machines: the application, its agent and Kafka's acknowledgement go first
_NO_METRICS_OF_ITS_OWN = {f"HOSTOFFLOAD_METRICS_{service}": "" for service in ("AGENT", "CX", "TARGET")}


def agent_services(context: Context, config: Config) -> list[ProcessSpec]:
    """Return the agent's two processes."""
    capture = _service(context, config, "capture", ["agent", "capture"])
    return [
        replace(capture, listens=True, rank=0, stop_s=30.0),
        replace(_service(context, config, "publisher", ["agent", "publisher"]), rank=1, stop_s=10.0),
    ]


def all_services(context: Context, config: Config, broker: Broker) -> list[ProcessSpec]:
    """Return everything that `up` runs on one machine; an external broker is not among it."""
    worker = config.cx.worker or host_name()
    services = [
        *agent_services(context, config),
        replace(_service(context, config, "cx", ["cx", "run", "--worker", worker]), rank=2, niceness=BEHIND_AGENT, stop_s=10.0),
        replace(_service(context, config, "target", ["target", "run"]), rank=3, niceness=BEHIND_AGENT, stop_s=15.0),
        *(further_target(context, config, name) for name in further_targets(config)),
    ]
    services = [replace(one, environment={**one.environment, **_NO_METRICS_OF_ITS_OWN}) for one in services]
    return [*broker_service(broker), *services, *metrics_service(context, config)]


def metrics_service(context: Context, config: Config) -> list[ProcessSpec]:
    """Return the process that serves metrics and health of all that `up` runs; nothing if the config has no address for it.

    Apart from the supervisor, which has one thread because it forks, and the last to stop: it tells what is down.
    """
    if not config.metrics.up:
        return []
    return [replace(_service(context, config, "metrics", ["metrics"]), rank=5, stop_s=3.0)]


def further_target(context: Context, config: Config, name: str) -> ProcessSpec:
    """Return a further target as a process to supervise."""
    service = _service(context, config, f"target-{name}", ["target", "run", "--name", name])
    return replace(service, kind="target", rank=3, niceness=BEHIND_AGENT, stop_s=15.0)


def further_targets(config: Config) -> list[str]:
    """Return the names of the targets that `up` runs beside its own. Raises ConfigError."""
    named = [check_target_name(name.strip()) for name in config.target.also.split(",") if name.strip()]
    return sorted(set(named) - {config.target.name})


def check_target_name(name: str) -> str:
    """Return the name if a target may have it: it names a folder, and is formed as a volume's. Raises ConfigError."""
    from stream.topics import check_volume_name

    try:
        return check_volume_name(name)
    except ConfigError as error:
        raise ConfigError(f"{name!r} is not a target name", hint=error.hint) from error


def export_services(context: Context) -> list[ProcessSpec]:
    """Return the exports that were left to the supervisor; their list changes while it runs."""
    return [
        ProcessSpec(
            "export",
            f"export-{one.id}",
            partial(command, context, ["export", "--declared", one.id]),
            os.environ | {"PYTHONFAULTHANDLER": "1"},
            rank=0,
            stop_s=EXPORT_STOP_S,
        )
        for one in exports.declared(context.state_dir)
    ]


def broker_service(broker: Broker) -> list[ProcessSpec]:
    """Return the local broker as a process to supervise; nothing for an external one."""
    if broker.kind == "external":
        return []
    return [
        ProcessSpec(
            "broker",
            "broker",
            broker.argv,
            broker.environment(),
            rank=4,
            stop_s=BROKER_STOP_S,
            find=lambda: broker.status().pid,
            prepare=broker.prepare,
            end=broker.stop,
        )
    ]


def command(context: Context, arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs a subcommand of this very program on the same state folder and config."""
    state = ["--state", str(context.state_dir.resolve())]
    config = ["--config", str(context.config_path.resolve())] if context.config_path is not None else []
    return [sys.executable, "-P", "-m", "hostoffload", *state, *config, *arguments]


def error_file(state_dir: Path, name: str) -> Path:
    """Return where a service leaves the error that ended it, for `up` to show."""
    return state_dir / "run" / f"{name}.error.json"


def _service(context: Context, config: Config, name: str, arguments: Sequence[str]) -> ProcessSpec:
    told = {"HOSTOFFLOAD_KAFKA_BOOTSTRAP": config.kafka.bootstrap, "PYTHONFAULTHANDLER": "1"}  # a crash in C leaves its stacks in the log
    return ProcessSpec(name, name, lambda: command(context, arguments), os.environ | told)
