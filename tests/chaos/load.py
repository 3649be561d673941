"""The application: fio, writers that overlap each other, long writes at the moment of a kill, and a ledger of what was acknowledged.

All of them survive whatever happens to the product: they connect again and ask again. An errno is a failure, only a server that shuts down
may say so. A volume's last `LEDGER_BYTES` belong to its ledger; everybody else writes anywhere before them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from nbd.client import Client
from nbd.errors import ProtocolError

BLOCK = 4096
LEDGER_BYTES = 8 << 20
OVERLAP_BYTES = 8 << 20
SALVO_BYTES = 16 << 20
FIO_BYTES_PER_S = 2 << 20
BROKEN = (ConnectionError, TimeoutError, ProtocolError)  # ESHUTDOWN is a ConnectionError too
CLIENT_S_MAX = 90.0
RETRIES = 600


@dataclass(frozen=True, slots=True)
class Exported:
    """A volume as its clients see it."""

    name: str
    uri: str
    source: Path
    replica: Path
    size_bytes: int

    @property
    def ledger_at(self) -> int:
        return self.size_bytes - LEDGER_BYTES


class Writer:
    """A client on a thread of its own that connects again as often as it must; `count` is what was acknowledged."""

    def __init__(self, volume: Exported, seed: object) -> None:
        self.volume = volume
        self.dice = random.Random(f"{seed}")
        self.count = 0
        self.reconnects = -1
        self.failure: BaseException | None = None
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{type(self).__name__}-{volume.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.over.set()
        self._thread.join(CLIENT_S_MAX)
        if self._thread.is_alive():
            self.failure = self.failure or TimeoutError(f"{self._thread.name} hangs")

    def write(self, client: Client) -> None:
        """Write something once and count it."""
        raise AssertionError("each kind of writer has its own")

    def _run(self) -> None:
        try:
            while not self.over.is_set():
                with contextlib.suppress(*BROKEN, FileNotFoundError), Client(self.volume.uri, timeout_s=CLIENT_S_MAX) as client:
                    self.reconnects += 1
                    while not self.over.is_set():
                        self.write(client)
                self.over.wait(0.1)
        except BaseException as error:  # told by the campaign
            self.failure = error


class Overlapping(Writer):
    """Writes, zeroes and trims of any size in a small place, several in flight, overlapping its own and the other's."""

    def write(self, client: Client) -> None:
        dice = self.dice
        batch = []
        for _ in range(8):
            length = dice.choice((512, 4096, 4096, dice.randrange(1, 60_000), 65_536))
            batch.append((dice.randrange(OVERLAP_BYTES - length), dice.randbytes(1) * length))
        client.write_all(batch)
        match dice.randrange(12):
            case 0:
                client.zero(dice.randrange(OVERLAP_BYTES - 65_536), 65_536, punch=dice.random() < 0.5)
            case 1:
                client.trim(dice.randrange(OVERLAP_BYTES - 65_536), 65_536)
            case 2:
                client.flush()
            case 3:  # in fragments
                client.write(dice.randrange(OVERLAP_BYTES - 700_000), dice.randbytes(64) * 10_000)
        self.count += len(batch)
        self.over.wait(dice.uniform(0.0, 0.5))


class Salvo(Writer):
    """Writes nothing until it is told to, then one long write that is never asked for again: whoever dies in it must settle it."""

    def __init__(self, volume: Exported, seed: object) -> None:
        super().__init__(volume, seed)
        self._fire = threading.Event()

    def fire(self) -> None:
        self._fire.set()

    def stop(self) -> None:
        self.over.set()
        self._fire.set()
        super().stop()

    def write(self, client: Client) -> None:
        payload = self.dice.randbytes(SALVO_BYTES)
        offset = self.dice.randrange(OVERLAP_BYTES, self.volume.ledger_at - SALVO_BYTES)
        self._fire.wait()
        self._fire.clear()
        if not self.over.is_set():
            client.write(offset, payload, fua=True)  # most of its time the source has it, and nobody else
            self.count += 1


class Ledger(Writer):
    """One writer, each block with a count in it: what must be on source and replica in the end is known."""

    def __init__(self, volume: Exported, seed: object) -> None:
        super().__init__(volume, seed)
        self._acknowledged: dict[int, bytes] = {}
        self._asked: dict[int, set[bytes]] = {}

    def write(self, client: Client) -> None:
        block = self.dice.randrange(LEDGER_BYTES // BLOCK)
        content = (self.dice.randbytes(16) + b"%016d" % self.count) * (BLOCK // 32)
        self._asked.setdefault(block, set()).add(content)
        client.write(self.volume.ledger_at + block * BLOCK, content, fua=self.dice.random() < 0.01)
        self._acknowledged[block] = content
        self._asked[block] = {content}
        self.count += 1
        self.over.wait(0.005)

    def lost(self, image: Path) -> int:
        """Return how many blocks have neither their last acknowledged content nor one asked for after it."""
        lost = 0
        with image.open("rb") as file:
            for block, asked in self._asked.items():
                file.seek(self.volume.ledger_at + block * BLOCK)
                found = file.read(BLOCK)
                lost += found not in asked and found != self._acknowledged.get(block, found)
        return lost


class Fio:
    """fio at a fixed rate through an nbdkit that connects again by itself."""

    def __init__(self, volume: Exported, folder: Path, seed: int) -> None:
        self._socket = folder / f"{volume.name}.nbdkit.sock"
        self._told = folder / f"{volume.name}.fio.json"
        self._log = (folder / f"{volume.name}.load.log").open("ab")
        retry = ["--filter=retry", "nbd", f"uri={volume.uri}", f"retries={RETRIES}", "retry-delay=1", "retry-exponential=no"]
        self._nbdkit = self._child(["nbdkit", "-f", "-U", str(self._socket), *retry])
        deadline_s = time.monotonic() + 10
        while not self._socket.exists():
            assert time.monotonic() < deadline_s and self._nbdkit.poll() is None, f"nbdkit does not come up: {self._log.name}"
            time.sleep(0.02)
        self._fio = self._child(
            [
                *("fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={self._socket}", "--rw=randwrite"),
                *("--bsrange=4k-64k", "--iodepth=8", f"--size={volume.ledger_at}", "--norandommap", f"--randseed={seed}"),
                *("--refill_buffers", "--buffer_compress_percentage=50", f"--rate={FIO_BYTES_PER_S}", "--fsync=200"),
                *("--time_based", "--runtime=86400", "--output-format=json", f"--output={self._told}"),
            ]
        )

    def running(self) -> bool:
        return self._fio.poll() is None

    def stop(self) -> dict[str, float]:
        """End both; return what fio says. Raises AssertionError if a write of it failed."""
        self._end(self._fio, signal.SIGINT)
        self._end(self._nbdkit, signal.SIGTERM)
        self._log.close()
        told = self._told.read_text() if self._told.exists() else ""
        assert "{" in told, f"fio says nothing: {self._log.name}"
        job = json.loads(told[told.index("{") :])["jobs"][0]
        assert job["error"] == 0, f"fio had error {job['error']} ({os.strerror(job['error'])}): {self._log.name}"
        return {"writes": job["write"]["total_ios"], "bytes": job["write"]["io_bytes"], "max_ms": job["write"]["clat_ns"]["max"] / 1e6}

    def _child(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    @staticmethod
    def _end(child: subprocess.Popen[bytes], number: int) -> None:
        if child.poll() is None:
            child.send_signal(number)
        try:
            child.wait(CLIENT_S_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Load:
    """Everything that writes, to all volumes."""

    def __init__(self, volumes: list[Exported], folder: Path, seed: int) -> None:
        self.ledgers = [Ledger(volume, f"{seed} ledger {volume.name}") for volume in volumes]
        pairs = [Overlapping(volume, f"{seed} {number} {volume.name}") for volume in volumes for number in range(2)]
        self.writers: list[Writer] = [*self.ledgers, *pairs]
        self._salvos = [Salvo(volume, f"{seed} salvo {volume.name}") for volume in volumes]
        for writer in (*self.writers, *self._salvos):
            writer.start()
        self.fios = [Fio(volume, folder, seed) for volume in volumes]

    def fire(self) -> None:
        """Have a long write begin on each volume."""
        for salvo in self._salvos:
            salvo.fire()

    def wait_progress(self, timeout_s: float) -> list[str]:
        """Return who writes nothing any more."""
        before = [writer.count for writer in self.writers]
        deadline_s = time.monotonic() + timeout_s
        while True:
            pairs = zip(self.writers, before, strict=True)
            stuck = [f"{type(one).__name__} on {one.volume.name}" for one, count in pairs if one.count == count]
            stuck += [f"fio {number} has ended" for number, fio in enumerate(self.fios) if not fio.running()]
            if not stuck or time.monotonic() > deadline_s:
                return stuck
            time.sleep(0.05)

    def stop(self) -> tuple[dict[str, float], list[str]]:
        """End all; return what was written, and the failures."""
        failures, told = [], []
        for writer in self.writers:
            writer.over.set()
        for writer in (*self.writers, *self._salvos):
            writer.stop()
            if writer.failure is not None:
                failures.append(f"{type(writer).__name__} on {writer.volume.name}: {writer.failure!r}")
        for fio in self.fios:
            try:
                told.append(fio.stop())
            except AssertionError as error:
                failures.append(str(error))
        return {
            "fio_writes": sum(one["writes"] for one in told),
            "fio_bytes": sum(one["bytes"] for one in told),
            "fio_longest_ms": round(max((one["max_ms"] for one in told), default=0.0)),
            "client_writes": sum(writer.count for writer in self.writers),
            "salvos": sum(salvo.count for salvo in self._salvos),
            "reconnects": sum(writer.reconnects for writer in self.writers),
        }, failures
