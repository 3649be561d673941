"""Topics: their names, the settings that carry a guarantee, and the check that a topic really has them.

Called at start by every service and by `volume add`. A topic is created with its settings, or what exists is compared and refused when it
contradicts the config; nothing is altered silently.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from stream.config import KafkaConfig
from stream.errors import ConfigError, HostoffloadError, ResyncError, RetryError
from stream.kafka import client_settings, translate
from stream.schema import MESSAGE_BYTES_MAX
from stream.topic_names import check_volume_name as check_volume_name
from stream.topic_names import journal_topic as journal_topic
from stream.topic_names import volume_of as volume_of
from stream.topic_names import writes_topic as writes_topic

CONTROL_TOPIC = "ho.control"
STATUS_TOPIC = "ho.status"
ADMIN_TIMEOUT_S = 15.0
VISIBLE_TIMEOUT_S = 10.0
VISIBLE_PAUSE_S = 0.02
_MOVING = (  # the group's coordinator is found or comes up just now
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must be: one partition, and these settings."""

    name: str
    replication_factor: int
    settings: dict[str, str]


def data_topics(volume: str, config: KafkaConfig) -> tuple[TopicSpec, TopicSpec]:
    """Return the writes and the journal topic of a volume.

    LogAppendTime, so that a wrong host clock neither deletes segments nor has messages refused (design rule 23).
    """
    settings = {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
        "compression.type": "producer",
        "min.insync.replicas": str(config.min_insync_replicas),
        "retention.ms": str(config.retention_ms),
        "retention.bytes": str(config.retention_bytes),
        "unclean.leader.election.enable": "false",
    }
    return (
        TopicSpec(writes_topic(volume), config.replication_factor, settings),
        TopicSpec(journal_topic(volume), config.replication_factor, settings),
    )


def shared_topics(config: KafkaConfig) -> tuple[TopicSpec, TopicSpec]:
    """Return the control and the status topic."""
    settings = {
        "cleanup.policy": "compact",
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
        "min.insync.replicas": str(config.min_insync_replicas),
        "unclean.leader.election.enable": "false",
    }
    status = settings | {"segment.ms": "600000", "min.cleanable.dirty.ratio": "0.1"}
    return (
        TopicSpec(CONTROL_TOPIC, config.replication_factor, settings),
        TopicSpec(STATUS_TOPIC, config.replication_factor, status),
    )


@dataclass(frozen=True, slots=True)
class TopicCondition:
    """How a topic's partition stands at the broker now, as far as it decides whether a message is taken."""

    topic_id: str
    has_leader: bool
    in_sync: int
    in_sync_min: int
    message_bytes_max: int


class Topics:
    """Create, check, look up and delete topics. Every call raises RetryError while the broker does not answer.

    Each call after one that was not answered has a client of its own: one that was told of a cluster without brokers, as a broker tells
    that was frozen and is not back in its session yet, forgets them all and never connects again (librdkafka 2.13 to 2.16, its issue 5301).
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._client = AdminClient(client_settings(config))
        self._answered = True

    @property
    def _admin(self) -> AdminClient:
        if not self._answered:
            self._client, self._answered = AdminClient(client_settings(self._config)), True
        return self._client

    def ensure(self, specs: Iterable[TopicSpec]) -> None:
        """Create what is missing, then check all. Raises ConfigError when a topic contradicts its spec.

        Raises RetryError also while fewer brokers are there than a topic wants replicas: they start one after the other.
        """
        specs = list(specs)
        existing = self.names()
        new = [
            NewTopic(spec.name, num_partitions=1, replication_factor=spec.replication_factor, config=spec.settings)
            for spec in specs
            if spec.name not in existing
        ]
        for name, future in (self._admin.create_topics(new, request_timeout=ADMIN_TIMEOUT_S) if new else {}).items():
            try:
                self._result(future)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR:
                    raise _too_few_brokers(error, name) from error
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._failed(error, f"Topic {name} can't be created", topic=name) from error
        deadline_s = time.monotonic() + VISIBLE_TIMEOUT_S
        while True:
            try:
                return self.check(specs)
            except ResyncError:  # made just now: brokers learn of it one after the other
                if not new or time.monotonic() > deadline_s:
                    raise
                time.sleep(VISIBLE_PAUSE_S)

    def check(self, specs: Iterable[TopicSpec]) -> None:
        """Compare what each topic really has with its spec. Raises ConfigError that names every difference."""
        specs = {spec.name: spec for spec in specs}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in specs]
        for resource, future in self._admin.describe_configs(resources, request_timeout=ADMIN_TIMEOUT_S).items():
            try:
                real = {key: entry.value for key, entry in self._result(future).items()}
            except KafkaException as error:
                raise self._failed(error, f"Topic {resource.name} can't be read", topic=resource.name) from error
            spec = specs[resource.name]
            wrong = {key: (value, real.get(key)) for key, value in spec.settings.items() if real.get(key) != value}
            if wrong:
                told = "; ".join(f"{key} is {got}, expected {value}" for key, (value, got) in wrong.items())
                raise ConfigError(
                    f"Topic {spec.name} contradicts the config: {told}",
                    hint="Change the topic with kafka-configs, or the [kafka] section of the config, so that both agree.",
                )
        for name, partitions in self._partitions(list(specs)).items():
            if partitions != 1:
                raise ConfigError(f"Topic {name} has {partitions} partitions, expected 1", hint="Order needs one partition: make it anew.")

    def names(self) -> set[str]:
        """Return the names of all topics."""
        try:
            return set(self._admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics)
        except KafkaException as error:
            raise self._failed(error, "The broker does not answer") from error

    def topic_id(self, name: str) -> str | None:
        """Return Kafka's own id of the topic, None if there is no such topic. A topic made anew has another one (design rule 8)."""
        described = self._admin.describe_topics(TopicCollection([name]), request_timeout=ADMIN_TIMEOUT_S)
        try:
            return str(self._result(described[name]).topic_id)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise self._failed(error, f"Topic {name} can't be described", topic=name) from error

    def condition(self, name: str) -> TopicCondition | None:
        """Return how the topic stands, None if there is no such topic."""
        described = self._admin.describe_topics(TopicCollection([name]), request_timeout=ADMIN_TIMEOUT_S)
        resource = ConfigResource(ResourceType.TOPIC, name)
        settings = self._admin.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)
        try:
            found = self._result(described[name])
            real = {key: entry.value for key, entry in self._result(settings[resource]).items()}
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return None
            raise self._failed(error, f"Topic {name} can't be described", topic=name) from error
        partition = found.partitions[0]
        return TopicCondition(
            str(found.topic_id),
            partition.leader is not None and partition.leader.id >= 0,
            len(partition.isr),
            int(real["min.insync.replicas"]),
            int(real["max.message.bytes"]),
        )

    def taken(self, group: str) -> set[str] | None:
        """Return the topics that are assigned to a member of the consumer group; None while the group is not at rest."""
        described = self._admin.describe_consumer_groups([group], request_timeout=ADMIN_TIMEOUT_S)
        try:
            found = self._result(described[group])
        except KafkaException as error:
            if error.args[0].code() in _MOVING:
                return None
            raise self._failed(error, f"Group {group} can't be described", group=group) from error
        if found.state != ConsumerGroupState.STABLE:
            return None
        return {partition.topic for member in found.members for partition in member.assignment.topic_partitions}

    def delete(self, names: Iterable[str]) -> None:
        """Delete topics; those that are not there are passed over."""
        wanted = [name for name in names if name in self.names()]
        for name, future in (self._admin.delete_topics(wanted, request_timeout=ADMIN_TIMEOUT_S) if wanted else {}).items():
            try:
                self._result(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._failed(error, f"Topic {name} can't be deleted", topic=name) from error

    def _partitions(self, names: list[str]) -> dict[str, int]:
        described = self._admin.describe_topics(TopicCollection(names), request_timeout=ADMIN_TIMEOUT_S)
        found = {}
        for name, future in described.items():
            try:
                found[name] = len(self._result(future).partitions)
            except KafkaException as error:
                raise self._failed(error, f"Topic {name} can't be described", topic=name) from error
        return found

    def _result(self, future: Future) -> Any:
        """Return what the broker answered. Raises KafkaException, RetryError when it does not answer in time."""
        try:
            return future.result(ADMIN_TIMEOUT_S)
        except TimeoutError as error:
            self._answered = False
            raise RetryError("The broker does not answer in time", hint="Check that it runs and can be reached.") from error

    def _failed(self, error: KafkaException, sentence: str, **facts: object) -> HostoffloadError:
        """Return our error for Kafka's, after taking note of what it means for the client."""
        told = translate(error, sentence, **facts)
        self._answered = not isinstance(told, RetryError)
        return told


def _too_few_brokers(error: KafkaException, topic: str) -> RetryError:
    return RetryError(
        f"Topic {topic} can't be created: {error.args[0].str()}",
        hint="Start the brokers that are missing, or lower kafka.replication_factor.",
        topic=topic,
    )
