"""The jars broker against the real thing: data over restarts, SIGKILL, adoption, a taken port, a report that never waits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from hostoffload.broker import Broker, BrokerStatus, choose, current, recorded
from stream.errors import ConfigError, RetryError
from tests.kafka_fixture import Kafka, OwnBroker, local_broker

pytestmark = pytest.mark.kafka

START_S = 90
STOP_S = 20
MESSAGE_BYTES = 4 * 1024 * 1024
CURRENT_S_MAX = 0.2


class Untouched(NamedTuple):
    """A broker that several tests look at and none changes."""

    state_dir: Path
    broker: Broker


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Untouched]:
    state_dir = tmp_path_factory.mktemp("untouched")
    broker = local_broker(state_dir, print, kinds=("jars",))
    broker.start(START_S)
    yield Untouched(state_dir, broker)
    broker.stop(STOP_S)


def make_topic(bootstrap: str, name: str) -> None:
    config = {"max.message.bytes": str(2 * MESSAGE_BYTES), "message.timestamp.type": "LogAppendTime"}
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, 1, 1, config=config)])[name].result(20)


def producer(bootstrap: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "message.max.bytes": 2 * MESSAGE_BYTES,
            "delivery.timeout.ms": 60_000,
            "reconnect.backoff.max.ms": 200,
        }
    )


def publish(bootstrap: str, topic: str, values: list[bytes]) -> None:
    failed = []
    client = producer(bootstrap)
    for value in values:
        client.produce(topic, value, partition=0, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert client.flush(60) == 0
    assert failed == []


def read_all(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """Read `count` messages from the start; stops early (and so fails the comparison) after 20 s."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{topic}-reader", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    until = time.monotonic() + 20
    while len(found) < count and time.monotonic() < until:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            found.append(message.value())
    consumer.close()
    return found


@pytest.mark.slow
def test_data_survives_a_clean_stop_and_a_sigkill(own_broker: OwnBroker) -> None:
    topic = own_broker.fresh_volume_name("t")
    make_topic(own_broker.bootstrap, topic)
    big = os.urandom(MESSAGE_BYTES)
    publish(own_broker.bootstrap, topic, [b"first", big])
    address = own_broker.bootstrap

    own_broker.stop()
    assert current(own_broker.state_dir).pid is None
    own_broker.start()
    assert own_broker.bootstrap == address
    publish(address, topic, [b"after stop"])

    own_broker.kill()
    own_broker.start()
    publish(address, topic, [b"after kill"])
    assert read_all(address, topic, 4) == [b"first", big, b"after stop", b"after kill"]


def test_a_freeze_longer_than_the_session_loses_nothing(own_broker: OwnBroker) -> None:
    """The session is short so that a start after SIGKILL is quick; the price is a fenced broker after a stall."""
    topic = own_broker.fresh_volume_name("t")
    make_topic(own_broker.bootstrap, topic)
    client = producer(own_broker.bootstrap)
    wanted = [b"%06d" % number for number in range(3000)]
    failed = []
    for number, value in enumerate(wanted):
        if number == 1000:
            own_broker.freeze()
            threading.Timer(3.5, own_broker.thaw).start()
        client.produce(topic, value, partition=0, on_delivery=lambda error, _: failed.append(error) if error else None)
        client.poll(0.001)
    assert client.flush(60) == 0
    assert failed == []
    assert read_all(own_broker.bootstrap, topic, len(wanted)) == wanted


def test_start_is_idempotent_and_another_process_adopts(own_broker: OwnBroker) -> None:
    pid = own_broker.pid
    own_broker.start()
    assert own_broker.pid == pid
    program = (
        "import sys; from pathlib import Path; from hostoffload.broker import choose\n"
        "b = choose(Path(sys.argv[1]), bootstrap=None, force=None, say=print); b.start(30); print(b.kind, b.bootstrap, b.status().pid)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(own_broker.state_dir)], capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout.split() == [own_broker.broker.kind, own_broker.bootstrap, str(pid)]


def test_two_callers_at_once_start_one_broker(own_broker: OwnBroker) -> None:
    own_broker.stop()
    callers = [threading.Thread(target=choose_and_start, args=(own_broker,)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(90)
    pids = [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and str(own_broker.state_dir).encode() + b"/broker/server.properties" in command_line(entry)
    ]
    assert pids == [str(own_broker.pid)]


def test_it_outlives_its_caller_with_none_of_the_callers_files(untouched: Untouched) -> None:
    pid = untouched.broker.status().pid
    assert os.getsid(pid) == pid
    files = {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}
    assert files == {"/dev/null", str(untouched.state_dir / "broker" / "broker.out")}


def test_it_listens_on_the_loopback_only(untouched: Untouched) -> None:
    pid = untouched.broker.status().pid
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = [line.split()[3] for line in listening if f"pid={pid}," in line]
    assert len(addresses) == 2
    assert all(address.removeprefix("[::ffff:").startswith("127.0.0.1") for address in addresses)


def test_it_starts_from_the_class_archive(untouched: Untouched) -> None:
    assert ".jsa" in Path(f"/proc/{untouched.broker.status().pid}/maps").read_text()


def test_the_log_is_not_silent(untouched: Untouched) -> None:
    assert "Kafka Server started" in (untouched.state_dir / "broker" / "broker.log").read_text()


def test_a_named_broker_is_used_and_left_alone(untouched: Untouched, tmp_path: Path) -> None:
    other = choose(tmp_path / "other", bootstrap=untouched.broker.bootstrap, force=None, say=print)
    other.start(START_S)
    assert (other.kind, other.bootstrap) == ("external", untouched.broker.bootstrap)
    assert current(tmp_path / "other").ready
    other.stop(STOP_S)
    assert untouched.broker.status().ready


def test_the_sessions_broker_answers_under_fresh_names(kafka: Kafka) -> None:
    names = [kafka.fresh_volume_name() for _ in range(2)]
    assert names[0] != names[1]
    make_topic(kafka.bootstrap, names[0])
    publish(kafka.bootstrap, names[0], [b"hello"])
    assert read_all(kafka.bootstrap, names[0], 1) == [b"hello"]


def test_a_named_broker_that_is_dead_is_told(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match="does not answer"):
        choose(tmp_path, bootstrap="127.0.0.1:1", force=None, say=print).start(1)
    assert current(tmp_path) is None


def test_a_taken_port_is_told_and_not_moved(own_broker: OwnBroker) -> None:
    own_broker.stop()
    port = int(own_broker.bootstrap.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match=f"port {port} is taken"):
        own_broker.start()
    own_broker.start()
    assert own_broker.bootstrap.endswith(f":{port}")


def test_the_report_never_waits_for_a_frozen_or_dead_broker(own_broker: OwnBroker) -> None:
    assert timed_current(own_broker).ready
    own_broker.freeze()
    frozen = timed_current(own_broker)
    assert (frozen.pid, frozen.ready) == (own_broker.pid, False)
    own_broker.thaw()
    own_broker.kill()
    dead = timed_current(own_broker)
    assert (dead.kind, dead.bootstrap, dead.pid, dead.ready) == (own_broker.broker.kind, own_broker.bootstrap, None, False)


def test_recorded_stops_what_another_started(own_broker: OwnBroker) -> None:
    broker = recorded(own_broker.state_dir, say=print)
    assert broker is not None
    broker.stop(STOP_S)
    assert own_broker.broker.status().pid is None


def choose_and_start(own: OwnBroker) -> None:
    choose(own.state_dir, bootstrap=None, force=None, say=print).start(START_S)


def timed_current(own: OwnBroker) -> BrokerStatus:
    """Return the report; the best of three times counts, because the machine may be busy with something else."""
    took_s = []
    for _ in range(3):
        began = time.monotonic()
        report = current(own.state_dir)
        took_s.append(time.monotonic() - began)
    assert min(took_s) < CURRENT_S_MAX
    return report


def command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
