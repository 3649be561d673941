"""Two agents on one volume: the second one is refused, until the operator says that it takes over; then the first one stops.

The second agent has a state folder and a name of its own and runs by itself; Kafka, CX and target are those of the first system.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from nbd.errors import ProtocolError
from tests.e2e.system import System, first_difference, make_source, running, wait_until
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

VOLUME_BYTES = 256 << 20
USED_BYTES = 64 << 20
BLOCK = 4096
LATE_S = 2.0
END_S = 60
MAP_AT = 12288  # docs/activity_log.md
MAP_END = MAP_AT + VOLUME_BYTES // (1 << 20) // 8


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    need("java")
    with running(tmp_path / "first", environment={"HOSTOFFLOAD_AGENT_NAME": "first"}) as one:
        yield one


@contextlib.contextmanager
def second_agent(first: System) -> Iterator[System]:
    """Run an agent in the foreground on a state folder of its own."""
    bootstrap = json.loads(first.run("status", "--json"))["broker"]["bootstrap"]
    named = {"HOSTOFFLOAD_AGENT_NAME": "second", "HOSTOFFLOAD_KAFKA_BOOTSTRAP": bootstrap}
    system = System(first.folder / "second", environment=named)
    system.state.mkdir(parents=True, mode=0o700)
    with open(system.folder / "agent.log", "wb") as log:
        agent = subprocess.Popen([sys.executable, "-m", "hostoffload", "agent", "run"], env=system.environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: len(list((system.state / "status").glob("[cp]*.json"))) == 2, "capture and publisher have reported")
        yield system
    except BaseException:
        print((system.folder / "agent.log").read_text(errors="replace")[-6000:])
        raise
    finally:
        agent.terminate()
        agent.wait(END_S)


def test_the_second_agent_takes_over_and_the_first_one_stops(system: System) -> None:
    source = make_source(system.folder / "db.img", VOLUME_BYTES, used_bytes=USED_BYTES)
    uri = system.add("db", source)
    system.wait_in_sync("db")
    with second_agent(system) as second, _load(uri) as acknowledged:
        wait_until(lambda: len(acknowledged) > 100, "the first agent has a load")
        second.run("volume", "add", "db", "--source", source, "--replica", system.replica(source), code=3)
        assert system.status("db")["mode"] == "DATA"
        told = second.run("volume", "add", "db", "--source", source, "--replica", system.replica(source), "--take-over", "--json")
        first = system.status("db")
        assert first["mode"] == "OFFLINE" and "fenced" in first["mode_reason"], first
        late = len(acknowledged)
        _write(json.loads(told)["uri"], seed=2)
        time.sleep(LATE_S)
        assert len(acknowledged) == late, "the first agent still takes writes"
        _check_equal(system, second, source)

        (capture,) = system.processes("capture")
        os.kill(capture["pid"], signal.SIGKILL)
        system.up()  # returns when capture has started again: the volume is another agent's, so it is not served, and nothing is claimed
        time.sleep(LATE_S)
        assert system.status("db")["mode"] in (None, "OFFLINE") and len(acknowledged) == late
        _write(json.loads(told)["uri"], seed=3)
        _check_equal(system, second, source)

        system.add("db", source, "--take-over")
        told_second = second.status("db")
        assert told_second["mode"] == "OFFLINE" and "fenced" in told_second["mode_reason"], told_second
        wait_until(lambda: len(acknowledged) > late, "the client has its volume back")
    system.check_equal("db", source)


def test_a_host_that_died_and_was_stood_in_for_believes_nothing_of_its_own(system: System) -> None:
    """What the second agent wrote, and what it never sent, stands in no activity log of the first one: all of it is compared."""
    source = make_source(system.folder / "db.img", VOLUME_BYTES, used_bytes=USED_BYTES)
    system.add("db", source)
    system.wait_in_sync("db")
    wait_until(lambda: not any((system.state / "agent" / "db.activity").read_bytes()[MAP_AT:MAP_END]), "its activity log is clear", 120)
    _die(system)
    with second_agent(system) as second:
        uri = second.run("volume", "add", "db", "--source", source, "--replica", system.replica(source), "--take-over").splitlines()[-1]
        _write(uri, seed=4)
        _check_equal(system, second, source)
        os.kill(_pids(second)["publisher"], signal.SIGSTOP)
        _write(uri, seed=5)  # Kafka never hears of it
        _die(second)
    system.up()
    system.add("db", source, "--take-over")
    system.check_equal("db", source, captured=False)


def _die(system: System) -> None:
    """Kill all of an agent, and remove its memory."""
    pids, ring = _pids(system), Path(system.status("db")["ring"])
    for kind in ("supervisor", "publisher", "capture"):
        os.kill(pids[kind], signal.SIGKILL)
    wait_until(lambda: not any(_runs(pids[kind]) for kind in ("publisher", "capture")), "they are gone")
    shutil.rmtree(ring.parent)


def _pids(system: System) -> dict[str, int]:
    return {one["kind"]: one["pid"] for one in _alive(system)}


def _runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie (proc(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _alive(system: System) -> list[dict]:
    return [one for one in json.loads(system.run("status", "--json"))["processes"] if one["pid"]]


@contextlib.contextmanager
def _load(uri: str) -> Iterator[list[int]]:
    """Write at random and connect again whenever the server is away; yields the offsets that were acknowledged."""
    acknowledged: list[int] = []
    over = threading.Event()

    def run() -> None:
        dice = random.Random(1)
        while not over.is_set():
            with contextlib.suppress(OSError, ProtocolError), Client(uri) as client:
                while not over.is_set():
                    offset = dice.randrange(USED_BYTES // BLOCK) * BLOCK
                    client.write(offset, dice.randbytes(BLOCK))
                    acknowledged.append(offset)
                    over.wait(0.002)
            over.wait(0.05)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield acknowledged
    finally:
        over.set()
        thread.join(END_S)


def _write(uri: str, seed: int) -> None:
    dice = random.Random(seed)
    with Client(uri) as client:
        client.write_all([(dice.randrange(VOLUME_BYTES // BLOCK) * BLOCK, dice.randbytes(BLOCK)) for _ in range(2000)])
        client.flush()


def _check_equal(first: System, second: System, source: Path) -> None:
    """Wait until the target, which reports to the first system, has all that the second agent captured; compare every byte."""
    wait_until(lambda: second.status("db")["mode"] == "DATA", "the second agent keeps order")
    captured = second.status("db")["position"]["captured"]
    wait_until(lambda: (_target(first).get("position") or "") >= captured and _target(first)["open_gaps"] == 0, "all is applied", 120)
    assert first_difference(source, first.replica(source)) is None


def _target(system: System) -> dict:
    (path,) = (system.state / "status").glob("target-*.json")
    return json.loads(path.read_text()).get("volumes", {}).get("db", {})
