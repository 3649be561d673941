"""What a broker of one machine is tuned to, and the `server.properties` that say it.

Pure: the local brokers render this and write it down. Both kinds (jars, docker) read the same file, so a data folder made by one
is good for the other.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from pathlib import Path

from stream.errors import ConfigError

KAFKA_VERSION = "4.3.1"
NODE_ID = 1
SESSION_MS_MIN = 500

# Characters with a meaning of their own in `log.dirs` (a list), a properties file or a bind mount.
PATH_CHARACTERS_REFUSED = ',:"\\\n\r'


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Sizes and times of a local broker.

    `session_timeout_ms` is what a start after SIGKILL waits for (the dead incarnation's session must end first): 9 s by default in
    Kafka, start to ready 12.5 s; at 2 s it is 3.5 s. A broker that stalls longer than this is fenced for a moment and comes back by
    itself; clients retry. `segment_bytes` bounds what is read again after SIGKILL: only the open segment of a partition.
    """

    heap_mib_min: int = 256
    heap_mib_max: int = 1024
    session_timeout_ms: int = 2000
    heartbeat_ms: int = 250
    segment_bytes: int = 128 * 1024 * 1024
    message_bytes_max: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 64 <= self.heap_mib_min <= self.heap_mib_max:
            raise ConfigError(
                "The broker's heap needs 64 MiB at least, and its first size must not be above its maximum.",
                heap_mib_min=self.heap_mib_min,
                heap_mib_max=self.heap_mib_max,
            )
        if self.session_timeout_ms < SESSION_MS_MIN or not 0 < self.heartbeat_ms <= self.session_timeout_ms // 3:
            raise ConfigError(
                "The broker's heartbeat must fit three times into its session.",
                session_timeout_ms=self.session_timeout_ms,
                heartbeat_ms=self.heartbeat_ms,
            )


def server_properties(settings: BrokerSettings, *, data: Path, port: int, controller_port: int) -> str:
    """Render `server.properties` for one node that is broker and controller, listening on 127.0.0.1 only.

    Raises ConfigError for a data path that Kafka's own syntax can't carry.
    """
    if any(refused in str(data) for refused in PATH_CHARACTERS_REFUSED):
        raise ConfigError(
            "Kafka can't keep its data below a path with a comma, colon, quote or backslash in it.",
            hint="choose another state folder with --state",
            path=data,
        )
    lines = {
        "process.roles": "broker,controller",
        "node.id": NODE_ID,
        "controller.quorum.voters": f"{NODE_ID}@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{port}",
        "inter.broker.listener.name": "CLIENT",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        # One node holds one copy. Four partitions instead of fifty: each costs an open, and after SIGKILL a recovery.
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        "message.max.bytes": settings.message_bytes_max,
        "replica.fetch.max.bytes": settings.message_bytes_max,
        "log.segment.bytes": settings.segment_bytes,
        "num.recovery.threads.per.data.dir": 2,
        "num.network.threads": 2,
        "num.io.threads": 4,
        # The idle controller writes and syncs a record each 500 ms by default: a disk kept awake, beside the volumes' own syncs.
        "metadata.max.idle.interval.ms": 5000,
        "broker.session.timeout.ms": settings.session_timeout_ms,
        "broker.heartbeat.interval.ms": settings.heartbeat_ms,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def new_cluster_id() -> str:
    """Return a random id in Kafka's form: a UUID in 22 characters of URL-safe base64 that does not start with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
