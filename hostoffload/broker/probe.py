"""Ask a broker whether it answers: `ping` (of `stream`) for a report that must not wait, `cluster` for a start that must be sure.

Nothing here changes anything on the broker, and no exception of the Kafka client crosses this border.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from stream.ping import ping

__all__ = ("Cluster", "cluster", "ping")

_silent = logging.getLogger("hostoffload.broker.probe")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who answered: the cluster's id and the number of brokers that it counts as alive."""

    cluster_id: str | None
    brokers: int


def cluster(bootstrap: str, timeout_s: float) -> Cluster:
    """List the topics by an admin client and say who answered. Raises RetryError if nobody does within `timeout_s`
    (or what else `stream.kafka.translate` reads from Kafka's answer)."""
    from confluent_kafka import KafkaException  # 60 ms to import: `ping` and the state report never pay it
    from confluent_kafka.admin import AdminClient

    from stream.kafka import translate

    admin = AdminClient({"bootstrap.servers": bootstrap, "socket.timeout.ms": max(int(timeout_s * 1000), 10), "logger": _silent})
    try:
        answer = admin.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise translate(error, "Kafka does not answer", bootstrap=bootstrap) from error
    return Cluster(answer.cluster_id, len(answer.brokers))
