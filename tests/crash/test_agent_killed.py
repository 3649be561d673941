"""SIGKILL of capture, publisher and broker under load: no acknowledged write is lost, no order is lost, nothing is copied again.

The writers retry by themselves: a write counts as acknowledged only when its reply came. At the end source and topic are compared byte for
byte, and every acknowledged write is looked for on the source.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from nbd.errors import ProtocolError
from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import Kafka, OwnBroker

pytestmark = pytest.mark.kafka

KILLS = int(os.environ.get("HOSTOFFLOAD_TEST_KILLS", "20"))
SIZE = 64 * MIB
BLOCK = 4096


@pytest.fixture
def rig(tmp_path: Path, kafka: Kafka) -> Iterator[AgentRig]:
    with AgentRig(tmp_path / "rig", kafka.bootstrap) as rig:
        yield rig


def make_source(path: Path, filled_bytes: int = 4 * MIB) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(filled_bytes))
        file.truncate(SIZE)
    return path


class Writer:
    """Writes blocks of its own region, each with a count in it, reconnecting as often as it must."""

    def __init__(self, rig: AgentRig, volume: str, number: int, writers: int) -> None:
        self._rig, self._volume, self._number = rig, volume, number
        self._blocks = range(number, SIZE // BLOCK // 4, writers)
        self._dice = random.Random(number)
        self.acknowledged: dict[int, bytes] = {}
        self.asked: dict[int, set[bytes]] = {}
        self.count = 0
        self.reconnects = 0
        self.failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{number}")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "a writer hangs"
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                with contextlib.suppress(ConnectionError, TimeoutError, ProtocolError), self._connect() as client:
                    self._write(client)
                self.reconnects += 1
        except BaseException as error:
            self.failure = error

    def _connect(self) -> Client:
        return self._rig.client(self._volume, timeout_s=60)

    def _write(self, client: Client) -> None:
        while not self._over.is_set():
            blocks = self._dice.choice([1, 1, 1, 4, 16])
            first = self._dice.randrange(len(self._blocks) - blocks)
            for block in self._blocks[first : first + blocks]:
                self.count += 1
                payload = self._dice.randbytes(32) + b"%016d" % self.count
                payload = payload * (BLOCK // len(payload)) + bytes(BLOCK % len(payload))
                self.asked.setdefault(block, set()).add(payload)
                client.write(block * BLOCK, payload, fua=self._dice.random() < 0.01)
                self.acknowledged[block] = payload
                self.asked[block] = {payload}
            if self._dice.random() < 0.02:
                client.flush()


@contextlib.contextmanager
def load(rig: AgentRig, volume: str, writers: int = 3) -> Iterator[list[Writer]]:
    running = [Writer(rig, volume, number, writers) for number in range(writers)]
    try:
        yield running
    finally:
        for writer in running:
            writer._over.set()
        for writer in running:
            writer.stop()


def check_source(rig: AgentRig, volume: str, writers: list[Writer]) -> None:
    """Assert that the source has, in every block, the last write acknowledged there or one asked for after it."""
    source = rig.sources[volume].read_bytes()
    for writer in writers:
        for block in writer.asked:
            found = source[block * BLOCK : (block + 1) * BLOCK]
            if found != writer.acknowledged.get(block):
                assert found in writer.asked[block] or block not in writer.acknowledged, f"block {block} lost an acknowledged write"


@pytest.fixture
def volume(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> str:
    name = kafka.fresh_volume_name("crash")
    rig.declare(name, make_source(tmp_path / "source"))
    rig.start()
    rig.wait_data(name)
    return name


@pytest.mark.parametrize("killed", [("capture",), ("publisher",), ("capture", "publisher")], ids=["capture", "publisher", "both"])
def test_killed_under_load(rig: AgentRig, volume: str, killed: tuple[str, ...]) -> None:
    dice = random.Random(5)
    copied = rig.report("capture", volume)["resync_bytes"]
    with load(rig, volume) as writers:
        for _ in range(KILLS):
            before = sum(writer.count for writer in writers)
            time.sleep(dice.uniform(0.0, 0.6))
            rig.kill(*killed)
            rig.start(*killed)
            end_s = time.monotonic() + 60
            while sum(writer.count for writer in writers) < before + 20:
                assert time.monotonic() < end_s, f"nothing is written any more\n{rig.log('capture')[-2000:]}"
                time.sleep(0.01)
    facts = rig.wait_data(volume, 120)
    fold = rig.assert_equal(volume)
    check_source(rig, volume, writers)
    assert fold.epochs == [1]
    assert fold.marks_of("gap_begin") == []
    assert len(fold.marks_of("sync_begin")) == 1, "the whole volume was copied again"
    assert facts["resync_bytes"] - copied <= KILLS * 4 * MIB
    assert sum(writer.count for writer in writers) > KILLS * 20
    assert rig.report("publisher", volume)["backlog_bytes"] == 0
    rig.assert_alive()


def test_capture_killed_in_the_first_copy(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> None:
    """It goes on where it was: what was sent together is little more than the volume."""
    name = kafka.fresh_volume_name("crash")
    rig.environment["HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX"] = str(16 * MIB)
    rig.declare(name, make_source(tmp_path / "source", SIZE))
    rig.start()
    rig.wait_serving(name)
    for _ in range(4):
        sent = rig.report("capture", name).get("resync_bytes", 0)
        rig.wait(name, lambda capture, _, sent=sent: capture["resync_bytes"] > sent + 2 * MIB)
        rig.kill("capture")
        rig.start("capture")
    facts = rig.wait_data(name, 120)
    assert facts["resync_bytes"] < 1.6 * SIZE
    fold = rig.assert_equal(name)
    assert fold.epochs == [1]
    assert fold.marks_of("sync_end")[-1]["closes"].startswith("00000001-")


def test_killed_before_anything_is_claimed(rig: AgentRig, tmp_path: Path, kafka: Kafka) -> None:
    """Capture comes and goes while there is no publisher: the copy must not be forgotten."""
    name = kafka.fresh_volume_name("crash")
    source = make_source(tmp_path / "source")
    rig.declare(name, source)
    rig.start("publisher")
    end_s = time.monotonic() + 30
    while name not in (rig.state / "agent" / "volumes.json").read_text() if (rig.state / "agent" / "volumes.json").exists() else True:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    rig.kill("publisher")
    for _ in range(2):
        rig.start("capture")
        while not (rig.ring / f"{name}.ring").exists():
            time.sleep(0.01)
        rig.kill("capture")
    rig.start()
    rig.wait_data(name)
    rig.assert_equal(name)


@pytest.fixture
def frail(tmp_path: Path, own_broker: OwnBroker) -> Iterator[tuple[AgentRig, str, OwnBroker]]:
    """A volume on a broker of its own, in DATA."""
    with AgentRig(tmp_path / "rig", own_broker.bootstrap) as rig:
        name = own_broker.fresh_volume_name("crash")
        rig.declare(name, make_source(tmp_path / "source"))
        rig.start()
        rig.wait_data(name)
        yield rig, name, own_broker
        rig.assert_alive()


def test_broker_frozen(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    with load(rig, volume) as writers:
        for _ in range(2):
            time.sleep(1)
            broker.freeze()
            before = sum(writer.count for writer in writers)
            time.sleep(5)
            assert sum(writer.count for writer in writers) > before, "a local write waited for Kafka"
            broker.thaw()
    rig.wait_data(volume, 120)
    fold = rig.assert_equal(volume)
    check_source(rig, volume, writers)
    assert fold.epochs == [1]
    assert fold.marks_of("gap_begin") == []


def test_broker_killed(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    with load(rig, volume) as writers:
        time.sleep(1)
        broker.kill()
        time.sleep(2)
        broker.start()
        rig.wait(volume, lambda _, publisher: publisher["rpo_stream_ms"] < 2000, 120)
    rig.wait_data(volume, 120)
    fold = rig.assert_equal(volume)
    check_source(rig, volume, writers)
    assert fold.epochs == [1]
    assert fold.marks_of("gap_begin") == []


def test_publisher_killed_while_the_broker_is_away(frail: tuple[AgentRig, str, OwnBroker]) -> None:
    rig, volume, broker = frail
    with load(rig, volume, writers=2) as writers:
        broker.freeze()
        time.sleep(1)
        rig.kill("publisher")
        rig.start("publisher")
        time.sleep(1)
        broker.thaw()
        rig.kill("publisher")
        rig.start("publisher")
        rig.wait(volume, lambda _, publisher: publisher["rpo_stream_ms"] < 2000, 120)
    rig.wait_data(volume, 120)
    fold = rig.assert_equal(volume)
    check_source(rig, volume, writers)
    assert fold.epochs == [1]
