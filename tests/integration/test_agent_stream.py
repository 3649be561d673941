"""The agent against a real broker: what its topic says is what the source has."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import Kafka

pytestmark = pytest.mark.kafka


@pytest.fixture
def rig(tmp_path: Path, kafka: Kafka) -> Iterator[AgentRig]:
    with AgentRig(tmp_path / "rig", kafka.bootstrap) as rig:
        yield rig
        rig.assert_alive()


def make_source(path: Path, size_bytes: int, filled_bytes: int = 0) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at in range(0, filled_bytes, MIB):
            file.seek(at)
            file.write(os.urandom(min(MIB, filled_bytes - at)))
    return path


@pytest.fixture
def volume(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> str:
    """A volume of 64 MiB, the first copy of its 8 MiB of content done."""
    name = kafka.fresh_volume_name("agent")
    rig.declare(name, make_source(tmp_path / "source", 64 * MIB, 8 * MIB))
    rig.start()
    rig.wait_data(name)
    return name


def test_the_first_copy_is_the_source(rig: AgentRig, volume: str) -> None:
    fold = rig.assert_equal(volume)
    assert fold.epochs == [1]
    start, begin, end = fold.marks[0], fold.marks[1], next(mark for mark in fold.marks if mark[0] == "sync_end")
    assert start[0] == "epoch_start"
    assert start[2]["first"] == "true"
    assert start[2]["clean"] == "false"
    assert begin[0] == "sync_begin"
    assert end[2]["closes"] == f"{1:08d}-{start[1]:016d}"


def test_what_real_clients_write_is_in_the_stream(rig: AgentRig, volume: str) -> None:
    commands = ["-c", "write -P 5 0 512", "-c", "write -P 7 1M 32M", "-c", "write -z 3M 64k", "-c", "discard 5M 1M", "-c", "flush"]
    subprocess.run(["qemu-io", "-f", "raw", *commands, rig.uri(volume)], check=True, stdout=subprocess.DEVNULL)
    fio = ["fio", "--name=x", "--ioengine=nbd", f"--uri={rig.uri(volume)}", "--rw=randwrite", "--bsrange=512-256k", "--iodepth=16"]
    fio += ["--size=64M", "--io_size=96M", "--bs_unaligned=0", "--output=/dev/null", "--randseed=7"]
    subprocess.run(fio, check=True)
    rig.wait_data(volume)
    rig.assert_equal(volume)
    assert rig.report("capture", volume)["captured_bytes"] >= 96 * MIB + 32 * MIB
    assert rig.report("publisher", volume)["backlog_bytes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("connections", [2, 4])
def test_overlapping_writes_have_one_order(rig: AgentRig, volume: str, connections: int) -> None:
    until_s = time.monotonic() + 3
    failures: list[BaseException] = []
    counts = [0] * connections

    def hammer(number: int) -> None:
        dice = random.Random(number)
        try:
            with rig.client(volume) as client:
                while time.monotonic() < until_s:
                    length = dice.choice([512, 4096, 4096, 20_000, 65_536, 300_000, 1 * MIB])
                    offset = dice.randrange(0, 4 * MIB)
                    if dice.random() < 0.05:
                        client.zero(offset, length, punch=dice.random() < 0.5)
                    elif dice.random() < 0.02:
                        client.flush()
                    else:
                        client.write(offset, dice.randbytes(16) * (length // 16 + 1), fua=dice.random() < 0.02)
                    counts[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    rig.wait_data(volume)
    fold = rig.assert_equal(volume)
    assert fold.duplicates == 0
    assert min(counts) > 50


@pytest.mark.slow
def test_writes_while_the_first_copy_runs(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> None:
    name = kafka.fresh_volume_name("agent")
    rig.declare(name, make_source(tmp_path / "source", 64 * MIB, 48 * MIB))
    rig.environment["HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX"] = str(12 * MIB)
    rig.start()
    rig.wait_serving(name)
    dice, count = random.Random(3), 0
    with rig.client(name) as one, rig.client(name) as two:
        while rig.report("capture", name).get("mode") != "DATA":
            for client in (one, two):
                client.write(dice.randrange(0, 63 * MIB), dice.randbytes(4096) * dice.choice([1, 1, 16, 128]))
                count += 1
    rig.wait_data(name)
    rig.assert_equal(name)
    assert count > 50


def test_unaligned_writes_of_every_size(rig: AgentRig, volume: str) -> None:
    dice = random.Random(11)
    with rig.client(volume) as client:
        for length in [1, 2, 511, 513, 4097, 32_767, 32_768, 65_535, 262_115, 262_116, 262_117, 262_144, 262_145, 1_000_003, 32 * MIB]:
            client.write(dice.randrange(0, 64 * MIB - length + 1), dice.randbytes(length))
    rig.wait_data(volume)
    rig.assert_equal(volume)
