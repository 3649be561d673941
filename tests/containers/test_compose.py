"""The compose files as an operator uses them: up healthy, a volume byte-equal, down and up keep history; three brokers over one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload.broker.ports import free_ports
from tests.containers.images import ROOT, Images
from tests.e2e.system import wait_until
from tests.tools import lacking, need

pytestmark = [pytest.mark.docker, pytest.mark.slow]
COMMAND_S = 180
HEALTHY_S = 150
SERVICES = {"broker", "memory", "agent", "cx-1", "cx-2", "target"}


class Composed:
    """One project of the compose files, with named volumes of its own."""

    def __init__(self, images: Images, folder: Path, *files: str) -> None:
        if shutil.which("docker-compose"):
            command = ["docker-compose"]
        elif subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
            command = ["docker", "compose"]
        else:
            lacking("needs docker-compose, or the compose plugin of docker")
        (self.port,) = free_ports(1)
        project = f"ho-{uuid.uuid4().hex[:8]}"
        self._command = [*command, "-p", project, *(word for file in files for word in ("-f", str(ROOT / "docker" / file)))]
        names = {"HOSTOFFLOAD_BROKER_IMAGE": images.kafka, "HOSTOFFLOAD_IMAGE": images.ours, "NBD_PORT": str(self.port)}
        self._environment = os.environ | names

    def call(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, timeout=COMMAND_S, env=self._environment, cwd=ROOT
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def inside(self, service: str, *command: str) -> str:
        return self.call("exec", "-T", service, *command)

    def up(self) -> None:
        """Start it; return when every container that is checked is healthy and can do its work."""
        self.call("up", "-d", "--no-build")
        wait_until(lambda: set(self.health().values()) <= {"healthy", "none"}, "all are healthy", HEALTHY_S)
        for service in ("agent", "cx-1", "cx-2", "target"):
            self.inside(service, "bash", "-c", "for try in {1..600}; do healthy /readyz >/dev/null 2>&1 && exit; sleep 0.1; done; exit 1")

    def health(self) -> dict[str, str]:
        ids = self.call("ps", "-q").split()
        told = json.loads(subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=True).stdout)
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one["State"].get("Health", {}).get("Status", "none") for one in told}

    def write(self, pattern: int, at: str) -> None:
        """Write as an application of this machine does."""
        uri = f"nbd://127.0.0.1:{self.port}/db"
        told = ["qemu-io", "-f", "raw", "-c", f"write -P {pattern} {at} 4M", "-c", "flush", uri]
        subprocess.run(told, check=True, capture_output=True, timeout=60)

    def check_equal(self) -> str:
        """Wait until in sync; return the digest that source and replica have."""
        self.inside("agent", "hostoffload", "wait", "db", "--in-sync", "--timeout", "120")
        digests = [self.digest("agent", "/volumes/db.img"), self.digest("target", "/replicas/db.img")]
        assert digests[0] == digests[1]
        return digests[0]

    def digest(self, service: str, path: str) -> str:
        return self.inside(service, "sha256sum", path).split()[0]


def composed(images: Images, folder: Path, *files: str) -> Iterator[Composed]:
    need("qemu-io")
    project = Composed(images, folder, *files)
    try:
        project.up()
        yield project
    except BaseException:
        print(project.call("logs", "--no-color", "--tail=30"))
        raise
    finally:
        project.call("down", "--volumes", "--timeout", "10")  # the last brokers of three wait for a quorum that is gone


@pytest.fixture
def one_machine(built: Images, tmp_path: Path) -> Iterator[Composed]:
    yield from composed(built, tmp_path, "compose.yaml")


@pytest.fixture
def three_brokers(built: Images, tmp_path: Path) -> Iterator[Composed]:
    yield from composed(built, tmp_path, "compose.yaml", "compose.three.yaml")


def protect(project: Composed) -> None:
    project.inside("agent", "truncate", "-s", "64M", "/volumes/db.img")
    add = ["hostoffload", "volume", "add", "db", "--source", "/volumes/db.img", "--replica", "/replicas/db.img", "--target", "replica"]
    assert project.inside("agent", *add).endswith("nbd://agent:10809/db")


def test_one_machine_comes_up_healthy_and_keeps_its_history(one_machine: Composed) -> None:
    project = one_machine
    assert set(project.health()) == SERVICES
    protect(project)
    project.write(17, "8M")
    before = project.check_equal()
    project.inside("agent", "hostoffload", "bookmark", "db", "before")
    project.write(34, "10M")
    assert project.check_equal() != before

    project.call("down", "--timeout", "60")
    project.up()
    project.write(51, "20M")
    project.check_equal()
    status = json.loads(project.inside("agent", "hostoffload", "status", "db", "--json"))["volumes"][0]
    assert status["mode"] == "DATA" and status["gaps"] == 0, status
    assert "before" in project.inside("target", "hostoffload", "points", "db")
    project.inside("target", "hostoffload", "restore", "db", "--at", "before", "--to", "/replicas/before.img")
    assert project.digest("target", "/replicas/before.img") == before


def test_three_brokers_come_up_healthy_and_have_every_message(three_brokers: Composed) -> None:
    project = three_brokers
    assert set(project.health()) == SERVICES | {"broker-2", "broker-3"}
    protect(project)
    project.write(17, "8M")
    project.check_equal()
    ask = ["/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "broker:9092", "--describe", "--topic", "ho.db.writes"]
    told = project.inside("broker", *ask)
    assert "ReplicationFactor: 3" in told and "min.insync.replicas=2" in told, told
    assert len(told.split("Isr: ")[1].split()[0].split(",")) == 3, told
