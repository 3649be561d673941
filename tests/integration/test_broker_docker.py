"""The docker broker against a real engine: the same promises as the jars kind, on the same data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from hostoffload.broker import Broker, recorded
from tests.kafka_fixture import local_broker

pytestmark = pytest.mark.kafka

START_S = 90
STOP_S = 20
TOPIC = "t"


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A state folder whose broker, of whatever kind, is ended afterwards."""
    yield tmp_path / "state"
    broker = recorded(tmp_path / "state", say=print)
    if broker is not None:
        broker.stop(STOP_S)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another wish, the image that docker/kafka/build.sh makes: no registry is needed."""
    monkeypatch.setenv("HOSTOFFLOAD_BROKER_IMAGE", os.environ.get("HOSTOFFLOAD_BROKER_IMAGE", "hostoffload/kafka:4.3.1"))


def make(state_dir: Path, kind: str) -> Broker:
    """Choose a kind; without an engine or the image skip, or in CI fail."""
    return local_broker(state_dir, print, kinds=(kind,))


def publish(bootstrap: str, value: bytes) -> None:
    failed: list[object] = []
    client = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True})
    client.produce(TOPIC, value, partition=0, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert client.flush(60) == 0
    assert failed == []


def read(bootstrap: str, count: int) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    found = [message.value() for message in consumer.consume(count, 20)]
    consumer.close()
    return found


def containers() -> list[str]:
    told = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_one_data_folder_serves_both_kinds_over_stop_and_sigkill(state_dir: Path) -> None:
    broker = make(state_dir, "docker")
    broker.start(START_S)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC].result(20)
    publish(broker.bootstrap, b"in docker")
    owners = {path.stat().st_uid for path in (state_dir / "broker").rglob("*")}
    assert owners == {os.getuid()}

    os.kill(broker.status().pid, signal.SIGKILL)
    broker.start(START_S)
    publish(broker.bootstrap, b"after kill")
    broker.stop(STOP_S)
    assert broker.status().pid is None
    assert broker.container not in containers()

    jars = make(state_dir, "jars")
    jars.start(START_S)
    assert jars.bootstrap == broker.bootstrap
    publish(jars.bootstrap, b"in the jars")
    jars.stop(STOP_S)

    again = make(state_dir, "docker")
    again.start(START_S)
    assert read(again.bootstrap, 3) == [b"in docker", b"after kill", b"in the jars"]


def test_a_second_caller_adopts_the_container(state_dir: Path) -> None:
    broker = make(state_dir, "docker")
    broker.start(START_S)
    pid = broker.status().pid
    program = (
        "import sys; from pathlib import Path; from hostoffload.broker import choose\n"
        "b = choose(Path(sys.argv[1]), bootstrap=None, force=None, say=print); b.start(30); print(b.kind, b.status().pid)"
    )
    told = subprocess.run([sys.executable, "-c", program, str(state_dir)], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split() == ["docker", str(pid)]


def test_a_supervisor_runs_it_in_the_foreground(state_dir: Path) -> None:
    """The attached command ends when the broker does, and SIGTERM to the command ends the broker cleanly."""
    broker = make(state_dir, "docker")
    broker.prepare()
    child = subprocess.Popen(broker.argv(), env=broker.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    broker.wait_ready(START_S)
    os.kill(broker.status().pid, signal.SIGKILL)
    child.wait(STOP_S)

    broker.prepare()
    child = subprocess.Popen(broker.argv(), env=broker.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    broker.wait_ready(START_S)
    child.terminate()
    child.wait(STOP_S)
    assert broker.status().pid is None
    assert "shut down completed" in (state_dir / "broker" / "broker.log").read_text()
