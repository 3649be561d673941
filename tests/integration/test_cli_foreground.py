"""Services in the foreground, for systemd and containers: `up --foreground` on a broker of others, `agent run` with sockets from
outside, each service with an address for its metrics."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from hostoffload import layout
from hostoffload.broker.ports import free_ports
from hostoffload.listeners import answers
from hostoffload.process import start_ticks
from tests.kafka_fixture import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
WAIT_S = 90.0
# Does what systemd does (sd_listen_fds(3)): its listening socket as descriptor 3, its own pid in LISTEN_PID.
ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)  # if it was 3 already, dup2 did nothing
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "hostoffload", *sys.argv[2:]])
"""


class Service:
    """A foreground command and the state folder that it works on."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes]) -> None:
        self.state = state
        self.process = process

    def pids(self) -> dict[str, int | None]:
        command = [sys.executable, "-m", "hostoffload", "--state", str(self.state), "status", "--json"]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return {one["kind"]: one["pid"] for one in told["processes"]}

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, "it ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def reported(self, *kinds: str) -> bool:
        """Tell whether processes of these kinds have reported."""
        return all(list((self.state / "status").glob(f"{kind}-*.json")) for kind in kinds)


@pytest.fixture
def environment(kafka: Kafka) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HOSTOFFLOAD_")}
    return clean | {
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HOSTOFFLOAD_AGENT_NAME": f"agent-{os.getpid()}",
        "HOSTOFFLOAD_TARGET_NAME": f"t-{os.getpid()}",
    }


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(command: list[str], *arguments: str) -> Service:
        state = tmp_path / "state"
        with (tmp_path / "output").open("ab") as output:
            process = subprocess.Popen([*command, "--state", str(state), *arguments], env=environment, stdout=output, stderr=output)
        started.append(Service(state, process))
        return started[-1]

    yield begin
    for service in started:
        service.process.kill()
        service.process.wait()
        subprocess.run([sys.executable, "-m", "hostoffload", "--state", str(service.state), "down"], capture_output=True, check=True)


HOSTOFFLOAD = [sys.executable, "-m", "hostoffload"]


def test_up_in_the_foreground_uses_a_named_broker_and_leaves_it_alone(start: Callable[..., Service], kafka: Kafka) -> None:
    service = start(HOSTOFFLOAD, "up", "--foreground", "--bootstrap", kafka.bootstrap)
    service.wait(lambda: service.reported("supervisor", "capture", "publisher", "cx", "target"))
    pids = service.pids()
    assert list(pids) == ["supervisor", "capture", "publisher", "cx", "target"]
    assert pids["supervisor"] == service.process.pid
    refused = subprocess.run(
        [*HOSTOFFLOAD, "--state", str(service.state), "up", "--foreground"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 3 and f"under process {service.process.pid}" in refused.stderr
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(WAIT_S) == 0
    assert [kind for kind, pid in pids.items() if kind != "supervisor" and start_ticks(pid or 0) is not None] == []
    with socket.create_connection(kafka.bootstrap.rsplit(":", 1), 5):
        pass  # the broker still listens


def test_agent_run_serves_sockets_from_outside_and_restarts_what_dies(start: Callable[..., Service], tmp_path: Path) -> None:
    outside = tmp_path / "outside.sock"
    service = start([sys.executable, "-c", ACTIVATE, str(outside)], "agent", "run")
    service.wait(lambda: answers(outside, 1.0) and service.reported("publisher"))
    pids = service.pids()
    assert list(pids) == ["supervisor", "capture", "publisher"]
    assert not layout.nbd_socket(service.state).exists()
    capture = pids["capture"]
    assert capture is not None
    os.kill(capture, signal.SIGKILL)
    service.wait(lambda: service.pids()["capture"] not in (None, capture))
    service.wait(lambda: answers(outside, 5.0))
    refused = subprocess.run([*HOSTOFFLOAD, "--state", str(service.state), "up"], capture_output=True, text=True, check=False)
    assert refused.returncode == 3 and "agent run" in refused.stderr
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(WAIT_S) == 0
    assert service.pids() == {}
    assert outside.exists()  # it belongs to whoever made it


def test_each_service_tells_its_metrics_at_an_address_of_its_own(
    start: Callable[..., Service], tmp_path: Path, environment: dict[str, str]
) -> None:
    """The agent has its sockets from outside, where readiness can't ask them."""
    ports = dict(zip(("agent", "cx", "target", "up"), free_ports(4), strict=True))
    environment |= {f"HOSTOFFLOAD_METRICS_{service.upper()}": f"127.0.0.1:{port}" for service, port in ports.items()}
    start([sys.executable, "-c", ACTIVATE, str(tmp_path / "outside.sock")], "agent", "run")
    start(HOSTOFFLOAD, "cx", "run")
    service = start(HOSTOFFLOAD, "target", "run")

    def get(port: int, path: str) -> str:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_S) as answer:
            return answer.read().decode()
        return ""

    told = {"agent": ["supervisor", "capture", "publisher"], "cx": ["cx"], "target": ["target"]}
    for name, processes in told.items():
        service.wait(lambda name=name: get(ports[name], "/readyz") == "ok\n")
        up = re.findall(r'^hostoffload_process_up\{name="\w+",process="(\w+)"\} 1.0$', get(ports[name], "/metrics"), re.MULTILINE)
        assert sorted(up) == sorted(processes)
    assert get(ports["up"], "/healthz") == "", "nobody has said `up`"
