"""Orderly and unorderly ends of the agent, wrong sources, and two agents for one volume, against a real broker."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.errors import ProtocolError, RefusedError
from stream.topics import Topics, data_topics
from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import Kafka
from tests.tools import lacking

pytestmark = pytest.mark.kafka

SIZE = 16 * MIB


@pytest.fixture
def rig(tmp_path: Path, kafka: Kafka) -> Iterator[AgentRig]:
    with AgentRig(tmp_path / "rig", kafka.bootstrap) as rig:
        yield rig


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE // 2))
        file.truncate(SIZE)
    return path


@pytest.fixture
def volume(rig: AgentRig, source: Path, kafka: Kafka) -> str:
    name = kafka.fresh_volume_name("restart")
    rig.declare(name, source)
    rig.start()
    rig.wait_data(name)
    return name


def write_some(rig: AgentRig, volume: str, seed: int) -> None:
    dice = random.Random(seed)
    with rig.client(volume) as client:
        for _ in range(50):
            client.write(dice.randrange(0, SIZE - 65_536), dice.randbytes(dice.choice([512, 4096, 65_536])))


def stop_clean(rig: AgentRig) -> None:
    assert rig.stop() == {"capture": 0, "publisher": 0}
    for kind in ("capture", "publisher"):
        assert "Traceback" not in rig.log(kind), rig.log(kind)[-3000:]


def test_an_orderly_restart_copies_nothing(rig: AgentRig, volume: str) -> None:
    for seed in range(2):
        write_some(rig, volume, seed)
        before = rig.report("capture", volume)["resync_bytes"]
        stop_clean(rig)
        rig.start()
        facts = rig.wait_data(volume)
        assert facts["resync_bytes"] == before
    fold = rig.assert_equal(volume)
    assert fold.epochs == [1]
    assert len(fold.marks_of("sync_begin")) == 1


def test_a_reboot_after_an_orderly_stop_copies_nothing(rig: AgentRig, volume: str) -> None:
    write_some(rig, volume, 1)
    stop_clean(rig)
    shutil.rmtree(rig.ring)
    rig.start()
    facts = rig.wait_data(volume)
    assert facts["resync_bytes"] == 0
    fold = rig.assert_equal(volume)
    assert fold.epochs == [1, 2]
    assert fold.marks_of("epoch_start")[1]["clean"] == "true"


@pytest.mark.parametrize("reboot", [False, True])
def test_a_source_touched_while_stopped_is_copied_again(rig: AgentRig, volume: str, source: Path, reboot: bool) -> None:
    write_some(rig, volume, 1)
    stop_clean(rig)
    if reboot:
        shutil.rmtree(rig.ring)
    with source.open("r+b") as file:
        file.seek(MIB)
        file.write(b"somebody else was here")
    rig.start()
    rig.wait_data(volume)
    fold = rig.assert_equal(volume)
    if reboot:
        start = [(sequence, told) for kind, sequence, told in fold.marks if kind == "epoch_start"][1]
        assert start[1]["clean"] == "false"
        assert f"00000002-{start[0]:016d}" in fold.marks_of("sync_end")[-1]["closes"]
    else:
        gap = next(sequence for kind, sequence, _ in fold.marks if kind == "gap_begin")
        assert fold.marks_of("sync_end")[-1]["closes"] == f"00000001-{gap:016d}"


def test_a_lost_ring_begins_a_new_epoch_and_copies_everything(rig: AgentRig, volume: str) -> None:
    write_some(rig, volume, 1)
    rig.kill("capture", "publisher")
    shutil.rmtree(rig.ring)
    rig.start()
    facts = rig.wait_data(volume)
    assert facts["resync_bytes"] >= SIZE // 2
    fold = rig.assert_equal(volume)
    assert fold.epochs == [1, 2]
    assert fold.marks_of("epoch_start")[1]["clean"] == "false"


def test_a_lost_ring_under_a_living_publisher(rig: AgentRig, volume: str) -> None:
    write_some(rig, volume, 1)
    rig.kill("capture")
    (rig.ring / f"{volume}.ring").unlink()
    rig.start("capture")
    rig.wait_data(volume)
    write_some(rig, volume, 2)
    rig.wait_data(volume)
    assert rig.assert_equal(volume).epochs == [1, 2]


def test_pause_and_resume(rig: AgentRig, volume: str, source: Path) -> None:
    for seed in range(2):
        write_some(rig, volume, seed)
        rig.declare(volume, source, state="paused")
        until(lambda: rig.report("capture", volume) == {})
        rig.declare(volume, source, state="active")
        rig.wait_data(volume)
    write_some(rig, volume, 9)
    rig.wait_data(volume)
    assert rig.assert_equal(volume).epochs == [1]


def test_a_paused_source_may_change(rig: AgentRig, volume: str, source: Path) -> None:
    rig.declare(volume, source, state="paused")
    until(lambda: rig.report("capture", volume) == {})
    with source.open("r+b") as file:
        file.write(os.urandom(MIB))
    rig.declare(volume, source, state="active")
    rig.wait_data(volume)
    rig.assert_equal(volume)


def until(true, timeout_s: float = 90.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.05)


def test_a_requested_resync_closes_its_gap(rig: AgentRig, volume: str) -> None:
    gap = "00000001-0000000000000003"
    rig.ask(volume, "resync", reason="a test", gap=gap)
    rig.ask(volume, "resync", reason="another", gap="")
    rig.wait(volume, lambda capture, _: capture["resync_bytes"] >= SIZE)
    rig.wait_data(volume)
    fold = rig.assert_equal(volume)
    assert gap in fold.marks_of("sync_end")[-1]["closes"]
    sent = rig.report("capture", volume)["resync_bytes"]
    time.sleep(1.0)
    assert rig.report("capture", volume)["resync_bytes"] == sent


def test_a_second_agent_is_told_who_holds_the_source(rig: AgentRig, volume: str, source: Path, tmp_path: Path, kafka: Kafka) -> None:
    with AgentRig(tmp_path / "second", kafka.bootstrap) as second:
        name = kafka.fresh_volume_name("second")
        second.declare(name, source)
        second.start()
        until(lambda: "error" in second.report("capture", name))
        told = second.report("capture", name)
        assert f"is held by process {rig.pid('capture')}" in told["error"]
        assert told["serving"] is False
        with pytest.raises(RefusedError):
            second.client(name)
        rig.kill("capture")
        second.wait_data(name)


def test_a_second_capture_of_one_state_folder_is_refused(rig: AgentRig, volume: str) -> None:
    first = rig.processes.pop("capture")
    rig.start("capture")
    second = rig.processes["capture"]
    assert second.wait(20) != 0
    rig.processes["capture"] = first
    assert f"is held by process {first.pid}" in rig.log("capture")
    write_some(rig, volume, 1)


def test_an_agent_of_another_host_takes_over_and_the_older_stops(rig: AgentRig, volume: str, tmp_path: Path, kafka: Kafka) -> None:
    """Not what an operator should do, but what happens then: the newer epoch wins, the older agent learns it and stops."""
    copy = tmp_path / "copy"
    shutil.copy(rig.sources[volume], copy)
    with AgentRig(tmp_path / "second", kafka.bootstrap) as second:
        second.declare(volume, copy)
        second.start()
        second.wait_data(volume)
        until(lambda: "fenced" in str(rig.report("capture", volume).get("error")))
        assert rig.report("capture", volume)["mode"] == "OFFLINE"
        with pytest.raises(RefusedError):
            rig.client(volume)
        rig.kill("capture", "publisher")
        rig.start()  # it does not come back by itself
        write_some(second, volume, 3)
        second.wait_data(volume)
        assert second.assert_equal(volume).epochs == [1, 2]
        with pytest.raises(RefusedError):
            rig.client(volume)
        rig.declare(volume, rig.sources[volume])  # the operator's word: now it may
        rig.wait_data(volume)
        until(lambda: "fenced" in str(second.report("capture", volume).get("error")))
        assert rig.assert_equal(volume).epochs == [1, 2, 3]


def test_a_source_that_shrinks_goes_out_of_service(rig: AgentRig, volume: str, source: Path) -> None:
    with rig.client(volume) as client:
        client.write(0, b"x" * 4096)
        os.truncate(source, SIZE // 2)
        until(lambda: rig.report("capture", volume).get("mode") == "OFFLINE")
        with pytest.raises(OSError) as refused:
            client.write(0, b"y" * 4096)
        assert refused.value.errno == errno.EIO
        with pytest.raises(OSError):
            client.flush()
    assert "shrank" in rig.report("capture", volume)["error"]
    rig.assert_alive()


def test_a_removed_volume_leaves_no_memory(rig: AgentRig, volume: str, source: Path) -> None:
    rig.declare(volume, source, state="removed")
    until(lambda: not (rig.ring / f"{volume}.ring").exists())
    stop_clean(rig)
    assert not rig.ring.exists() or not list(rig.ring.glob("*.ring"))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        lacking(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_source_and_state_folder(rig: AgentRig, tiny: Path, kafka: Kafka) -> None:
    """A thin source on a full file system: the client gets ENOSPC, source and stream agree on what was written."""
    name = kafka.fresh_volume_name("enospc")
    source = tiny / "thin"
    with source.open("wb") as file:
        file.truncate(SIZE)
    (rig.state / "status").rmdir() if (rig.state / "status").exists() else None
    (tiny / "status").mkdir()
    (rig.state / "status").symlink_to(tiny / "status")
    rig.declare(name, source)
    rig.start()
    rig.wait_data(name)
    refused = 0
    with rig.client(name) as client:
        for number in range(14):
            try:
                client.write(number * MIB + 100, os.urandom(MIB))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                refused += 1
        assert refused > 4
        client.trim(0, 4 * MIB)
        client.write(8 * MIB, os.urandom(MIB))
    rig.wait_data(name)
    rig.assert_equal(name)
    rig.assert_alive()
    rig.kill("capture", "publisher")


def test_flush_policy_stream(rig: AgentRig, source: Path, kafka: Kafka) -> None:
    """The position of every write stands in Kafka before a flush after it is answered."""
    name = kafka.fresh_volume_name("stream")
    rig.declare(name, source, flush_policy="stream")
    rig.start()
    rig.wait_data(name)
    times = []
    with rig.client(name) as client, rig.client(name) as other:
        for number in range(30):
            payload = os.urandom(4096)
            other.write(number * 4096, payload)
            began_s = time.monotonic()
            if number % 2:
                client.flush()
            else:
                client.write(MIB + number * 4096, payload, fua=True)
            times.append(time.monotonic() - began_s)
            if number % 10 == 9:
                fold = rig.fold(name)
                assert fold.image[number * 4096 : (number + 1) * 4096] == payload
    assert sorted(times)[len(times) // 2] < 1.0


def test_many_connections_come_and_go(rig: AgentRig, volume: str) -> None:
    failures: list[BaseException] = []

    def visit(number: int) -> None:
        try:
            for turn in range(10):
                with rig.client(volume) as client:
                    client.write((number * 16 + turn) * 4096, bytes([number + 1]) * 4096)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    facts = rig.wait_data(volume)
    rig.assert_equal(volume)
    until(lambda: rig.report("capture", volume)["connections"] == 0)
    assert facts["buffer_used_bytes"] < 16 * MIB


@pytest.mark.parametrize("running", [True, False])
def test_a_topic_made_anew_begins_a_new_epoch(rig: AgentRig, volume: str, source: Path, running: bool) -> None:
    """Deleted and made again by somebody: what it held is lost, so a new epoch begins and everything is copied."""
    write_some(rig, volume, 1)
    rig.wait_data(volume)
    if not running:
        rig.kill("capture", "publisher")
    topics = Topics(rig.config.kafka)
    topics.delete([f"ho.{volume}.writes"])
    time.sleep(1)
    topics.ensure(data_topics(volume, rig.config.kafka))
    if not running:
        rig.start()
    for seed in range(60):
        if f"volume_serving volume={volume} position=00000002" in rig.log("capture"):
            break
        with contextlib.suppress(OSError, ProtocolError):
            write_some(rig, volume, seed)
        time.sleep(0.5)
    rig.wait_data(volume, 120)
    write_some(rig, volume, 99)
    rig.wait_data(volume)
    fold = rig.assert_equal(volume, begins_late=True)
    assert fold.epochs == [2]
    assert fold.marks_of("epoch_start")[-1]["first"] == "false"
