"""Alerts of a live system: real faults, a real Prometheus, and the rules as they are but for their `for`, which would only make it long.

What can't be caused here in a few minutes is tried with made-up series (`alerts.test.yaml`), as all the others are too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from confluent_kafka import Producer

from hostoffload.broker.ports import free_ports
from nbd.client import Client
from stream.topics import writes_topic
from tests.e2e.system import System, make_source, running, wait_until
from tests.kafka_fixture import OwnBroker
from tests.prometheus_server import Prometheus, scraping
from tests.tidy.test_metric_lists import ALERTS, RULES
from tests.tools import need

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
MIB = 1 << 20
WAIT_S = 90
SETTINGS = {
    "HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX": str(96 * MIB),
    "HOSTOFFLOAD_AGENT_VERIFY_BYTES_PER_S": str(32 * MIB),
    "HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX": str(8 * MIB),  # so that a resync is seen by a scrape
    "HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "1",
    "HOSTOFFLOAD_HISTORY_EVERY_S": "1",
    "HOSTOFFLOAD_HISTORY_RETENTION": "any write 1 h, 1 s for 1 d",
    "HOSTOFFLOAD_HISTORY_BYTES_MAX": str(8 * MIB),
}
NOT_CAUSED = {"HostoffloadVolumeFenced", "HostoffloadRepairOpen", "HostoffloadHistoryDiffers"}


class Watched:
    """A system, and what fires over it."""

    def __init__(self, system: System, prometheus: Prometheus) -> None:
        self.system = system
        self._prometheus = prometheus

    def fires(self, *alerts: str, within_s: float = WAIT_S) -> None:
        """Wait until each of these has fired."""
        for one in alerts:
            wait_until(lambda one=one: one in self.fired(), f"fired: {one}", within_s)

    def fired(self) -> set[str]:
        return {one["alertname"] for one in self._prometheus.ever('ALERTS{alertstate="firing"}')}

    def firing(self) -> set[str]:
        return {one["alertname"] for one, _ in self._prometheus.now('ALERTS{alertstate="firing"}')}

    def pid(self, kind: str) -> int:
        wait_until(lambda: any(one["pid"] for one in self.system.processes(kind)), f"{kind} runs", WAIT_S)
        return next(one["pid"] for one in self.system.processes(kind) if one["pid"])


def test_every_fault_raises_its_alert(own_broker: OwnBroker, tmp_path: Path) -> None:
    need("prometheus")
    (port,) = free_ports(1)
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(at_once(yaml.safe_load(ALERTS.read_text()))))
    name = own_broker.fresh_volume_name()
    environment = SETTINGS | {"HOSTOFFLOAD_METRICS_UP": f"127.0.0.1:{port}"}
    with running(tmp_path / "system", bootstrap=own_broker.bootstrap, environment=environment) as system:
        source = make_source(system.folder / "source.img", 64 * MIB, 32 * MIB)
        with scraping(f"127.0.0.1:{port}", rules, system.folder / "prometheus") as prometheus:
            watched = Watched(system, prometheus)
            uri = system.add(name, source)
            system.wait_in_sync(name)
            while_kafka_is_away(watched, own_broker, name, uri)
            system.check_equal(name, source)
            wait_until(lambda: not any("Rpo" in one or "Buffer" in one for one in watched.firing()), "no lag is told any more", WAIT_S)
            when_a_replica_is_changed(watched, name, source)
            when_a_process_ends_again_and_again(watched)
            other = when_a_target_is_down(watched, own_broker)
            when_a_source_is_away(watched, other)
            when_bytes_are_wrong(watched, own_broker, name)
            watched.fires("HostoffloadHistoryShort")
            system.down()
            watched.fires("HostoffloadEndpointDown")
            assert {rule["alert"] for rule in RULES} - watched.fired() <= NOT_CAUSED


def at_once(rules: dict) -> dict:
    """Return the rules without the time that each must hold."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    return rules


def while_kafka_is_away(watched: Watched, broker: OwnBroker, name: str, uri: str) -> None:
    """Everything behind the agent falls back, the buffer fills, order is lost; when Kafka is back it is copied again."""
    broker.freeze()
    target = watched.pid("target")
    os.kill(target, signal.SIGSTOP)
    try:
        with written_to(uri):
            watched.fires("HostoffloadBufferShort", "HostoffloadBufferFull", "HostoffloadOrderLost", "HostoffloadGap")
            captured = watched.system.status(name)["captured_bytes"]
            wait_until(lambda: watched.system.status(name)["captured_bytes"] > captured + 32 * MIB, "much is to be copied again", WAIT_S)
        watched.fires("HostoffloadRpoStream", "HostoffloadReportStale")
        watched.fires("HostoffloadRpoReplica", "HostoffloadRpoStore", within_s=120 + WAIT_S)
    finally:
        os.kill(target, signal.SIGCONT)
        broker.thaw()
    watched.fires("HostoffloadReplicaGapOpen", "HostoffloadResyncSlow")


@contextlib.contextmanager
def written_to(uri: str) -> Iterator[None]:
    """Write some 8 MiB/s to the start of a volume meanwhile."""
    over = threading.Event()

    def write() -> None:
        with Client(uri) as client:
            number = 0
            while not over.wait(0.12):
                client.write(number % 64 * MIB, os.urandom(MIB))
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def when_a_replica_is_changed(watched: Watched, name: str, source: Path) -> None:
    with open(watched.system.replica(source), "r+b") as replica:
        replica.seek(20 * MIB)
        replica.write(b"changed behind our back")
    watched.fires("HostoffloadVerifyMismatch")
    wait_until(lambda: watched.system.status(name)["verify"]["repairs_open"] == 0, "it is copied again", WAIT_S)
    watched.system.check_equal(name, source)


def when_a_process_ends_again_and_again(watched: Watched) -> None:
    for _ in range(5):
        pid = watched.pid("cx")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: watched.pid("cx") != pid, "it is started again", WAIT_S)
        time.sleep(1.2)  # a scrape: what ends between two of them is one restart more, but the count must be seen to rise
    watched.fires("HostoffloadProcessRestarts")


def when_a_target_is_down(watched: Watched, broker: OwnBroker) -> str:
    """Held back, it is down; a volume that it never heard of has a lag that nobody knows; and a replica that is none stops it alone."""
    system = watched.system
    other = broker.fresh_volume_name()
    held = system.state / "run" / "target.held"
    held.touch()
    os.kill(watched.pid("target"), signal.SIGKILL)
    watched.fires("HostoffloadProcessDown")
    source = make_source(system.folder / "other.img", 4 * MIB, MIB)
    system.add(other, source)
    watched.fires("HostoffloadRpoUnknown")
    replica = system.replica(source)
    replica.unlink()
    replica.mkdir()
    held.unlink()
    watched.fires("HostoffloadReplicaError")
    return other


def when_a_source_is_away(watched: Watched, name: str) -> None:
    system = watched.system
    source = system.folder / "other.img"
    system.run("volume", "pause", name)
    wait_until(lambda: system.status(name)["mode_reason"] == "paused", "it is let go of", WAIT_S)
    source.rename(system.folder / "away.img")
    system.run("volume", "resume", name, code=3)
    watched.fires("HostoffloadVolumeOffline", "HostoffloadVolumeError")


def when_bytes_are_wrong(watched: Watched, broker: OwnBroker, name: str) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(writes_topic(name), b"no message of ours", partition=0)
    assert producer.flush(WAIT_S) == 0
    watched.fires("HostoffloadVolumeParked")
