"""The docker kind with a `docker` command that a test writes: what is asked of the engine, and what a broken one leads to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hostoffload.broker import BrokerSettings
from hostoffload.broker.docker_broker import IMAGE_DEFAULT, DockerBroker, image
from hostoffload.broker.engine import Container, Engine
from hostoffload.broker.folder import BrokerFolder
from stream.errors import RetryError

# Writes each call as a line into calls; answers from files in answers/ named by the first word; without one it fails like the engine.
DOCKER = """#!/bin/sh
echo "$*" >>"$FAKE/calls"
if [ -f "$FAKE/$1" ]; then cat "$FAKE/$1"; exit 0; fi
echo "Error: No such container: $3" >&2
exit 1
"""


class FakeDocker:
    """A docker command on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.command = folder / "docker"
        self.command.write_text(DOCKER)
        self.command.chmod(0o755)

    def answers(self, word: str, text: str = "") -> None:
        (self.folder / word).write_text(text)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    fake = FakeDocker(tmp_path / "fake")
    monkeypatch.setenv("FAKE", str(fake.folder))
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return fake


def broker(tmp_path: Path) -> DockerBroker:
    return DockerBroker(BrokerFolder(tmp_path / "state"), BrokerSettings(), print, Engine(), "some/kafka:1")


def test_an_image_that_is_there_is_not_pulled(docker: FakeDocker) -> None:
    docker.answers("version", "20.10")
    docker.answers("image", "sha256:1")
    assert Engine().lacks("some/kafka:1", print) is None
    assert not any(call.startswith("pull") for call in docker.calls)


def test_an_image_that_is_not_there_is_pulled_and_said(docker: FakeDocker) -> None:
    docker.answers("version", "20.10")
    docker.answers("pull")
    said: list[str] = []
    assert Engine().lacks("some/kafka:1", said.append) is None
    assert said == ["pulling the image some/kafka:1"]
    assert docker.calls[-1] == "pull --quiet some/kafka:1"


def test_an_image_that_does_not_come_is_a_reason(docker: FakeDocker) -> None:
    docker.answers("version", "20.10")
    assert "some/kafka:1 is not here and does not come" in str(Engine().lacks("some/kafka:1", print))


def test_an_engine_that_does_not_answer_is_a_reason(docker: FakeDocker) -> None:
    assert Engine().lacks("some/kafka:1", print) == "Docker's engine does not answer"


def test_no_docker_and_an_engine_elsewhere_are_reasons(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine("no-such-docker").lacks("some/kafka:1", print) == "Docker is not installed"
    monkeypatch.setenv("DOCKER_HOST", "tcp://far.example:2375")
    assert "another machine" in str(Engine().lacks("some/kafka:1", print))
    assert docker.calls == []


def test_a_container_is_read_from_the_engines_report(docker: FakeDocker) -> None:
    assert Engine().container("c") is None
    docker.answers("container", json.dumps({"State": {"Running": True, "Pid": 7}, "Config": {"Image": "i:1"}}))
    assert Engine().container("c") == Container(True, 7, "i:1")
    docker.answers("container", json.dumps({"State": {"Running": False, "Pid": 0}, "Config": {"Image": "i:1"}}))
    assert Engine().container("c") == Container(False, None, "i:1")


def test_the_container_runs_the_folders_kafka_as_its_owner(tmp_path: Path, docker: FakeDocker) -> None:
    for word in ("version", "image", "info", "run"):
        docker.answers(word)
    made = broker(tmp_path)
    made.prepare()
    assert "StorageTool format" in next(call for call in docker.calls if call.startswith("run"))
    command = list(made.argv())
    root = tmp_path / "state" / "broker"
    assert command[:4] == ["docker", "run", "--name", made.container]
    assert {f"--user={os.getuid()}:{os.getgid()}", "--network=host", f"--volume={root}:{root}"} < set(command)
    assert command[command.index("some/kafka:1") - 1] == "--entrypoint=java"
    assert command[-4:] == ["-cp", "/opt/kafka/libs/*", "kafka.Kafka", f"{root}/server.properties"]


def test_an_ended_container_is_cleared_away_before_the_next(tmp_path: Path, docker: FakeDocker) -> None:
    for word in ("version", "image", "info", "run", "rm"):
        docker.answers(word)
    docker.answers("container", json.dumps({"State": {"Running": False, "Pid": 0}, "Config": {"Image": "i:1"}}))
    made = broker(tmp_path)
    made.prepare()
    assert docker.calls[-1] == f"rm --force --volumes {made.container}"


def test_a_rootless_engine_maps_its_root_to_the_operator(tmp_path: Path, docker: FakeDocker) -> None:
    docker.answers("info", '["name=seccomp,profile=default","name=rootless"]')
    assert "--user=0:0" in broker(tmp_path).argv()


def test_two_state_folders_have_two_containers_and_one_has_always_the_same(tmp_path: Path, docker: FakeDocker) -> None:
    first = broker(tmp_path)
    assert first.container == broker(tmp_path).container
    other = DockerBroker(BrokerFolder(tmp_path / "other"), BrokerSettings(), print, Engine(), "some/kafka:1")
    assert other.container != first.container


def test_an_image_that_vanished_is_told_at_prepare(tmp_path: Path, docker: FakeDocker) -> None:
    docker.answers("version", "20.10")
    with pytest.raises(RetryError, match="some/kafka:1 is not here"):
        broker(tmp_path).prepare()


def test_stop_without_an_engine_is_done(tmp_path: Path, docker: FakeDocker) -> None:
    docker.command.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    made = broker(tmp_path)
    made.stop(1)
    assert made.status().pid is None


def test_the_variable_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOSTOFFLOAD_BROKER_IMAGE", raising=False)
    assert image() == IMAGE_DEFAULT == "apache/kafka:4.3.1"
    monkeypatch.setenv("HOSTOFFLOAD_BROKER_IMAGE", "mine:1")
    assert image() == "mine:1"
