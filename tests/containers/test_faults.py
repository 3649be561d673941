"""A deployed system in trouble: brokers killed, networks cut, containers frozen, a broker's disk full; it comes back by itself."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from testcontainers.core.container import DockerContainer

import docker
from tests.containers.deployment import MIB, NO_CHECK, USER, Deployment, deployed
from tests.containers.images import Images
from tests.containers.load import load
from tests.e2e.system import wait_until
from tests.kafka_fixture import fresh_volume_name
from tests.tools import need

pytestmark = [pytest.mark.docker, pytest.mark.slow]
SIZE = 96 * MIB
KILLED_S = 30
CUT_S = 8
FROZEN_S = 12
MODE_S = 120
SYNC_S = 120
WRITE_S_MAX = 5.0  # of the application, whatever becomes of Kafka
DISK_BYTES = 64 * MIB
FULL_LOG_LINES = 4000


@contextlib.contextmanager
def watched(cluster: Deployment, volume: str) -> Iterator[set[str]]:
    """Note every mode that the volume is seen in."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            with contextlib.suppress(OSError):
                seen.add(cluster.mode(volume))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join(10)


def pour(uri: str, image: Path) -> None:
    """Write a whole image, as fast as a real client can."""
    subprocess.run(["nbdcopy", "--allocated", image, uri], check=True, capture_output=True, timeout=MODE_S)


def random_image(folder: Path) -> Path:
    path = folder / "image"
    path.write_bytes(random.randbytes(SIZE))
    return path


def protected(cluster: Deployment) -> str:
    """Add a volume and wait until it is in sync."""
    volume = fresh_volume_name()
    cluster.add(volume, SIZE, MIB)
    cluster.agent.hostoffload("wait", volume, "--in-sync", "--timeout", SYNC_S)
    return volume


def test_one_broker_of_three_killed_for_half_a_minute_costs_no_order(cluster: Deployment) -> None:
    volume = protected(cluster)
    broker = cluster.leader(f"ho.{volume}.writes")
    with load(lambda: cluster.uri(volume)) as application, watched(cluster, volume) as modes:
        broker.kill()
        written, ends_s = application.written_bytes, time.monotonic() + KILLED_S
        wait_until(lambda: time.monotonic() >= ends_s, "the time is over")
        assert application.written_bytes > written + MIB
        broker.start()
        cluster.wait_brokers()
        wait_until(lambda: application.written_bytes > written + 2 * MIB, "the application goes on")
    status = cluster.check_equal(volume)
    assert modes == {"DATA"} and status["gaps"] == 0
    assert application.connects == 1 and application.longest_s < WRITE_S_MAX
    cluster.remove_volume(volume)


def test_two_brokers_of_three_killed_fill_the_buffer_and_order_comes_back_by_itself(cluster: Deployment, tmp_path: Path) -> None:
    need("nbdcopy")
    volume, image = protected(cluster), random_image(tmp_path)
    with load(lambda: cluster.uri(volume), MIB) as application:
        for broker in cluster.brokers[1:]:
            broker.kill()
        written = application.written_bytes
        wait_until(lambda: application.written_bytes > written + 2 * MIB, "the application goes on")
        assert cluster.mode(volume) == "DATA", "the buffer keeps order"
        pour(cluster.uri(volume), image)
        wait_until(lambda: cluster.mode(volume) == "BITMAP", "the buffer is full", MODE_S)
        assert "buffer" in cluster.status(volume)["mode_reason"]
        for broker in cluster.brokers[1:]:
            broker.start()
        wait_until(lambda: cluster.mode(volume) == "DATA", "order is back", MODE_S)
    status = cluster.check_equal(volume)
    assert status["gaps"] == 1
    assert application.connects == 1 and application.longest_s < WRITE_S_MAX, "the application never waited for Kafka"
    cluster.remove_volume(volume)


def test_cut_networks_heal_and_frozen_containers_go_on(cluster: Deployment) -> None:
    """The agent is cut off, then both that work behind it; a worker of the CX is frozen, then the other one, then the target."""
    volume = protected(cluster)
    with load(lambda: cluster.uri(volume), MIB) as application, watched(cluster, volume) as modes:
        for cut in (("agent",), ("cx-1", "target")):
            written = application.written_bytes
            for name in cut:
                cluster.cut(cluster.parts[name])
            wait_until(lambda written=written: application.written_bytes > written + CUT_S * MIB // 2, "the application goes on")
            for name in cut:
                cluster.heal(cluster.parts[name])
        for name in ("cx-1", "cx-2"):
            cluster.parts[name].pause()
            ends_s = time.monotonic() + FROZEN_S
            wait_until(lambda ends_s=ends_s: time.monotonic() >= ends_s, "the other one has taken over")
            cluster.parts[name].unpause()
        cluster.target.pause()
        written = application.written_bytes
        wait_until(lambda: application.written_bytes > written + 2 * MIB, "the application goes on")
        cluster.target.unpause()
    status = cluster.check_equal(volume)
    assert modes == {"DATA"} and status["gaps"] == 0
    assert application.connects == 1 and application.longest_s < WRITE_S_MAX
    cluster.remove_volume(volume)


class SmallDisk:
    """A disk in memory for a broker, which somebody holds while the broker is down; it can be made larger."""

    def __init__(self, image: str) -> None:
        self.name = f"ho-disk-{uuid.uuid4().hex[:8]}"
        self._engine = docker.from_env()
        told = {"type": "tmpfs", "device": "tmpfs", "o": f"size={DISK_BYTES},uid={USER},mode=0700"}
        self._volume = self._engine.volumes.create(self.name, driver="local", driver_opts=told)
        self._holder = DockerContainer(image, entrypoint=["tini", "--", "sleep", "infinity"], healthcheck=NO_CHECK)
        self._holder.with_volume_mapping(self.name, "/held", "rw").start()

    def enlarge(self) -> None:
        path = Path(self._volume.attrs["Mountpoint"])
        subprocess.run(["mount", "-o", f"remount,size={16 * DISK_BYTES}", path], check=True, capture_output=True, timeout=30)

    def remove(self) -> None:
        self._holder.stop()
        self._volume.remove(force=True)
        self._engine.close()


def test_a_full_disk_of_the_broker_is_told_and_what_was_written_meanwhile_arrives(built: Images, tmp_path: Path) -> None:
    need("nbdcopy", "mount")
    disk = SmallDisk(built.ours)
    try:
        with deployed(built, tmp_path / "deployment", brokers=1, broker_volume=disk.name) as system:
            volume = protected(system)
            with load(lambda: system.uri(volume), MIB):
                pour(system.uri(volume), random_image(tmp_path))
                wait_until(lambda: system.mode(volume) == "BITMAP", "the buffer is full too", MODE_S)
                assert "Kafka has acknowledged nothing" in system.status(volume)["mode_reason"]
                assert "hint=" in system.agent.log(FULL_LOG_LINES)
                broker = system.brokers[0]
                assert "No space left on device" in broker.log(FULL_LOG_LINES), "it is the disk that stopped it"
                disk.enlarge()
                if broker.facts()["State"]["Running"]:
                    broker.kill()
                broker.start()
                wait_until(lambda: system.mode(volume) == "DATA", "order is back", MODE_S)
            system.check_equal(volume)
    finally:
        disk.remove()
