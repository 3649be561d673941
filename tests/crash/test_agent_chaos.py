"""Everything at once: two volumes under overlapping writes, and a random event after the other, for as long as wished.

The seed is printed; HOSTOFFLOAD_TEST_SEED repeats it, HOSTOFFLOAD_TEST_CHAOS_S says for how long.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from nbd.errors import ProtocolError
from tests.agent_rig import MIB, AgentRig
from tests.kafka_fixture import OwnBroker

pytestmark = pytest.mark.kafka

CHAOS_S = float(os.environ.get("HOSTOFFLOAD_TEST_CHAOS_S", "20"))
SEED = int(os.environ.get("HOSTOFFLOAD_TEST_SEED", "0")) or random.randrange(1, 1 << 32)
SIZE = 32 * MIB


class Writer:
    """Writes anywhere, overlapping all others, reconnecting as often as it must; an errno is a failure."""

    def __init__(self, rig: AgentRig, volume: str, seed: int) -> None:
        self._rig, self._volume, self._dice = rig, volume, random.Random(seed)
        self.count = 0
        self.failure: BaseException | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.over.is_set():
                with contextlib.suppress(ConnectionError, TimeoutError, ProtocolError), self._rig.client(self._volume) as client:
                    while not self.over.is_set():
                        self._one(client)
                self.over.wait(0.02)
        except BaseException as error:
            self.failure = error

    def _one(self, client) -> None:
        dice = self._dice
        length = dice.choice([512, 4096, 4096, 30_000, 65_536, 300_000, 2 * MIB])
        offset = dice.randrange(0, SIZE - length)
        kind = dice.random()
        if kind < 0.05:
            client.zero(offset, length, punch=dice.random() < 0.5)
        elif kind < 0.08:
            client.trim(offset, length)
        elif kind < 0.1:
            client.flush()
        else:
            client.write(offset, dice.randbytes(64) * (length // 64 + 1), fua=dice.random() < 0.02)
        self.count += 1
        if dice.random() < 0.3:
            time.sleep(dice.uniform(0, 0.01))


class Chaos:
    """The events; each leaves the system able to go on."""

    def __init__(self, rig: AgentRig, broker: OwnBroker, volumes: list[str], dice: random.Random) -> None:
        self.rig, self.broker, self.volumes, self.dice = rig, broker, volumes, dice
        self.events: list[str] = []

    def act(self) -> None:
        event = self.dice.choice(
            [self.kill, self.kill, self.kill, self.kill, self.freeze, self.pause, self.resync, self.restart, self.kill_frozen]
        )
        self.events.append(event.__name__)
        event()

    def kill(self) -> None:
        kinds = self.dice.choice([("capture",), ("publisher",), ("capture", "publisher")])
        self.rig.kill(*kinds)
        time.sleep(self.dice.choice([0, 0, 0.3]))
        self.rig.start(*kinds)

    def freeze(self) -> None:
        self.broker.freeze()
        time.sleep(self.dice.uniform(0.1, 2))
        self.broker.thaw()

    def kill_frozen(self) -> None:
        self.broker.freeze()
        time.sleep(self.dice.uniform(0.1, 1))
        self.kill()
        time.sleep(self.dice.uniform(0.1, 1))
        self.broker.thaw()

    def pause(self) -> None:
        volume = self.dice.choice(self.volumes)
        self.rig.declare(volume, self.rig.sources[volume], state="paused")
        time.sleep(self.dice.uniform(0.1, 2))
        self.rig.declare(volume, self.rig.sources[volume], state="active")

    def resync(self) -> None:
        self.rig.ask(self.dice.choice(self.volumes), "resync", reason="chaos")

    def restart(self) -> None:
        self.rig.stop("capture")
        self.rig.start("capture")


def test_chaos(tmp_path: Path, own_broker: OwnBroker) -> None:
    print(f"HOSTOFFLOAD_TEST_SEED={SEED}")
    dice = random.Random(SEED)
    with AgentRig(tmp_path / "rig", own_broker.bootstrap, HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX=str(96 * MIB)) as rig:
        volumes = [own_broker.fresh_volume_name("chaos") for _ in range(2)]
        for volume in volumes:
            source = tmp_path / volume
            source.write_bytes(os.urandom(4 * MIB))
            os.truncate(source, SIZE)
            rig.declare(volume, source)
        rig.start()
        for volume in volumes:
            rig.wait_data(volume)
        writers = [Writer(rig, volume, SEED + number) for number, volume in enumerate(volumes * 2)]
        chaos = Chaos(rig, own_broker, volumes, dice)
        end_s = time.monotonic() + CHAOS_S
        try:
            while time.monotonic() < end_s:
                time.sleep(dice.uniform(0, 1.5))
                chaos.act()
            marks_s = time.monotonic() + 90
            counts = [writer.count for writer in writers]
            while any(writer.count <= count and writer.failure is None for writer, count in zip(writers, counts, strict=True)):
                assert time.monotonic() < marks_s, f"a writer writes no more after {chaos.events}\n{rig.log('capture')[-3000:]}"
                time.sleep(0.1)
        finally:
            for writer in writers:
                writer.over.set()
            for writer in writers:
                writer.thread.join(90)
        for writer in writers:
            assert writer.failure is None, f"{writer.failure!r} after {chaos.events}"
        for volume in volumes:
            rig.wait_data(volume, 180)
            fold = rig.assert_equal(volume)
            assert fold.epochs == [1], chaos.events
            assert fold.marks_of("gap_begin") == [], chaos.events
        assert min(writer.count for writer in writers) > 0
        rig.assert_alive()
