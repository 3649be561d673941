"""Topics on a real broker: made with their settings, and refused when they contradict the config."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from stream.config import KafkaConfig
from stream.errors import ConfigError, RetryError
from stream.topics import Topics, data_topics, writes_topic
from tests.kafka_fixture import Kafka


def _alter(bootstrap: str, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    changed = admin.incremental_alter_configs([ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])])
    for future in changed.values():
        future.result(10)


def test_made_topics_pass_the_check_again(kafka: Kafka) -> None:
    config, volume = KafkaConfig(bootstrap=kafka.bootstrap), kafka.fresh_volume_name()
    topics = Topics(config)
    topics.ensure(data_topics(volume, config))
    topics.ensure(data_topics(volume, config))
    assert topics.topic_id(writes_topic(volume)) is not None


@pytest.mark.parametrize(("key", "value"), [("message.timestamp.type", "CreateTime"), ("cleanup.policy", "compact")])
def test_a_topic_that_contradicts_the_config_is_named(kafka: Kafka, key: str, value: str) -> None:
    """Design rule 23: a topic that takes the hosts' clocks would delete segments by them."""
    config, volume = KafkaConfig(bootstrap=kafka.bootstrap), kafka.fresh_volume_name()
    topics = Topics(config)
    topics.ensure(data_topics(volume, config))
    _alter(kafka.bootstrap, writes_topic(volume), key, value)
    with pytest.raises(ConfigError, match=f"{writes_topic(volume)}.*{key} is {value}"):
        topics.check(data_topics(volume, config))


def test_a_topic_of_several_partitions_is_refused(kafka: Kafka) -> None:
    config, volume = KafkaConfig(bootstrap=kafka.bootstrap), kafka.fresh_volume_name()
    spec = data_topics(volume, config)[0]
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic(spec.name, 3, 1, config=spec.settings)])[spec.name].result(10)
    with pytest.raises(ConfigError, match="3 partitions"):
        Topics(config).ensure([spec])


def test_a_topic_that_is_not_there_has_no_id(kafka: Kafka) -> None:
    assert Topics(KafkaConfig(bootstrap=kafka.bootstrap)).topic_id(writes_topic(kafka.fresh_volume_name())) is None


@pytest.mark.slow
def test_a_broker_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(RetryError, match="broker"):
        Topics(KafkaConfig(bootstrap="127.0.0.1:1")).names()


def test_too_few_brokers_are_waited_for(kafka: Kafka) -> None:
    """A cluster that starts has one broker after the other: nobody's config is wrong because of it."""
    config, volume = KafkaConfig(bootstrap=kafka.bootstrap, replication_factor=16), kafka.fresh_volume_name()
    with pytest.raises(RetryError, match="can't be created") as refused:
        Topics(config).ensure(data_topics(volume, config))
    assert "replication_factor" in refused.value.hint
