"""Points and exports of a running system, by real clients: every noted moment has its bytes, wherever it is kept; nothing else changes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from history.reader import list_segments
from history.store import open_store
from nbd.client import Client
from tests.e2e.system import System, make_source, running, wait_until
from tests.integration.test_export import Exported
from tests.kafka_fixture import Kafka
from tests.tools import need

SIZE_BYTES = 256 << 20
USED_BYTES = 4 << 20
ROUNDS = 4

pytestmark = pytest.mark.slow


class Noted:
    """Moments of a volume: a position, and a copy of the source as it was there."""

    def __init__(self, system: System, name: str, source: Path, folder: Path) -> None:
        self.system, self.name, self.source, self.folder = system, name, source, folder
        self.moments: list[tuple[str, Path]] = []

    def write_round(self, uri: str, dice: random.Random) -> None:
        """Write, zero and trim through the agent, then note where that stands. Nobody writes meanwhile."""
        with Client(uri) as client:
            for _ in range(60):
                length = dice.choice([512, 4096, 20_000, 65_536, 300_000])
                at = dice.randrange(0, (32 << 20) - length)
                kind = dice.random()
                if kind < 0.8:
                    client.write(at, dice.randbytes(length))
                elif kind < 0.9:
                    client.zero(at, length)
                else:
                    client.trim(at, length)
            client.flush()
        status = self.system.check_equal(self.name, self.source)
        copy = self.folder / f"copy-{len(self.moments)}"
        subprocess.run(["cp", "--sparse=always", self.source, copy], check=True)
        self.moments.append((status["position"]["applied"], copy))

    def close(self) -> None:
        for _, copy in self.moments:
            copy.unlink()


@pytest.fixture(scope="module")
def noted(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noted]:
    need("nbdcopy", "qemu-img")
    folder = tmp_path_factory.mktemp("noted")
    environment = {"HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "900", "HOSTOFFLOAD_CX_SEGMENT_BYTES_MAX": str(4 << 20)}
    with running(folder / "system", bootstrap=kafka.bootstrap, environment=environment) as system:
        source = make_source(system.folder / "source", SIZE_BYTES, USED_BYTES)
        name = kafka.fresh_volume_name()
        uri = system.add(name, source)
        system.wait_in_sync(name)
        found = Noted(system, name, source, folder)
        dice = random.Random(1)
        for _ in range(ROUNDS):
            found.write_round(uri, dice)
        yield found
        found.close()


def check_copy(uri: str, expected: Path, tool: str, scratch: Path) -> int:
    """Copy an export whole, compare it, and return how much space the copy takes."""
    copy = scratch / "out"
    command = {"nbdcopy": ["nbdcopy", uri, copy], "qemu-img": ["qemu-img", "convert", "-O", "raw", uri, copy]}[tool]
    subprocess.run(command, check=True, timeout=120)
    assert subprocess.run(["cmp", copy, expected], capture_output=True, check=False).returncode == 0, "the copy is not the moment"
    space = copy.stat().st_blocks * 512
    copy.unlink()
    return space


def exports(system: System) -> list[dict]:
    return json.loads(system.run("export", "list", "--json"))["exports"]


def test_a_detached_export_comes_back_as_it_was(noted: Noted, tmp_path: Path) -> None:
    """Killed without warning: started again at the same position, with all that was flushed; and ended by `stop`."""
    system, name = noted.system, noted.name
    uri = system.run("export", name, "--at", "latest", "--detach", "--writable", "--name", "mine").splitlines()[-1]
    (before,) = exports(system)
    expected = bytearray(noted.moments[-1][1].read_bytes()[: 1 << 20])
    with Client(uri) as client:
        client.write(1000, b"x" * 100_000)
        client.flush()
    expected[1000:101_000] = b"x" * 100_000
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: exports(system)[0]["pid"] not in (None, before["pid"]), "the export is started again")
    (after,) = exports(system)
    assert (after["uri"], after["position"]) == (uri, before["position"])
    with Client(uri) as client:
        assert client.read(0, 1 << 20) == expected
    system.run("export", "stop", after["id"])
    assert not Path(f"/proc/{after['pid']}").exists()
    assert exports(system) == []
    system.run("export", "stop", after["id"], code=1)
    again = Exported(system.state, name, "--writable", "--name", "mine")
    with Client(again.uri) as client:
        assert client.read(0, 1 << 20) == expected
    again.end()
    refused = system.run("export", name, "--at", "nonesuch", "--detach", code=3)
    assert refused == "" and exports(system) == []
    assert "export" not in {one["kind"] for one in json.loads(system.run("status", "--json"))["processes"]}
    system.check_equal(name, noted.source)


def test_every_moment_has_its_bytes_wherever_it_is_kept(noted: Noted, tmp_path: Path) -> None:
    """In segments, in Kafka alone, and without Kafka. The last test of this system: it ends it."""
    system, name = noted.system, noted.name
    store = open_store(str(system.state / "store"))
    stored = list_segments(store, name)
    assert str(stored[-1].last) < noted.moments[-1][0], "the newest moment is in Kafka only"
    for number, (position, copy) in enumerate(noted.moments):
        uri = system.run("export", name, "--at", position, "--detach").splitlines()[-1]
        space = check_copy(uri, copy, ("nbdcopy", "qemu-img")[number % 2], tmp_path)
        assert space < 64 << 20, "a sparse volume's copy is not sparse"
    assert [one["position"] for one in exports(system)] == [position for position, _ in noted.moments]
    points = json.loads(system.run("points", name, "--json"))
    assert points["latest"]["position"] >= noted.moments[-1][0]
    assert [gap["reason"] for gap in points["gaps"]] == ["first_copy"]
    assert points["gaps"][0]["until"] is not None and points["note"] is None
    system.check_equal(name, noted.source)
    system.down()
    assert not any(Path(f"/proc/{one['pid']}").exists() for one in exports(system))
    assert exports(system) == []
    assert str(list_segments(store, name)[-1].last) >= noted.moments[-1][0], "what was only in Kafka was stored at the end"
    lost = {"HOSTOFFLOAD_KAFKA_BOOTSTRAP": "127.0.0.1:9"}
    for position, copy in noted.moments[-2:]:
        system.environment |= lost
        exported = Exported(system.state, name, "--at", position)
        check_copy(exported.uri, copy, "nbdcopy", tmp_path)
        exported.end()
    for key in lost:
        del system.environment[key]
