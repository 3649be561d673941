"""The Kafka that integration tests talk to; `tests/conftest.py` imports the fixtures from here.

`kafka` is one broker for the whole session: the one that KAFKA_BOOTSTRAP names, else one started here (Java and Maven's jars, or Docker)
and ended with the session. `own_broker` is a broker of the test alone, which it may stop, kill, freeze and start again.
Without any Kafka these tests skip and say why; in CI (CI=true) they fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from hostoffload.broker import Broker, choose
from hostoffload.broker.probe import cluster
from stream.errors import HostoffloadError
from tests.tools import lacking

START_S = 90
STOP_S = 20


@dataclass(frozen=True, slots=True)
class Kafka:
    """The session's broker: everything in it is shared, so a test uses names of its own."""

    bootstrap: str

    def fresh_volume_name(self, prefix: str = "v") -> str:
        """Return a volume name that no other test has."""
        return fresh_volume_name(prefix)


class OwnBroker:
    """A broker of one test, on a state folder of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.said: list[str] = []
        self.broker = local_broker(state_dir, self.said.append)

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def pid(self) -> int:
        pid = self.broker.status().pid
        assert pid is not None, "the broker does not run"
        return pid

    def fresh_volume_name(self, prefix: str = "v") -> str:
        """Return a volume name that this broker never saw."""
        return fresh_volume_name(prefix)

    def start(self) -> None:
        self.broker.start(START_S)

    def stop(self) -> None:
        self.broker.stop(STOP_S)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        handle = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            self.broker.stop(STOP_S)
        finally:
            os.close(handle)

    def freeze(self) -> None:
        """SIGSTOP: sockets stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def fresh_volume_name(prefix: str = "v") -> str:
    """Return a volume name that no other test has, good for a topic name."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def local_broker(state_dir: Path, say: Callable[[str], None], kinds: Sequence[str] = ("jars", "docker")) -> Broker:
    """Return a local broker of the first kind that works here, not started; skip, or in CI fail, if none does."""
    reasons = []
    for kind in kinds:
        try:
            return choose(state_dir, bootstrap=None, force=kind, say=say)
        except HostoffloadError as error:
            reasons.append(error.sentence)
    return unavailable(" ".join(reasons))


def unavailable(reason: str) -> NoReturn:
    """Do without the test: there is no Kafka."""
    lacking(f"no Kafka for the tests: {reason}")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One broker for the session."""
    named = os.environ.get("KAFKA_BOOTSTRAP")
    if named:
        try:
            cluster(named, 10)
        except HostoffloadError as error:
            unavailable(f"KAFKA_BOOTSTRAP={named}: {error.sentence}")
        yield Kafka(named)
        return
    folder = tmp_path_factory.mktemp("kafka")
    broker = local_broker(folder, print)
    child = None
    try:
        child = _start_bound(broker)
        yield Kafka(broker.bootstrap)
    finally:
        broker.stop(STOP_S)
        if child is not None:
            child.wait(STOP_S)
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes by now


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBroker]:
    """A running broker that belongs to the test; whatever the test did to it, it is gone afterwards."""
    own = OwnBroker(tmp_path / "state")
    try:
        own.start()
        yield own
    finally:
        if own.broker.status().pid is not None:
            own.thaw()
        own.stop()


def _start_bound(broker: Broker) -> subprocess.Popen[bytes] | None:
    """Start the broker as a child that ends when the tests are killed, where the kernel can be told so by `setpriv`."""
    setpriv = shutil.which("setpriv")
    if broker.kind != "jars" or setpriv is None:
        broker.start(START_S)
        return None
    broker.prepare()
    child = subprocess.Popen(
        [setpriv, "--pdeathsig", "KILL", *broker.argv()],
        env=broker.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    broker.wait_ready(START_S)
    return child
