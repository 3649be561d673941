"""`export` by its command line over a store in a folder, without a broker: bytes, sparse copies, overlays, and what is said of mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from history.reader import list_segments
from history.store import open_store
from hostoffload import exports, layout
from nbd.client import Client
from tests.history_maker import damage
from tests.recovery_bench import SIZE_BYTES, RecoveryBench, busy_history
from tests.tools import need

READY_S_MAX = 60


class Exported:
    """An `export` command that runs in the foreground."""

    def __init__(self, state: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "hostoffload", "--state", str(state), "export", *map(str, arguments)]
        self.begun_s = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.uri = self.process.stdout.readline().strip()
        self.ready_s = time.monotonic() - self.begun_s
        if not self.uri:
            raise AssertionError(self.process.communicate()[1])

    def end(self, number: int = signal.SIGTERM) -> str:
        """Stop it; return what it said."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=READY_S_MAX)
        assert "Traceback" not in told, told
        assert self.process.returncode == (-number if number == signal.SIGKILL else 0)
        return told


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> RecoveryBench:
    maker = busy_history(11, 60)
    return RecoveryBench(maker, len(maker.messages), store=open_store(str(tmp_path_factory.mktemp("state") / "store")))


@pytest.fixture
def state(bench: RecoveryBench) -> Iterator[Path]:
    folder = Path(bench.store.url).parent
    yield folder
    assert list((folder / "exports").glob("*.json")) == [], "an export is still told of"
    assert list((folder / "run").glob("*.sock")) == []


def command(state: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "hostoffload", "--state", str(state), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


def points(bench: RecoveryBench, count: int) -> list[int]:
    records = bench.maker.records
    good = [at for at in range(2, len(records)) if not records[at][2].more]
    return good[:: len(good) // count]


def test_every_point_has_its_bytes(bench: RecoveryBench, state: Path) -> None:
    for at in points(bench, 3):
        exported = Exported(state, "v1", "--at", bench.maker.records[at][0])
        with Client(exported.uri) as client:
            assert client.read_only
            assert client.read(0, SIZE_BYTES) == bench.oracle(bench.maker.records[at][0])
        assert "v1 as it was at" in exported.end()


def test_it_ends_when_it_is_interrupted_and_lets_go_of_its_lease(bench: RecoveryBench, state: Path) -> None:
    exported = Exported(state, "v1", "--at", "b20", "--json")
    assert json.loads(exported.uri).keys() == {"volume", "uri"}
    assert len(bench.store.list("v1/leases/")) == 1
    (told,) = json.loads(command(state, "export", "list", "--json").stdout)["exports"]
    assert (told["id"], told["writable"], told["pid"]) == ("v1-1", False, exported.process.pid)
    exported.end(signal.SIGINT)
    assert bench.store.list("v1/leases/") == []


def test_copies_by_real_clients_are_equal_and_stay_sparse(bench: RecoveryBench, state: Path, tmp_path: Path) -> None:
    need("nbdcopy", "qemu-img")
    exported = Exported(state, "v1", "--at", "latest")
    expected = bench.oracle(bench.maker.records[-1][0])
    subprocess.run(["nbdcopy", exported.uri, tmp_path / "a"], check=True, timeout=60)
    subprocess.run(["qemu-img", "convert", "-O", "raw", exported.uri, tmp_path / "b"], check=True, timeout=60)
    for copy in (tmp_path / "a", tmp_path / "b"):
        assert copy.read_bytes() == expected
    exported.end()


def test_what_is_written_stays_in_the_overlay_and_survives_a_kill(bench: RecoveryBench, state: Path) -> None:
    before = bench.oracle(bench.maker.records[-1][0])
    exported = Exported(state, "v1", "--at", "latest", "--writable", "--name", "mine")
    with Client(exported.uri) as client:
        client.write(5000, b"x" * 10_000)
        client.flush()
        client.write(500_000, b"unflushed")
        exported.end(signal.SIGKILL)
    again = Exported(state, "v1", "--writable", "--name", "mine")
    expected = before[:5000] + b"x" * 10_000 + before[15_000:]
    with Client(again.uri) as client:
        found = client.read(0, SIZE_BYTES)
        assert found[:500_000] == expected[:500_000]
        assert found[500_009:] == expected[500_009:]
        client.write(0, b"clean end")
    refused = command(state, "export", "v1", "--at", "latest", "--writable", "--name", "mine", code=3)
    assert "in use" in refused.stderr
    again.end()
    third = Exported(state, "v1", "--at", "latest", "--writable", "--name", "mine")
    with Client(third.uri) as client:
        assert client.read(0, 9) == b"clean end"
    third.end()
    plain = Exported(state, "v1", "--at", "latest")
    with Client(plain.uri) as client:
        assert client.read(0, SIZE_BYTES) == before
    plain.end()


def test_an_overlay_without_a_name_is_gone_with_its_export(bench: RecoveryBench, state: Path) -> None:
    exported = Exported(state, "v1", "--at", "latest", "--writable")
    with Client(exported.uri) as client:
        client.write(0, b"scratch")
        assert client.read(0, 7) == b"scratch"
    exported.end()
    assert not [path for path in (state / "exports").iterdir() if path.is_file()]


def test_many_at_once(bench: RecoveryBench, state: Path) -> None:
    chosen = points(bench, 4)
    running = [Exported(state, "v1", "--at", bench.maker.records[at][0]) for at in chosen]
    assert len(json.loads(command(state, "export", "list", "--json").stdout)["exports"]) == len(chosen)
    for at, exported in zip(chosen, running, strict=True):
        with Client(exported.uri) as client:
            assert client.read(0, SIZE_BYTES) == bench.oracle(bench.maker.records[at][0])
    command(state, "export", "stop", "--all")
    for exported in running:
        assert exported.process.wait(READY_S_MAX) == 0


def test_mistakes_get_a_sentence(bench: RecoveryBench, state: Path) -> None:
    for arguments, code, told in (
        (["v1"], 2, "Which point?"),
        (["--at", "latest"], 2, "Which volume?"),
        (["v1", "--at", "nonesuch"], 3, "has no bookmark 'nonesuch'"),
        (["other", "--at", "latest"], 3, "Nothing is stored of other"),
        (["v1", "--at", "00000001-0000000000000001"], 3, "a gap is open"),
        (["v1", "--at", "-30x"], 2, "--at"),
        (["v1", "--at", "latest", "--name", "a"], 2, "--writable"),
        (["v1", "--at", "latest", "--writable", "--name", "../a"], 2, "no name of an overlay"),
        (["v1", "--at", "latest", "--detach"], 3, "No supervisor"),
        (["stop"], 2, "Which exports?"),
        (["stop", "v1-77"], 1, "no export v1-77"),
    ):
        assert told in command(state, "export", *arguments, code=code).stderr


def test_a_damaged_block_is_an_error_of_the_read_that_needs_it(tmp_path: Path) -> None:
    maker = busy_history(5, 20)
    bench = RecoveryBench(maker, len(maker.messages), seals=2, store=open_store(str(tmp_path / "store")))
    first = list_segments(bench.store, "v1")[0]
    size = os.stat(tmp_path / "store" / str(first)).st_size
    damage(bench.store, str(first), size // 2)
    exported = Exported(tmp_path, "v1", "--at", "latest")
    with Client(exported.uri) as client:
        with pytest.raises(OSError):
            client.read(0, SIZE_BYTES)
        assert client.size_bytes == SIZE_BYTES
    told = exported.end()
    assert str(first) in told or "does not match" in told
    assert "nearest good points" in told or "No other point" in told


def test_an_export_that_is_not_ready_yet_can_be_stopped(bench: RecoveryBench, state: Path) -> None:
    layout.make(state)
    one = exports.declare(state, exports.Declared("", "v1", "latest", None, False, None, detached=True))
    assert json.loads(command(state, "export", "stop", "--all", "--json").stdout)["stopped"] == [one.id]
    assert exports.find(state, one.id) is None
    one = exports.declare(state, exports.Declared("", "v1", "latest", None, False, None, detached=True))
    assert json.loads(command(state, "export", "stop", one.id, "--json").stdout)["stopped"] == [one.id]
    assert "no export" in command(state, "export", "stop", one.id, code=1).stderr


_OPENED = """
import sys
from pathlib import Path
from hostoffload.cli import export
from hostoffload.context import Context
from hostoffload.exports import Declared
ready = []
one = Declared("v1-9", "v1", "latest", None, False, None, True)
export._serve(Context(Path(sys.argv[1])), one, say=print, ready=ready.append)
sys.exit(1 if ready else 0)
"""


def test_an_export_that_was_stopped_while_it_opened_does_not_serve(bench: RecoveryBench, state: Path) -> None:
    layout.make(state)
    done = subprocess.run([sys.executable, "-c", _OPENED, str(state)], capture_output=True, text=True, timeout=READY_S_MAX, check=False)
    assert done.returncode == 0, done.stderr
