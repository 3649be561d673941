"""`up` to `down` as an operator gives them, on a real broker: readiness, restarts, adoption, a volume's whole life, and nothing left
behind.

One state folder for the file, because a broker takes seconds to start; each test leaves the system running and has what it needs made by
its fixtures. What needs no running system stands in tests/unit/test_cli_main.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostoffload import layout
from hostoffload.listeners import answers
from hostoffload.process import start_ticks
from tests.kafka_fixture import local_broker

pytestmark = [pytest.mark.kafka]
WAIT_S = 60.0
STATUS_S_MAX = 5.0
SIZE_BYTES = 8 << 20
KINDS = ["supervisor", "capture", "publisher", "cx", "target", "broker"]


class Machine:
    """A state folder and the command line on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.source = folder / "source.img"
        self.replica = folder / "replica.img"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("HOSTOFFLOAD_") and name != "KAFKA_BOOTSTRAP"
        }

    def run(self, *arguments: str, code: int = 0, timeout_s: float = 150.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hostoffload", "--state", str(self.state), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=timeout_s, check=False)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr, self.logs())
        assert "Traceback" not in done.stderr
        return done

    def facts(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json").stdout)

    def processes(self) -> dict[str, dict[str, Any]]:
        return {one["kind"]: one for one in self.facts("status")["processes"]}

    def pids(self) -> dict[str, int]:
        return {kind: one["pid"] for kind, one in self.processes().items()}

    def volume(self, name: str) -> dict[str, Any]:
        (one,) = self.facts("status", name)["volumes"]
        return one

    def leftovers(self) -> list[str]:
        """Return the command lines of living processes that name this state folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.state) in line:
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted((self.state / "log").glob("*.log")))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    local_broker(folder / "probe", print)  # skips, or fails in CI, where no broker can be had
    one = Machine(folder)
    one.run("up", "--broker", "jars")
    try:
        yield one
    finally:
        one.run("down")
        shutil.rmtree(layout.ring_dir(one.state, "/dev/shm"), ignore_errors=True)


@pytest.fixture
def up(machine: Machine) -> Machine:
    """Return the machine with everything running, whatever the test before did."""
    machine.run("up")
    return machine


@pytest.fixture
def protected(up: Machine) -> Machine:
    """Return the machine with the volume `db` protected and in sync."""
    if not up.source.exists():
        up.source.write_bytes(os.urandom(SIZE_BYTES))
    up.run("volume", "add", "db", "--source", str(up.source), "--replica", str(up.replica))
    up.run("wait", "db", "--in-sync", "--timeout", str(WAIT_S))
    return up


def until(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def test_up_returns_when_all_is_ready(up: Machine) -> None:
    processes = up.processes()
    assert list(processes) == KINDS
    assert all(one["pid"] is not None and one["restarts"] == 0 for one in processes.values())
    assert answers(layout.nbd_socket(up.state), 1.0)
    assert up.facts("broker", "status")["ready"]


def test_up_again_changes_nothing(up: Machine) -> None:
    before = up.processes()
    assert up.run("up").stdout == ""
    assert up.processes() == before


def test_services_keep_nothing_of_the_callers(up: Machine) -> None:
    for kind, pid in up.pids().items():
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in ("0", "1", "2")]
        assert held[0] == "/dev/null" and held[1] == held[2], kind
        assert held[1].startswith(str(up.state)), kind
        assert os.getsid(pid) != os.getsid(0), kind
    ends = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}
    pipes = {one for one in ends if one.startswith("pipe:")}
    supervisor = up.pids()["supervisor"]
    assert pipes.isdisjoint(os.readlink(f"/proc/{supervisor}/fd/{fd}") for fd in os.listdir(f"/proc/{supervisor}/fd"))


@pytest.mark.parametrize("kind", ["capture", "publisher", "cx", "target", "broker"])
def test_a_killed_service_comes_back_by_itself(up: Machine, kind: str) -> None:
    before = up.processes()
    os.kill(before[kind]["pid"], signal.SIGKILL)
    began = time.monotonic()
    up.run("status", "--json")
    assert time.monotonic() - began < STATUS_S_MAX

    def back() -> bool:
        now = up.processes()[kind]
        return now["pid"] not in (None, before[kind]["pid"]) and now["restarts"] == before[kind]["restarts"] + 1

    until(back, up.logs)
    others = {one: pid for one, pid in up.pids().items() if one != kind}
    assert others == {one: told["pid"] for one, told in before.items() if one != kind}
    up.run("up")


def test_status_answers_quickly_with_the_broker_frozen(up: Machine) -> None:
    broker = up.pids()["broker"]
    os.kill(broker, signal.SIGSTOP)
    try:
        began = time.monotonic()
        told = up.facts("status")
        assert time.monotonic() - began < STATUS_S_MAX
        assert told["broker"]["pid"] == broker
        began = time.monotonic()
        refused = up.run("volume", "list", code=3)
        assert refused.stderr.startswith("error: Kafka does not answer") and time.monotonic() - began < 15
    finally:
        os.kill(broker, signal.SIGCONT)


@pytest.mark.slow
def test_a_broker_stopped_by_hand_stays_stopped_until_it_is_started(up: Machine) -> None:
    before = up.pids()
    up.run("broker", "stop")
    assert start_ticks(before["broker"]) is None
    assert up.run("broker", "status", code=1).stdout
    os.kill(before["cx"], signal.SIGKILL)  # the supervisor is awake and starts others
    until(lambda: up.pids()["cx"] not in (None, before["cx"]), up.logs)
    assert up.pids()["broker"] is None
    assert up.run("broker", "start").stdout.strip() == up.facts("status")["broker"]["bootstrap"]
    assert up.pids()["broker"] is not None


def test_services_outlive_a_killed_supervisor_and_the_next_up_goes_on_with_them(up: Machine) -> None:
    before = up.pids()
    os.kill(before["supervisor"], signal.SIGKILL)
    orphaned = up.pids()
    assert orphaned.pop("supervisor") is None
    assert orphaned == {kind: pid for kind, pid in before.items() if kind != "supervisor"}
    up.run("up")
    after = up.pids()
    assert after.pop("supervisor") not in (None, before["supervisor"])
    assert after == orphaned
    os.kill(after["capture"], signal.SIGKILL)  # an adopted one is looked after too
    until(lambda: up.pids()["capture"] not in (None, after["capture"]), up.logs)
    until(lambda: answers(layout.nbd_socket(up.state), 1.0), up.logs)


def test_a_volumes_life(up: Machine) -> None:
    source, replica = up.source, up.replica
    source.write_bytes(os.urandom(SIZE_BYTES))
    add = ["volume", "add", "db", "--source", str(source), "--replica", str(replica)]
    uri = up.run(*add).stdout.splitlines()[-1]
    assert uri == f"nbd+unix:///db?socket={layout.nbd_socket(up.state)}"
    assert up.facts(*add) == {"volume": "db", "uri": uri}  # the same again: the same answer
    assert "There is a volume 'db' already" in up.run(*add[:-1], str(up.folder / "other.img"), code=2).stderr
    assert "of volume 'db' already" in up.run("volume", "add", "two", *add[3:], code=2).stderr
    assert not (up.folder / "other.img").exists()

    verdict = up.facts("wait", "db", "--in-sync", "--timeout", str(WAIT_S))
    assert verdict["in_sync"] and replica.read_bytes() == source.read_bytes()
    one = up.volume("db")
    assert (one["mode"], one["uri"], one["source"], one["replica"]) == ("DATA", uri, str(source), str(replica))
    assert one["position"]["applied"] >= verdict["position"] > "00000001-0000000000000000"
    assert Path(one["ring"]).exists() and one["gaps"] == 0
    assert one["targets"][0]["applied"] >= verdict["position"]
    assert [each["volume"] for each in up.facts("volume", "list")["volumes"]] == ["db"]
    assert "db" in up.run("status").stdout

    up.run("volume", "resync", "db")
    assert up.facts("wait", "db", "--in-sync", "--timeout", str(WAIT_S))["in_sync"]
    assert up.volume("db")["resync_bytes"] >= 2 * SIZE_BYTES


def test_wait_says_no_when_the_time_is_out(protected: Machine) -> None:
    target = protected.pids()["target"]
    os.kill(target, signal.SIGSTOP)
    try:
        started = protected.volume("db")["position"]["captured"]
        until(lambda: protected.volume("db")["position"]["captured"] > started, protected.logs)  # a heartbeat that the target can't apply
        refused = protected.run("wait", "db", "--in-sync", "--timeout", "1", "--json", code=1)
        assert json.loads(refused.stdout)["in_sync"] is False
        assert protected.volume("db")["rpo_ms"] > 0
    finally:
        os.kill(target, signal.SIGCONT)
    protected.run("wait", "db", "--in-sync", "--timeout", str(WAIT_S))


def test_a_paused_volume_is_not_served_and_goes_on(protected: Machine) -> None:
    protected.run("volume", "pause", "db")
    assert (protected.volume("db")["mode"], protected.volume("db")["mode_reason"]) == ("OFFLINE", "paused")
    protected.run("volume", "resume", "db")
    protected.run("wait", "db", "--in-sync", "--timeout", str(WAIT_S))


@pytest.mark.slow
def test_down_ends_everything_and_keeps_everything(protected: Machine) -> None:
    replica = protected.replica.read_bytes()
    os.kill(protected.pids()["supervisor"], signal.SIGKILL)  # what a killed supervisor left is ended too
    pids = [pid for pid in protected.pids().values() if pid is not None]
    protected.run("down")
    assert [pid for pid in pids if start_ticks(pid) is not None] == []
    assert protected.leftovers() == []
    assert protected.run("down").returncode == 0  # fine if nothing runs
    told = protected.facts("status")
    assert told["volumes"][0]["mode"] == "OFFLINE" and all(one["pid"] is None for one in told["processes"])

    protected.run("up")
    protected.run("wait", "db", "--in-sync", "--timeout", str(WAIT_S))
    assert protected.replica.read_bytes() == replica
    pids = [pid for pid in protected.pids().values() if pid is not None]
    protected.run("down")  # in order, by a living supervisor
    assert [pid for pid in pids if start_ticks(pid) is not None] == [] and protected.leftovers() == []
    assert not layout.nbd_socket(protected.state).exists()
    assert not layout.ring_dir(protected.state, "/dev/shm").exists(), "the marker on the disk says all that the ring said"

    protected.run("up")
    protected.run("wait", "db", "--in-sync", "--timeout", str(WAIT_S))
    assert protected.volume("db")["resync_bytes"] == 0 and protected.replica.read_bytes() == replica


def test_remove_keeps_and_purge_deletes(protected: Machine) -> None:
    protected.run("volume", "remove", "db")
    assert protected.facts("status")["volumes"] == [] and protected.facts("volume", "list")["volumes"] == []
    assert protected.source.exists() and protected.replica.exists()
    assert list((protected.state / "store" / "db").rglob("*.avro"))
    protected.run("volume", "remove", "db", "--purge", "--yes")
    assert list((protected.state / "store").rglob("*.avro")) == []
    assert "There is no volume 'db'" in protected.run("volume", "remove", "db", code=2).stderr
