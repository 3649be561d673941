"""The host dies: all of the agent is gone at once, and its memory with it. What may differ is what the activity log names, nothing else.

The agent's processes and their supervisor are killed while clients write, and the ring's folder is removed. Kafka, CX and target are
other machines and live on. How much may be compared is taken from the activity log's bytes as docs/activity_log.md has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from nbd.errors import ProtocolError
from tests.e2e.system import System, make_source, running, wait_until
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

VOLUME_BYTES = int(os.environ.get("TEST_VOLUME_GIB", "1")) << 30
WRITTEN_BYTES = VOLUME_BYTES // 10 & -(1 << 20)
COMPARED_SHARE_MAX = 0.15
SENT_SHARE_MAX = 0.01
REGION_BYTES = 1 << 20
BLOCK = 4096
UNSENT_WRITES = 24
COMPARE_WAIT_S = 4.0
QUIET_S_MAX = 120
MAP_AT, SECTOR_BYTES, SECTOR_BITS_BYTES = 12288, 512, 504


class RandomWriter:
    """A client that writes blocks at random places of the first `WRITTEN_BYTES`, until the agent dies."""

    def __init__(self, uri: str) -> None:
        self.count = 0
        self.last_offset = 0
        self._uri = uri
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "a write was never answered"

    def _run(self) -> None:
        dice = random.Random(4)
        with contextlib.suppress(OSError, ProtocolError), Client(self._uri) as client:
            while True:
                offset = dice.randrange(WRITTEN_BYTES // BLOCK) * BLOCK
                client.write(offset, dice.randbytes(BLOCK))
                self.last_offset = offset
                self.count += 1
                time.sleep(0.005)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    need("fio", "java")
    with running(tmp_path / "death") as one:
        yield one


def test_only_the_regions_of_the_activity_log_are_compared(system: System) -> None:
    """And of those only what differs is sent: what Kafka never got, and what the source lost although Kafka had it."""
    source = make_source(system.folder / "host.img", VOLUME_BYTES)
    regions, rolled_back = _write_and_die(system, source)
    with open(source, "r+b") as file:  # a power cut: unflushed bytes that the replica has are gone from the source
        file.seek(rolled_back)
        file.write(b"as before" * 455 + b"!")
    system.up()
    began_s = time.monotonic()
    system.check_equal("host", source, captured=False)
    facts = _facts(system, "capture")
    print(
        f"{regions} regions of {VOLUME_BYTES >> 20} MiB: {facts['compared_bytes'] >> 20} MiB compared, {facts['resync_bytes'] >> 10} KiB "
        f"sent, in sync after {time.monotonic() - began_s:.1f} s"
    )
    assert 0 < facts["compared_bytes"] <= regions * REGION_BYTES <= COMPARED_SHARE_MAX * VOLUME_BYTES
    assert facts["compared_bytes"] >= WRITTEN_BYTES // 2, "what was written was not compared"
    assert UNSENT_WRITES * BLOCK <= facts["resync_bytes"] < SENT_SHARE_MAX * VOLUME_BYTES
    assert system.status("host")["gaps"] == 1


def test_the_regions_are_sent_whole_if_no_target_answers(system: System) -> None:
    """After `agent.compare_wait_s`; the agent is in DATA before the target comes back."""
    system.environment["HOSTOFFLOAD_AGENT_COMPARE_WAIT_S"] = str(COMPARE_WAIT_S)
    source = make_source(system.folder / "host.img", VOLUME_BYTES)
    (target,) = system.processes("target")
    regions, _ = _write_and_die(system, source, frozen=target["pid"])
    try:
        system.up()
        wait_until(lambda: _facts(system, "capture").get("serving"), "the volume is served")
        began_s = time.monotonic()
        wait_until(lambda: system.status("host")["mode"] == "DATA", "order is kept again", 120)
        took_s = time.monotonic() - began_s
        facts = _facts(system, "capture")
    finally:
        os.kill(target["pid"], signal.SIGCONT)
    print(f"{regions} regions: {facts['resync_bytes'] >> 20} MiB sent whole, DATA {took_s:.1f} s after the start")
    assert took_s > COMPARE_WAIT_S - 1
    assert facts["compared_bytes"] == 0
    assert 0.95 * WRITTEN_BYTES <= facts["resync_bytes"] <= regions * REGION_BYTES <= COMPARED_SHARE_MAX * VOLUME_BYTES
    system.check_equal("host", source, captured=False)


def _write_and_die(system: System, source: Path, *, frozen: int | None = None) -> tuple[int, int]:
    """Fill, write at random and kill the agent, some writes being in its memory alone.

    Returns how many regions the activity log names, and an offset that was written. `frozen`: a process to stop before the death.
    """
    uri = system.add("host", source)
    system.wait_in_sync("host")
    wait_until(lambda: _regions(system, VOLUME_BYTES) == 0, "the first copy has left the activity log", QUIET_S_MAX)
    _fill(uri)
    system.wait_in_sync("host")
    writer = RandomWriter(uri)
    wait_until(lambda: writer.count >= 100, "it writes")
    if frozen is not None:
        os.kill(frozen, signal.SIGSTOP)
    pids = {kind: system.processes(kind)[0]["pid"] for kind in ("supervisor", "publisher", "capture")}
    ring = Path(system.status("host")["ring"])
    os.kill(pids["publisher"], signal.SIGSTOP)
    unsent = writer.count + UNSENT_WRITES
    wait_until(lambda: writer.count > unsent, "some writes are nowhere but here")
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    writer.join()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), "they are gone")
    shutil.rmtree(ring.parent)
    return _regions(system, VOLUME_BYTES), writer.last_offset


def _fill(uri: str) -> None:
    """Write every block of the first `WRITTEN_BYTES` once, in random order."""
    command = ["fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=64k", "--iodepth=8"]
    subprocess.run([*command, f"--size={WRITTEN_BYTES}", "--refill_buffers"], check=True, capture_output=True, timeout=300)


def _regions(system: System, size_bytes: int) -> int:
    """Count the regions that the activity log names."""
    raw = (system.state / "agent" / "host.activity").read_bytes()[MAP_AT:]
    bits = b"".join(raw[at : at + SECTOR_BITS_BYTES] for at in range(0, len(raw), SECTOR_BYTES))
    return (int.from_bytes(bits, "little") & ((1 << -(-size_bytes // REGION_BYTES)) - 1)).bit_count()


def _facts(system: System, kind: str) -> dict:
    """Return what the process of that kind reports of the volume."""
    for path in (system.state / "status").glob(f"{kind}-*.json"):
        return json.loads(path.read_text()).get("volumes", {}).get("host", {})
    return {}
