"""The promises of the pipeline as a whole: order over connections, the first copy, memory, workers that share volumes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import System, first_difference, make_source, running, wait_until
from tests.tools import need

pytestmark = pytest.mark.slow
OVERLAP_S = float(os.environ.get("TEST_OVERLAP_S", "20"))  # a minute shows no more, and takes three
OVERLAP_BYTES = 4 << 20


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("pipeline")) as one:
        yield one


def _overlapping_writer(uri: str, seed: int, ends_s: float, failed: list[BaseException]) -> None:
    rng = random.Random(seed)
    try:
        with Client(uri) as client:
            while time.monotonic() < ends_s:
                batch = []
                for _ in range(16):
                    length = rng.randrange(1, 200_000)
                    offset = rng.randrange(OVERLAP_BYTES - length)
                    batch.append((offset, rng.randbytes(1) * length))
                client.write_all(batch)
                choice = rng.randrange(8)
                if choice == 0:
                    client.zero(rng.randrange(OVERLAP_BYTES - 65536), 65536)
                elif choice == 1:
                    client.trim(rng.randrange(OVERLAP_BYTES - 65536), 65536)
                elif choice == 2:
                    client.flush()
    except BaseException as error:  # told by the test
        failed.append(error)


@pytest.mark.parametrize("connections", [2, 4])
def test_connections_that_write_overlapping_extents_have_one_order(system: System, connections: int) -> None:
    name = f"overlap{connections}"
    source = make_source(system.folder / f"{name}.img", 64 << 20)
    uri = system.add(name, source)
    failed: list[BaseException] = []
    ends_s = time.monotonic() + OVERLAP_S
    writers = [threading.Thread(target=_overlapping_writer, args=(uri, seed, ends_s, failed)) for seed in range(connections)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed, failed
    system.check_equal(name, source)


def test_the_first_copy_sends_what_is_in_use(system: System) -> None:
    used = 100 << 20
    source = make_source(system.folder / "sparse.img", 1 << 30, used_bytes=used)
    system.add("sparse", source)
    system.check_equal("sparse", source, captured=False)
    sent = system.status("sparse")["resync_bytes"]
    assert used <= sent <= used * 1.1, f"{sent >> 20} MiB sent for {used >> 20} MiB in use"


def test_writing_while_the_first_copy_runs(system: System) -> None:
    source = make_source(system.folder / "busy.img", 512 << 20, used_bytes=300 << 20)
    uri = system.add("busy", source)
    rng = random.Random(3)
    with Client(uri) as client:
        mode = "SYNC"
        while mode == "SYNC":
            client.write_all([(rng.randrange((512 << 20) - 65536) & ~511, rng.randbytes(16384)) for _ in range(64)])
            mode = system.status("busy")["mode"]
    status = system.check_equal("busy", source)
    assert status["gaps"] == 0


def test_a_first_copy_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    used = 128 << 20
    source = make_source(tmp_path / "killed.img", used, used_bytes=used)
    with running(tmp_path / "system", environment={"HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX": str(6 << 20)}) as system:
        uri = system.add("killed", source)
        with Client(uri) as client:
            client.write_all([(offset, b"x" * 4096) for offset in range(0, 64 << 20, 1 << 20)])
        for percent, kind in ((5, "capture"), (25, "publisher"), (45, "capture")):
            wait_until(lambda: (system.status("killed")["sync_percent"] or 0) > percent, f"{percent} % are copied")  # noqa: B023
            os.kill(system.processes(kind)[0]["pid"], signal.SIGKILL)
            wait_until(lambda: system.status("killed")["mode"] == "SYNC", "the agent is back", 30)
            assert system.status("killed")["mode"] == "SYNC", "the first copy was over before it could be killed"
        status = system.check_equal("killed", source)
        assert status["resync_bytes"] <= used * 1.1, "the first copy began anew instead of going on"
        assert status["gaps"] == 0


def test_every_message_decodes_with_plain_avro(system: System) -> None:
    """Runs a program that imports nothing of ours."""
    source = make_source(system.folder / "plain.img", 32 << 20, used_bytes=8 << 20)
    uri = system.add("plain", source)
    with Client(uri) as client:
        client.write_all([(offset, os.urandom(5000)) for offset in range(0, 16 << 20, 1 << 19)])
        client.zero(1 << 20, 1 << 20)
        client.flush()
    system.check_equal("plain", source)
    bootstrap = __import__("json").loads(system.run("status", "--json"))["broker"]["bootstrap"]
    program = Path(__file__).with_name("plain_reader.py")
    schemas = Path(__file__).parents[2] / "schemas"
    done = subprocess.run(
        [sys.executable, "-P", "-I", str(program), bootstrap, "plain", str(schemas), str(source)],
        capture_output=True, text=True, timeout=120, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal" in done.stdout


def test_memory_stays_bounded_while_two_gib_are_written(system: System) -> None:
    need("fio")
    source = make_source(system.folder / "memory.img", 1 << 30)
    uri = system.add("memory", source)
    system.wait_in_sync("memory")
    limit = system.status("memory")["buffer_bytes_max"] + (128 << 20)
    pids = [system.processes(kind)[0]["pid"] for kind in ("capture", "publisher")]
    fio = subprocess.Popen(
        ["fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=64k", "--iodepth=32", "--size=1G", "--io_size=2G"],
        stdout=subprocess.DEVNULL,
    )
    most = 0
    while fio.poll() is None:
        most = max(most, sum(_rss_shared_once(pids)))
        time.sleep(0.1)
    assert fio.returncode == 0
    assert 0 < most < limit, f"{most >> 20} MiB of {limit >> 20}"
    system.check_equal("memory", source)


def _rss_shared_once(pids: list[int]) -> Iterator[int]:
    """Yield what each process holds alone, and the largest part that they share."""
    shared = []
    for pid in pids:
        facts = {}
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("RssAnon", "RssFile", "RssShmem"):
                facts[key] = int(value.split()[0]) << 10
        shared.append(facts["RssShmem"])
        yield facts["RssAnon"] + facts["RssFile"]
    yield max(shared)


def test_two_workers_share_volumes_and_take_over(system: System) -> None:
    names = [f"shared{number}" for number in range(4)]
    sources = [make_source(system.folder / f"{name}.img", 64 << 20, used_bytes=4 << 20) for name in names]
    uris = [system.add(name, source) for name, source in zip(names, sources, strict=True)]
    for name in names:
        system.wait_in_sync(name)
    second = subprocess.Popen(
        [sys.executable, "-m", "hostoffload", "--state", str(system.state), "cx", "run", "--worker", "second"],
        stderr=subprocess.DEVNULL,
    )
    stop = threading.Event()
    failed: list[BaseException] = []

    def write(uri: str) -> None:
        try:
            with Client(uri) as client:
                while not stop.is_set():
                    client.write_all([(offset << 20, os.urandom(4096)) for offset in range(32)])
                    time.sleep(0.05)
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(uri,)) for uri in uris]
    for writer in writers:
        writer.start()
    try:
        wait_until(lambda: len(_volumes_of(system, "second") & set(names)) >= 1, "the second worker has volumes", 60)
        theirs = _volumes_of(system, "second") & set(names)
        assert theirs != set(names), "the first worker has none left"
        time.sleep(2)
        second.terminate()
        second.wait(30)
        began_s = time.monotonic()
        before = {name: system.status(name)["position"]["captured"] for name in theirs}
        for name in theirs:
            wait_until(lambda name=name: (system.status(name)["position"]["applied"] or "") > before[name], f"{name} goes on", 15)
        assert time.monotonic() - began_s < 15
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        if second.poll() is None:
            second.kill()
    assert not failed, failed
    for name, source in zip(names, sources, strict=True):
        system.check_equal(name, source)


def _volumes_of(system: System, worker: str) -> set[str]:
    import json

    path = system.state / "status" / f"cx-{worker}.json"
    return set(json.loads(path.read_text())["volumes"]) if path.exists() else set()


def test_down_and_up_again_goes_on_without_a_copy(tmp_path: Path) -> None:
    with running(tmp_path / "again") as system:
        source = make_source(system.folder / "again.img", 64 << 20, used_bytes=16 << 20)
        uri = system.add("again", source)
        with Client(uri) as client:
            client.write_all([(offset, os.urandom(4096)) for offset in range(0, 8 << 20, 65536)])
        system.check_equal("again", source)
        sent = system.status("again")["resync_bytes"]
        system.down()
        assert first_difference(source, system.replica(source)) is None
        system.up()
        wait_until(lambda: system.status("again")["mode"] == "DATA", "it goes on", 60)
        with Client(system.status("again")["uri"]) as client:
            client.write_all([(offset, os.urandom(4096)) for offset in range(0, 8 << 20, 65536)])
        status = system.check_equal("again", source)
        assert status["resync_bytes"] in (0, sent), "something was copied again"  # a clean stop leaves no ring, which counts anew
        assert status["gaps"] == 0
