"""A deployed system at its work: real NBD clients, recovery at a point, replay of a topic, a volume added meanwhile, restarts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers.deployment import MIB, Deployment
from tests.containers.load import load
from tests.containers.part import Part
from tests.e2e.system import first_difference, wait_until
from tests.kafka_fixture import fresh_volume_name
from tests.tools import need

pytestmark = [pytest.mark.docker, pytest.mark.slow]
CLIENT_S = 120
HEALTHY_S = 90
UNDER_WAY_BYTES_MAX = 128 << 10  # one write of the load, in extents of 64 KiB


def client(*command: object) -> str:
    """Run a real NBD client on this machine."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, timeout=CLIENT_S).stdout


def test_what_clients_write_is_on_the_replica_and_can_be_gone_back_to(cluster: Deployment, tmp_path: Path) -> None:
    need("qemu-io", "nbdcopy", "fio")
    volume = fresh_volume_name()
    cluster.add(volume, 64 * MIB, 8 * MIB)
    uri = cluster.uri(volume)
    image = tmp_path / "image"
    image.write_bytes(os.urandom(24 * MIB) + bytes(40 * MIB))
    client("nbdcopy", "--allocated", image, uri)
    client("qemu-io", "-f", "raw", "-c", "write -P 85 30M 2M", "-c", "discard 4M 1M", "-c", "write -z 6M 1M", "-c", "flush", uri)
    held = cluster.folder / "held.img"
    shutil.copyfile(cluster.source(volume), held)
    assert held.read_bytes()[30 * MIB : 32 * MIB] == b"U" * 2 * MIB, "the client's bytes are on the source"
    cluster.agent.hostoffload("bookmark", volume, "before")

    other = fresh_volume_name("added")
    fio = ["--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8", "--rate=4m", "--time_based", "--runtime=8", "--fsync=32", "--verify=0"]
    busy = subprocess.Popen(["fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", *fio], stdout=subprocess.DEVNULL, cwd=tmp_path)
    cluster.add(other, 16 * MIB, 4 * MIB)
    client("qemu-io", "-f", "raw", "-c", "write -P 7 3M 2M", "-c", "flush", cluster.uri(other))
    cluster.check_equal(other)
    assert busy.wait(CLIENT_S) == 0
    cluster.check_equal(volume)
    assert first_difference(cluster.source(volume), held) is not None

    target = cluster.target
    target.hostoffload("restore", volume, "--at", "before", "--to", f"/replicas/{volume}.before")
    assert first_difference(cluster.folder / "replicas" / f"{volume}.before", held) is None
    for topic in ("writes", "journal"):
        into = f"/tmp/{volume}.{topic}"
        told = target.hostoffload("replay", volume, "--from", "before", "--to", "latest", "--into", into, "--topic", topic)
        assert told.endswith("equal"), told
    target.hostoffload("check", volume)
    for one in (volume, other):
        cluster.remove_volume(one)


def restart(part: Part) -> None:
    """Stop it as an upgrade does, cleanly and in time, and start it again."""
    assert part.stop() == 0, f"{part.name} did not end well\n{part.log()}"
    part.start()
    part.wait_ready()


def test_each_part_is_restarted_under_load_and_nothing_is_copied_again(cluster: Deployment) -> None:
    volume = fresh_volume_name()
    cluster.add(volume, 64 * MIB, 8 * MIB)
    cluster.agent.hostoffload("wait", volume, "--in-sync", "--timeout", CLIENT_S)
    before = cluster.status(volume)
    with load(lambda: cluster.uri(volume)) as application:
        for name in ("target", "cx-1", "cx-2", "agent"):
            restart(cluster.parts[name])
        written = application.written_bytes
        wait_until(lambda: application.written_bytes > written, "the application goes on")
        assert cluster.status(volume)["resync_bytes"] == before["resync_bytes"], "a clean stop copies nothing again"
        cluster.agent.kill()
        cluster.agent.start()
        cluster.agent.wait_ready()
        written = application.written_bytes
        wait_until(lambda: application.written_bytes > written + MIB, "the application goes on after the kill")
    after = cluster.check_equal(volume)
    assert after["position"]["journaled"] and after["history"]["persisted"], "heard of over Kafka"
    assert "proved equal" in cluster.agent.hostoffload("verify", volume, "--timeout", CLIENT_S)
    assert after["gaps"] == before["gaps"], "no order was lost: what was captured lives in the memory that outlives the container"
    assert after["resync_bytes"] - before["resync_bytes"] <= UNDER_WAY_BYTES_MAX, "only what was being written at the kill is read again"
    for part in cluster.services():
        wait_until(lambda part=part: part.health() == "healthy", f"{part.name} is healthy", HEALTHY_S)
    cluster.remove_volume(volume)
