"""Kafka loses what somebody still needed: records deleted unread, topics deleted. Everything is real and nobody lends a hand.

Each story ends in DATA with a replica that equals the source, byte by byte; what had to be copied again was announced as a gap, and what
the store still had was not copied.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from nbd.client import Client
from nbd.errors import ProtocolError
from stream.config import KafkaConfig
from stream.topics import Topics, data_topics, journal_topic, writes_topic
from tests.e2e.system import System, make_source, running, wait_until

pytestmark = pytest.mark.slow
VOLUME_BYTES = 64 << 20
HEALED_S = 120


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("lost"), environment={"HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "0.5"}) as one:
        yield one


class Volume:
    """A protected volume, in sync, with a client's load at hand."""

    def __init__(self, system: System, name: str) -> None:
        self.system = system
        self.name = name
        self.source = make_source(system.folder / f"{name}.img", VOLUME_BYTES, used_bytes=8 << 20)
        self.uri = system.add(name, self.source)
        self.config = KafkaConfig(bootstrap=json.loads(system.run("status", "--json"))["broker"]["bootstrap"])
        self.topics = Topics(self.config)
        self._random = random.Random(name)
        system.wait_in_sync(name)

    def write(self, times: int = 40, size: int = 4096) -> None:
        with Client(self.uri) as client:
            for _ in range(times):
                client.write_all([(self._random.randrange(VOLUME_BYTES - size), self._random.randbytes(size)) for _ in range(8)])

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """Write all the time; reconnect when the agent begins a new epoch, as a block device's client does."""
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError, ProtocolError):
                    self.write(2)
                time.sleep(0.02)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def lose(self, topic: str) -> None:
        """Delete all records that the topic has now, as retention would."""
        admin = AdminClient({"bootstrap.servers": self.config.bootstrap})
        for future in admin.delete_records([TopicPartition(topic, 0, -1)]).values():
            future.result(20)

    def facts(self, kind: str) -> dict:
        """Return what the process of that kind reports of the volume."""
        for path in (self.system.state / "status").glob(f"{kind}-*.json"):
            return json.loads(path.read_text()).get("volumes", {}).get(self.name, {})
        return {}

    def settled(self) -> str:
        """Wait until everything captured is applied and stored; return that position."""
        last = self.system.wait_in_sync(self.name)["position"]["captured"]
        wait_until(lambda: (self.facts("cx").get("persisted") or "") >= last, "everything is stored")
        return last

    def healed(self) -> dict:
        """Wait until a resync has put everything right, and compare."""
        wait_until(lambda: self.facts("cx").get("open_gaps") == 0 and self.facts("target").get("open_gaps") == 0, "gaps close", HEALED_S)
        return self.system.check_equal(self.name, self.source)


@contextlib.contextmanager
def frozen(system: System, kind: str) -> Iterator[None]:
    """Stop a process as a machine that hangs would."""
    (pid,) = [one["pid"] for one in system.processes(kind)]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_writes_deleted_before_order_read_them(system: System) -> None:
    volume = Volume(system, "order-behind")
    volume.settled()
    before = system.status(volume.name)
    with frozen(system, "cx"):
        volume.write()
        wait_until(lambda: system.status(volume.name)["backlog_bytes"] == 0, "everything is in Kafka")
        volume.lose(writes_topic(volume.name))
    wait_until(lambda: volume.facts("cx").get("gaps", 0) > 0, "the gap is seen", 60)
    status = volume.healed()
    assert status["gaps"] > before["gaps"]
    assert status["resync_bytes"] > before["resync_bytes"]


def test_a_target_behind_reads_the_store_and_costs_the_host_nothing(system: System) -> None:
    volume = Volume(system, "target-behind")
    volume.settled()
    before = system.status(volume.name)
    with frozen(system, "target"):
        volume.write()
        captured = system.status(volume.name)["position"]["captured"]
        wait_until(lambda: (volume.facts("cx").get("persisted") or "") >= captured, "everything is stored")
        volume.lose(journal_topic(volume.name))
    status = system.check_equal(volume.name, volume.source)
    assert status["resync_bytes"] == before["resync_bytes"]
    assert status["gaps"] == before["gaps"]
    assert volume.facts("target")["gaps"] == 0


def test_a_target_behind_without_a_store_is_copied_again(system: System) -> None:
    volume = Volume(system, "storeless")
    volume.settled()
    with frozen(system, "target"):
        volume.write()
        captured = system.status(volume.name)["position"]["captured"]
        wait_until(lambda: (volume.facts("cx").get("persisted") or "") >= captured, "everything is stored")
        volume.lose(journal_topic(volume.name))
        for segment in (system.state / "store" / volume.name).rglob("*.avro"):
            segment.unlink()
    wait_until(lambda: volume.facts("target").get("gaps", 0) == 1, "the gap is seen", 60)
    assert "the store" in (volume.facts("target")["note"] or "")
    volume.healed()


def test_a_journal_deleted_before_persist_read_it(system: System) -> None:
    volume = Volume(system, "persist-behind")
    last = volume.settled()
    store = system.state / "store"
    store.rename(store.with_name("away"))
    volume.write()
    wait_until(lambda: volume.facts("cx").get("persist_error"), "the store is missed")
    volume.write(64, 65536)  # more than it reads ahead
    system.wait_in_sync(volume.name)
    assert (volume.facts("cx")["persisted"] or "") <= last
    volume.lose(journal_topic(volume.name))
    if store.exists():  # a put that looked just before it was taken away has made its folders
        assert not [path for path in store.rglob("*") if path.is_file()]
        shutil.rmtree(store)
    store.with_name("away").rename(store)
    wait_until(lambda: "not continuous" in (volume.facts("cx").get("persist_error") or ""), "the hole is told", 60)
    wait_until(lambda: volume.facts("cx").get("persist_error") is None, "a resync closes it", HEALED_S)
    status = system.check_equal(volume.name, volume.source)
    wait_until(lambda: (volume.facts("cx").get("persisted") or "") >= status["position"]["captured"], "it is stored")


@pytest.mark.parametrize("anew", ["at-once", "by-nobody"])
@pytest.mark.parametrize("which", ["writes", "journal", "both"])
def test_topics_deleted_while_everything_runs(system: System, which: str, anew: str) -> None:
    volume = Volume(system, f"anew-{which}-{anew}")
    volume.write()
    names = {
        "writes": [writes_topic(volume.name)],
        "journal": [journal_topic(volume.name)],
        "both": [writes_topic(volume.name), journal_topic(volume.name)],
    }[which]
    ids = {name: volume.topics.topic_id(name) for name in names}
    with volume.load():
        time.sleep(1.0)
        volume.topics.delete(names)
        if anew == "at-once":
            wait_until(lambda: not set(names) & volume.topics.names(), "the topics are gone")
            volume.topics.ensure(data_topics(volume.name, volume.config))
        wait_until(lambda: set(names) <= volume.topics.names(), "somebody makes them again", 60)
        wait_until(lambda: all(volume.topics.topic_id(name) not in (None, ids[name]) for name in names), "they are others")
        time.sleep(5.0)
    volume.healed()
    assert not volume.facts("cx")["parked"]
    wait_until(lambda: volume.facts("cx").get("persist_error") is None, "the history goes on", HEALED_S)
