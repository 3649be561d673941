"""Agent, CX, target and operator, each under its own user with the least rights that `acl apply` gives: together they do all their work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload import local_state
from hostoffload.volume_progress import agent_runs
from nbd.client import Client
from stream.topics import Topics, journal_topic, writes_topic
from tests.e2e.system import System, first_difference, make_source, wait_until
from tests.kafka_fixture import fresh_volume_name
from tests.secure_kafka import SecureKafka

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

SERVICES = ("agent", "cx", "target")
STOP_S = 60


class Roles(System):
    """A system whose services and commands are different users of the broker."""

    def __init__(self, folder: Path, kafka: SecureKafka, volume: str) -> None:
        own = {"HOSTOFFLOAD_AGENT_NAME": volume, "HOSTOFFLOAD_TARGET_NAME": volume}  # the broker keeps what other tests declared
        super().__init__(folder, environment={**kafka.environment("operator"), **own})
        self.kafka = kafka
        self.volume = volume
        self._running: list[subprocess.Popen[bytes]] = []

    def allow(self) -> None:
        """Give each user its rights, as the broker's own administrator."""
        admin = {**self.environment, **self.kafka.environment()}
        for role in (*SERVICES, "operator"):
            on = [] if role == "operator" else ["--volume", self.volume]
            command = [sys.executable, "-m", "hostoffload", "acl", "apply", role, "--principal", role, *on]
            subprocess.run(command, env=admin, check=True, stdout=subprocess.DEVNULL, timeout=120)

    def start(self) -> None:
        for role in SERVICES:
            environment = {**self.environment, **self.kafka.environment(role)}
            with (self.folder / f"{role}.log").open("wb") as log:
                command = [sys.executable, "-m", "hostoffload", role, "run"]
                self._running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
        wait_until(lambda: agent_runs(local_state.read(self.state)), "the agent runs")

    def stop(self) -> None:
        for one in self._running:
            one.send_signal(signal.SIGTERM)
        for one in self._running:
            one.wait(STOP_S)
        self._running.clear()


@pytest.fixture
def roles(secure_kafka: SecureKafka, tmp_path: Path) -> Iterator[Roles]:
    system = Roles(tmp_path, secure_kafka, fresh_volume_name("role"))
    try:
        system.allow()
        system.start()
        yield system
    finally:
        system.stop()


def test_four_users_with_the_least_rights_protect_restore_and_purge_a_volume(roles: Roles) -> None:
    name = roles.volume
    source = make_source(roles.folder / "source.img", 8 << 20, used_bytes=2 << 20)
    uri = roles.add(name, source)
    with Client(uri) as client:
        client.write_all([(offset, os.urandom(20_000)) for offset in range(0, 6 << 20, 1 << 19)])
        client.flush()
    roles.check_equal(name, source)
    roles.run("bookmark", name, "here")
    roles.run("verify", name)
    restored = roles.folder / "restored.img"
    roles.run("restore", name, "--at", "here", "--to", restored)
    assert first_difference(source, restored) is None
    replayed = roles.folder / "replayed.img"
    roles.run("replay", name, "--from", "beginning", "--to", "latest", "--into", replayed)
    roles.run("volume", "remove", name, "--purge", "--yes")
    admin = Topics(roles.kafka.client())
    wait_until(lambda: {writes_topic(name), journal_topic(name)}.isdisjoint(admin.names()), "the topics are deleted")
    for role in SERVICES:
        log = (roles.folder / f"{role}.log").read_text()
        assert "uthorization" not in log, log


def test_an_agent_is_refused_a_volume_that_it_was_not_given(roles: Roles) -> None:
    other = fresh_volume_name("role")
    source = make_source(roles.folder / "other.img", 4 << 20, used_bytes=1 << 20)
    roles.run("volume", "add", other, "--source", source, "--replica", roles.replica(source), "--timeout", "10", code=3)
    mine = make_source(roles.folder / "mine.img", 4 << 20, used_bytes=1 << 20)
    roles.add(roles.volume, mine)
    roles.check_equal(roles.volume, mine, captured=False)
    refused = f"Topic {writes_topic(other)} can't be described: Broker: Topic authorization failed"
    assert refused in (roles.folder / "agent.log").read_text()
    assert (roles.folder / "cx.log").read_text().count("topics_not_made") <= 6, "each try is a line"
