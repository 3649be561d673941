"""A broker that takes no message, for whatever reason: stated with a hint, gone on with by itself once it is put right, never a hole."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import Topics, data_topics, writes_topic
from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import Kafka, OwnBroker

pytestmark = pytest.mark.kafka

SIZE = 16 * MIB
KIB = 1024


@pytest.fixture
def rig(tmp_path: Path, kafka: Kafka) -> Iterator[AgentRig]:
    with AgentRig(tmp_path / "rig", kafka.bootstrap) as rig:
        yield rig
        rig.assert_alive()


@pytest.fixture
def volume(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> str:
    name = kafka.fresh_volume_name("refused")
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(SIZE)
    rig.declare(name, source)
    rig.start()
    rig.wait_data(name)
    return name


def alter(rig: AgentRig, volume: str, key: str, value: int) -> None:
    """Change a setting of the writes topic, as an operator does with kafka-configs."""
    entry = ConfigEntry(key, str(value), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, writes_topic(volume), incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": rig.config.kafka.bootstrap})
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


def write(rig: AgentRig, volume: str, seed: int, count: int, length: int) -> None:
    dice = random.Random(seed)
    with rig.client(volume) as client:
        for _ in range(count):
            client.write(dice.randrange(0, SIZE - length), dice.randbytes(length))


def error(rig: AgentRig, volume: str) -> str:
    return str(rig.report("publisher", volume).get("error"))


def assert_no_loss(rig: AgentRig, volume: str) -> None:
    """Everything is there, in order, in one epoch, and no gap was begun."""
    rig.wait_data(volume)
    fold = rig.assert_equal(volume)
    assert fold.epochs == [1]
    assert fold.marks_of("gap_begin") == []
    rig.wait(volume, lambda _, publisher: publisher["error"] is None)


@pytest.mark.slow
def test_a_lowered_message_limit_splits_what_is_sent(rig: AgentRig, volume: str) -> None:
    alter(rig, volume, "max.message.bytes", 60_000)
    write(rig, volume, 1, 200, 16 * KIB)
    assert_no_loss(rig, volume)
    assert f"Topic {writes_topic(volume)} takes no message of" in rig.log("publisher")
    alter(rig, volume, "max.message.bytes", MESSAGE_BYTES_MAX)
    write(rig, volume, 2, 100, 64 * KIB)
    assert_no_loss(rig, volume)


@pytest.mark.slow
def test_a_record_that_is_too_large_is_stated_and_goes_when_it_may(rig: AgentRig, volume: str) -> None:
    alter(rig, volume, "max.message.bytes", 20_000)
    write(rig, volume, 1, 3, 64 * KIB)
    rig.wait(volume, lambda _, publisher: "single record" in str(publisher["error"]))
    assert f"Topic {writes_topic(volume)} takes no message of" in error(rig, volume)
    assert "max.message.bytes" in error(rig, volume)
    sent = rig.log("publisher").count("librdkafka: FATAL")
    write(rig, volume, 2, 50, 4 * KIB)
    time.sleep(5)
    assert rig.log("publisher").count("librdkafka: FATAL") == sent, "the same bytes are sent again and again"
    assert rig.report("capture", volume)["mode"] == "DATA"
    alter(rig, volume, "max.message.bytes", MESSAGE_BYTES_MAX)
    assert_no_loss(rig, volume)


@pytest.mark.slow
def test_a_deleted_topic_is_stated_and_one_made_anew_begins_an_epoch(rig: AgentRig, volume: str) -> None:
    topics = Topics(rig.config.kafka)
    topics.delete([writes_topic(volume)])
    write(rig, volume, 1, 50, 16 * KIB)
    rig.wait(volume, lambda _, publisher: "does not exist" in str(publisher["error"]))
    assert "volume add" in error(rig, volume)
    time.sleep(2)
    assert writes_topic(volume) not in topics.names(), "it was made by the way"
    topics.ensure(data_topics(volume, rig.config.kafka))
    rig.wait(volume, lambda capture, _: capture["serving"] and capture["acknowledged"] > "00000002")
    rig.wait_data(volume)
    assert rig.assert_equal(volume).epochs == [2]


def test_a_host_that_boots_does_not_take_back_what_another_was_given(rig: AgentRig, volume: str) -> None:
    """It still knows the volume as its own; that the declaration names another agent now is learned before anything is claimed."""
    rig.kill("capture", "publisher")
    shutil.rmtree(rig.ring)
    rig.declare(volume, rig.sources[volume], agent="another")
    rig.start()
    end_s = time.monotonic() + 60
    while '"volumes": []' not in (rig.state / "agent" / "volumes.json").read_text():
        assert time.monotonic() < end_s, "it was never told"
        time.sleep(0.02)
    time.sleep(2)
    assert rig.fold(volume).epochs == [1]


@pytest.mark.slow
def test_a_broker_that_hangs_is_stated_and_gone_on_with(tmp_path: Path, own_broker: OwnBroker) -> None:
    with AgentRig(tmp_path / "rig", own_broker.bootstrap) as rig:
        volume = own_broker.fresh_volume_name("hangs")
        source = tmp_path / "source"
        with source.open("wb") as file:
            file.truncate(SIZE)
        rig.declare(volume, source)
        rig.start()
        rig.wait_data(volume)
        own_broker.freeze()
        write(rig, volume, 1, 50, 16 * KIB)
        rig.wait(volume, lambda _, publisher: "acknowledges nothing of volume" in str(publisher["error"]))
        rig.wait(volume, lambda _, publisher: "answer" in str(publisher["error"]))
        own_broker.thaw()
        assert_no_loss(rig, volume)
        rig.assert_alive()
