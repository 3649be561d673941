"""The rights of each role on a real broker with an authorizer: what is given works, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from hostoffload.cli import main
from stream.acl import AccessLists
from stream.config import KafkaConfig
from stream.errors import ConfigError
from stream.kafka import client_settings
from stream.roles import ROLES, rights, rights_to_take
from stream.topics import Topics, data_topics, shared_topics
from tests.kafka_fixture import Kafka, fresh_volume_name
from tests.secure_kafka import SecureKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

WAIT_S = 60
REFUSED = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
TOPICS = ("own writes", "own journal", "other writes", "other journal", "control", "status")
ALLOWED = {
    "agent": {"read own writes", "write own writes", "read control", "write control", "read status", "write status"},
    "cx": {
        "read own writes", "create own writes", "read own journal", "write own journal", "create own journal",
        "read control", "write control", "write status",
    },
    "target": {"read own journal", "read control", "write control", "write status"},
    "operator": {f"{operation} {topic}" for operation in ("read", "create") for topic in TOPICS} | {"write control"},
    "stranger": set(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ground:
    """Topics of two volumes on the secured broker, each with a message in it."""

    kafka: SecureKafka
    own: str
    other: str

    def topic(self, name: str) -> str:
        whose, _, kind = name.rpartition(" ")
        return f"ho.{getattr(self, whose)}.{kind}" if whose else f"ho.{kind}"


@pytest.fixture(scope="module")
def ground(secure_kafka: SecureKafka) -> Ground:
    made = Ground(secure_kafka, fresh_volume_name(), fresh_volume_name())
    admin = secure_kafka.client()
    specs = [*shared_topics(admin), *data_topics(made.own, admin), *data_topics(made.other, admin)]
    Topics(admin).ensure(specs)
    for spec in specs:
        assert _write(admin, spec.name) is None
    for role in ROLES:
        AccessLists(admin).give(f"User:{role}", rights(role, [made.own] if role != "operator" else []))
    return made


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_this_and_nothing_else(ground: Ground, role: str) -> None:
    client = ground.kafka.client(role)
    asks = {"read": _read, "write": _write, "create": _create, "alter": _alter}
    wanted = {f"{operation} {topic}": topic for operation in asks for topic in TOPICS}
    done = {told for told, topic in wanted.items() if _allowed(asks[told.split()[0]](client, ground.topic(topic)))}
    assert done == ALLOWED[role]


@pytest.mark.parametrize("role", sorted(set(ALLOWED) - {"operator"}))
def test_only_the_operator_deletes_topics(ground: Ground, role: str) -> None:
    client = ground.kafka.client(role)
    assert [topic for topic in TOPICS if _allowed(_delete(client, ground.topic(topic)))] == []


def test_the_operator_makes_and_deletes_a_volumes_topics(ground: Ground) -> None:
    client = ground.kafka.client("operator")
    specs = data_topics(fresh_volume_name(), client)
    topics = Topics(client)
    topics.ensure(specs)
    topics.delete(spec.name for spec in specs)
    ends_s = time.monotonic() + WAIT_S
    while not {spec.name for spec in specs}.isdisjoint(topics.names()):
        assert time.monotonic() < ends_s
        time.sleep(0.1)


@pytest.mark.parametrize("role", sorted(ALLOWED))
def test_no_role_gives_itself_more(ground: Ground, role: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AccessLists(ground.kafka.client(role)).give(f"User:{role}", rights("agent", [ground.other]))
    assert caught.value.sentence == "This user may not change access control lists"


def test_rights_that_are_taken_are_gone(ground: Ground) -> None:
    admin, lists = ground.kafka.client(), AccessLists(ground.kafka.client())
    lists.give("User:stranger", rights("target", [ground.own]))
    stranger = ground.kafka.client("stranger")
    assert _until(stranger, ground.topic("own journal"), allowed=True)
    lists.take("User:stranger", rights_to_take("target", [ground.own]))
    assert _until(stranger, ground.topic("own journal"), allowed=False)
    assert _allowed(_read(stranger, ground.topic("control")))
    lists.take("User:stranger", rights_to_take("target", []))
    assert _until(stranger, ground.topic("control"), allowed=False)
    assert _allowed(_read(admin, ground.topic("control")))


def test_the_command_gives_and_takes(ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in ground.kafka.environment().items():
        monkeypatch.setenv(name, value)
    arguments = ["acl", "apply", "target", "--principal", "stranger", "--volume", ground.other, "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["principal"] == "User:stranger" and {"resource", "name", "prefix", "operation"} == set(told["rights"][0])
    assert _until(ground.kafka.client("stranger"), ground.topic("other journal"), allowed=True)
    assert main([*arguments, "--revoke"]) == 0
    assert main(["acl", "apply", "target", "--principal", "User:stranger", "--revoke"]) == 0
    assert _until(ground.kafka.client("stranger"), ground.topic("other journal"), allowed=False)


def test_a_broker_without_an_authorizer_is_told_as_one(kafka: Kafka) -> None:
    with pytest.raises(ConfigError) as caught:
        AccessLists(KafkaConfig(bootstrap=kafka.bootstrap)).give("User:x", rights("operator", []))
    assert "has no authorizer" in caught.value.sentence


def _allowed(code: int | None) -> bool:
    assert code in {None, KafkaError.TOPIC_ALREADY_EXISTS} | REFUSED, f"an error that says nothing of rights: {code}"
    return code not in REFUSED


def _until(client: KafkaConfig, topic: str, *, allowed: bool) -> bool:
    """Tell whether reading becomes allowed, or refused, in time: brokers hear of a list a moment later."""
    ends_s = time.monotonic() + WAIT_S
    while _allowed(_read(client, topic)) != allowed:
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.1)
    return True


def _read(client: KafkaConfig, topic: str) -> int | None:
    """Return the error's code, None if a message came."""
    settings = client_settings(client) | {"group.id": f"ho.reader.{uuid.uuid4().hex}", "enable.auto.commit": False}
    consumer = Consumer(settings)
    try:
        hidden = consumer.list_topics(topic, timeout=WAIT_S).topics[topic].error
        if hidden is not None:
            return hidden.code()  # a consumer of a topic that it may not even see waits in silence
        consumer.assign([TopicPartition(topic, 0, 0)])
        ends_s = time.monotonic() + WAIT_S
        while time.monotonic() < ends_s:
            message = consumer.poll(1.0)
            if message is not None:
                return message.error().code() if message.error() else None
        raise AssertionError(f"nothing came from {topic}")
    finally:
        consumer.close()


def _write(client: KafkaConfig, topic: str) -> int | None:
    told: list[KafkaError | None] = []
    producer = Producer(client_settings(client))
    producer.produce(topic, None, uuid.uuid4().hex, partition=0, on_delivery=lambda error, _: told.append(error))
    producer.flush(WAIT_S)
    assert told, f"no answer for {topic}"
    return told[0].code() if told[0] is not None else None


def _create(client: KafkaConfig, topic: str) -> int | None:
    admin = AdminClient(client_settings(client))
    return _code(admin.create_topics([NewTopic(topic, 1, 1)]))


def _delete(client: KafkaConfig, topic: str) -> int | None:
    admin = AdminClient(client_settings(client))
    return _code(admin.delete_topics([topic]))


def _alter(client: KafkaConfig, topic: str) -> int | None:
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(client_settings(client))
    return _code(admin.incremental_alter_configs([resource]))


def _code(asked: dict) -> int | None:
    (future,) = asked.values()
    try:
        future.result(WAIT_S)
    except KafkaException as error:
        return error.args[0].code()
    return None
