"""The services as the systemd units run them: each by itself, without a supervisor, over one state folder whose run folder is elsewhere.

What systemd would do is done here by hand: the socket, the environment, the order, the restart. Paths are those of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload import layout
from nbd.client import Client
from nbd.listen import listen_unix
from tests.e2e.system import first_difference, make_source
from tests.kafka_fixture import Kafka
from tests.systemd_units import CONFIG, PROGRAM, STATE, Unit, services, unit

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
MIB = 1 << 20
WAIT_S = 90.0
# Does what systemd does (sd_listen_fds(3)): the socket is descriptor 3 already, the pid of the program in LISTEN_PID.
ACTIVATE = "import os, sys; os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}; os.execv(sys.argv[1], sys.argv[1:])"


class Host:
    """A host with the four services, as their units say."""

    def __init__(self, folder: Path, run: Path, kafka: Kafka) -> None:
        self.state, self.run = folder / "state", run
        self.state.mkdir(mode=0o700)
        (self.state / "run").symlink_to(run)
        config = folder / "hostoffload.toml"
        own = f"{os.getpid()}-{kafka.fresh_volume_name()}"
        names = f'[agent]\nname = "agent-{own}"\n[cx]\nworker = "{own}"\n[target]\nname = "t-{own}"\n'
        config.write_text(f'[kafka]\nbootstrap = "{kafka.bootstrap}"\n{names}', encoding="ascii")
        self.paths = {str(STATE): str(self.state), str(CONFIG): str(config)}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HOSTOFFLOAD_", "KAFKA_"))}
        told = unit("hostoffload-capture.service").environment
        self.environment = clean | {name: self.paths.get(value, value) for name, value in told.items()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        socket = Path(unit("hostoffload-capture.socket").one("Socket", "ListenStream"))
        self.listener = listen_unix(run / socket.name)
        self.log = (folder / "output").open("ab")

    def start(self, one: Unit) -> None:
        """Run what ExecStart says; the socket unit of that name hands over its socket."""
        program, *arguments = one.command
        assert program == PROGRAM and all(self.paths.get(value, value) in self.environment.values() for value in one.environment.values())
        command = [sys.executable, "-m", "hostoffload", *arguments]
        activated = one.name == "hostoffload-capture.service"
        if activated:
            command = [sys.executable, "-c", ACTIVATE, *command]
        self.processes[one.name] = subprocess.Popen(
            command,
            env=self.environment,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=self._hand_over if activated else None,
            pass_fds=(3,) if activated else (),
        )

    def _hand_over(self) -> None:
        os.dup2(self.listener.fileno(), 3)
        os.set_inheritable(3, True)

    def call(self, *arguments: object) -> str:
        """Run a command as the operator does."""
        done = subprocess.run(
            [sys.executable, "-m", "hostoffload", *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * WAIT_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait_ready(self) -> None:
        """Wait until every service has reported, as the operator sees by `status`."""
        deadline_s = time.monotonic() + WAIT_S
        kinds: set[str] = set()
        while not {"capture", "publisher", "cx", "target"} <= kinds:
            assert time.monotonic() < deadline_s, f"only {kinds} have reported"
            time.sleep(0.2)
            kinds = {one["kind"] for one in json.loads(self.call("status", "--json"))["processes"] if one["pid"] is not None}

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.listener.close()
        self.log.close()
        shutil.rmtree(layout.ring_dir(self.state, "/dev/shm"), ignore_errors=True)


@pytest.fixture
def host(tmp_path: Path, kafka: Kafka) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="ho-run-") as run:
        host = Host(tmp_path, Path(run), kafka)
        try:
            yield host
        finally:
            host.end()
            print((tmp_path / "output").read_text(errors="replace")[-4000:])


def client(uri: str) -> Client:
    """Connect, as soon as the volume is served."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(OSError):
            return Client(uri)
        assert time.monotonic() < deadline_s, "the volume is not served"
        time.sleep(0.1)


def test_the_units_make_a_system_that_protects_a_volume(host: Host, tmp_path: Path, kafka: Kafka) -> None:
    for one in services():
        host.start(one)
    host.wait_ready()
    name, source, replica = kafka.fresh_volume_name(), make_source(tmp_path / "source", 8 * MIB, 2 * MIB), tmp_path / "replica"
    uri = host.call("volume", "add", name, "--source", source, "--replica", replica).splitlines()[-1]
    assert str(host.run / "nbd.sock") in uri
    with client(uri) as writer:
        writer.write(MIB, os.urandom(3 * MIB))
        writer.flush()
    host.call("wait", name, "--in-sync", "--timeout", WAIT_S)
    assert first_difference(source, replica) is None

    # A kill, and Restart=always: the ring is there, the socket was never closed.
    capture = host.processes["hostoffload-capture.service"]
    capture.send_signal(signal.SIGKILL)
    capture.wait(WAIT_S)
    host.start(unit("hostoffload-capture.service"))
    with client(uri) as writer:
        writer.write(5 * MIB, os.urandom(MIB))
        writer.flush()
    host.call("wait", name, "--in-sync", "--timeout", WAIT_S)
    assert first_difference(source, replica) is None

    # A stop goes the other way round, and each service ends well in its own time.
    for one in reversed(services()):
        process = host.processes[one.name]
        assert process.poll() is None, one.name
        process.send_signal(signal.SIGTERM)
        assert process.wait(float(one.one("Service", "TimeoutStopSec")) + WAIT_S) == 0, one.name
    assert not list((host.state / "run").glob("*.error.json"))
