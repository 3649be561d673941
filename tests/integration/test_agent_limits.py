"""What the agent uses, and what it does at its limits: memory, a full buffer, a broker that is away."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import OwnBroker

pytestmark = pytest.mark.kafka

BUFFER = 96 * MIB
SIZE = 128 * MIB


@pytest.fixture
def frail(tmp_path: Path, own_broker: OwnBroker) -> Iterator[tuple[AgentRig, str, OwnBroker]]:
    """A volume behind a small buffer, on a broker of its own, in DATA."""
    with AgentRig(tmp_path / "rig", own_broker.bootstrap, HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX=str(BUFFER)) as rig:
        name = own_broker.fresh_volume_name("limit")
        source = tmp_path / "source"
        with source.open("wb") as file:
            file.truncate(SIZE)
        rig.declare(name, source, flush_policy="stream")
        rig.start()
        rig.wait_data(name)
        yield rig, name, own_broker
        rig.assert_alive()


def memory_bytes(rig: AgentRig) -> dict[str, int]:
    """Return what of each process is resident without the shared memory, and the shared memory once."""
    told = {}
    for kind in rig.processes:
        status = Path(f"/proc/{rig.pid(kind)}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        told[kind] = sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    told["shared"] = sum(path.stat().st_blocks * 512 for path in rig.ring.iterdir() if path.is_file())
    return told


@pytest.mark.slow
def test_memory_is_bounded(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    """2 GiB through a buffer of 96 MiB: everything together stays under the buffer and 128 MiB."""
    rig, volume, _ = frail
    dice, most = random.Random(1), {}
    over = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        payload = dice.randbytes(MIB)
        try:
            with rig.client(volume) as client:
                for turn in range(512):
                    client.write((number * 32 + turn % 31) * MIB, payload)
        except BaseException as error:
            failures.append(error)

    def look() -> None:
        while not over.wait(0.05):
            now = memory_bytes(rig)
            if sum(now.values()) > sum(most.values()):
                most.clear()
                most.update(now)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    looker = threading.Thread(target=look)
    looker.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    over.set()
    looker.join()
    assert not failures
    rig.wait_data(volume, 180)
    told = ", ".join(f"{name} {size / MIB:.0f}" for name, size in most.items())
    print(f"most memory at once, MiB: {told}, together {sum(most.values()) / MIB:.0f} of {(BUFFER + 128 * MIB) / MIB:.0f}")
    assert sum(most.values()) < BUFFER + 128 * MIB, told


@pytest.mark.slow
def test_a_full_buffer_waits_for_the_broker(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    failures: list[BaseException] = []
    done: list[int] = []

    def write(number: int) -> None:
        payload = random.Random(number).randbytes(MIB) * 32
        try:
            with rig.client(volume, timeout_s=180) as client:
                for turn in range(3):
                    client.write(number * 8 * MIB + turn * 4096, payload)
                    done.append(number)
        except BaseException as error:
            failures.append(error)

    broker.freeze()
    with rig.client(volume) as client:
        client.write(SIZE - 32 * MIB, os.urandom(32 * MIB))
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    time.sleep(4)
    assert not failures
    assert len(done) <= 2, "more than the buffer was taken"
    assert rig.report("capture", volume)["mode"] == "DATA"
    broker.thaw()
    for writer in writers:
        writer.join(180)
        assert not writer.is_alive(), "a write waits for ever"
    assert not failures
    assert len(done) == 12
    rig.wait_data(volume, 120)
    rig.assert_equal(volume)


@pytest.mark.slow
def test_a_flush_waits_for_kafka_and_writes_go_on(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    answered = threading.Event()
    with rig.client(volume) as flushing, rig.client(volume) as writing:
        flushing.write(0, b"covered" * 100)
        flushing.flush()
        broker.freeze()
        flushing.write(4096, b"covered too" * 100)

        def flush() -> None:
            flushing.flush()
            answered.set()

        waiter = threading.Thread(target=flush)
        waiter.start()
        for number in range(50):
            writing.write(MIB + number * 4096, b"goes on" * 100)
        assert not answered.wait(2), "a flush was answered that Kafka does not have"
        broker.thaw()
        assert answered.wait(60)
        waiter.join()
        assert rig.fold(volume).image[4096 : 4096 + 11] == b"covered too"
    rig.wait_data(volume, 60)
    rig.assert_equal(volume)


@pytest.mark.slow
def test_fua_waits_for_kafka(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    answered = threading.Event()
    with rig.client(volume) as client:
        broker.freeze()

        def write() -> None:
            client.write(0, b"x" * (2 * MIB), fua=True)
            answered.set()

        waiter = threading.Thread(target=write)
        waiter.start()
        assert not answered.wait(2)
        broker.thaw()
        assert answered.wait(60)
        waiter.join()


@pytest.mark.slow
def test_a_flush_that_waits_does_not_hold_up_a_stop(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    client = rig.client(volume)
    broker.freeze()
    client.write(0, b"x" * 4096)
    waiter = threading.Thread(target=_suppressed, args=(client.flush,))
    waiter.start()
    time.sleep(0.5)
    began_s = time.monotonic()
    assert rig.stop("capture") == {"capture": 0}
    assert time.monotonic() - began_s < 25
    waiter.join(20)
    broker.thaw()
    rig.start("capture")
    rig.wait_data(volume, 60)
    rig.assert_equal(volume)


def _suppressed(call) -> None:
    try:
        call()
    except (OSError, ConnectionError):
        return
