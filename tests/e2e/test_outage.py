"""Kafka is away while the application writes: order is kept as long as the buffer lasts; then it is lost by name, and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos import topic
from tests.chaos.watch import Sample, Watch
from tests.e2e.system import System, make_source, running
from tests.tools import need

pytestmark = [pytest.mark.slow, pytest.mark.kafka]

SIZE_BYTES = 1 << 30
BLOCK_BYTES = 64 << 10
BEFORE_S = 15.0
BUFFER = {"HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX": str(256 << 20)}
BACK_S_MAX = 60.0
P99_FACTOR_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What fio saw in one stretch."""

    name: str
    mb_per_s: float
    p99_ms: float
    max_ms: float


class PacedLoad:
    """fio at a fixed rate, one stretch after the other without a pause, each measured for itself, until the last one is told to end."""

    def __init__(self, uri: str, mb_per_s: float) -> None:
        self.measured: list[Measured] = []
        self.failure: str | None = None
        self._uri, self._rate = uri, round(mb_per_s * 1e6 / BLOCK_BYTES)
        self._turn = threading.Event()
        self._over = threading.Event()
        self._name = self._next_name = "before"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stretch(self, name: str) -> None:
        """Measure apart what is written from now on."""
        self._next_name = name
        self._turn.set()
        while self._turn.is_set() and self.failure is None:
            time.sleep(0.01)

    def stop(self) -> dict[str, Measured]:
        """End, and return each stretch by its name."""
        self._over.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), "fio does not end: a write was never answered"
        assert self.failure is None, self.failure
        return {one.name: one for one in self.measured}

    def _run(self) -> None:
        while not self._over.is_set() and self.failure is None:
            self._one()

    def _one(self) -> None:
        command = [
            *("fio", "--name=paced", "--ioengine=nbd", f"--uri={self._uri}", "--rw=randwrite", f"--bs={BLOCK_BYTES}", "--iodepth=8"),
            *(f"--size={SIZE_BYTES}", "--norandommap", "--randrepeat=0", f"--rate_iops={self._rate}", "--refill_buffers"),
            *("--time_based", "--runtime=86400", "--output-format=json"),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fio:
            while not (self._turn.is_set() or self._over.is_set()) and fio.poll() is None:
                time.sleep(0.02)
            fio.send_signal(signal.SIGINT)
            told = fio.communicate()[0]
        job = json.loads(told[told.index("{") :])["jobs"][0]
        write = job["write"]
        if job["error"]:
            self.failure = f"fio had error {job['error']} in {self._name}"
        clat = write["clat_ns"]
        rate = write["io_bytes"] / 1e6 / max(write["runtime"] / 1000, 1e-3)
        self.measured.append(Measured(self._name, rate, clat["percentile"]["99.000000"] / 1e6, clat["max"] / 1e6))
        if self._turn.is_set():
            self._name = self._next_name
            self._turn.clear()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    need("fio", "java")
    with running(tmp_path / "outage", environment=BUFFER) as one:
        yield one


def test_ten_seconds_without_kafka_keep_the_order(system: System) -> None:
    """20 MB/s and a buffer of 256 MiB: DATA throughout, no gap, byte-equal.

    The broker is stopped by SIGSTOP: its own way down and up would add four seconds, and the buffer holds less than fourteen.
    """
    source = make_source(system.folder / "short.img", SIZE_BYTES)
    uri = system.add("short", source)
    system.wait_in_sync("short")
    watch = _watch(system)
    load = PacedLoad(uri, 20)
    time.sleep(5)
    load.stretch("away")
    (broker,) = system.processes("broker")
    os.kill(broker["pid"], signal.SIGSTOP)
    time.sleep(10)
    os.kill(broker["pid"], signal.SIGCONT)
    time.sleep(10)
    measured = load.stop()
    watch.close()
    assert {sample.volumes["short"]["mode"] for sample in watch.samples} == {"DATA"}
    assert measured["away"].mb_per_s > 19, measured
    status = system.check_equal("short", source)
    assert status["gaps"] == 0
    assert topic.gaps_by_reason([_stream(system, "short")]) == {}


def test_a_minute_without_kafka_loses_order_by_name_and_finds_it_again(system: System) -> None:
    """50 MB/s for 60 s into 256 MiB: BITMAP with its reason, nobody slowed, DATA within a minute of Kafka's return, one gap."""
    source = make_source(system.folder / "long.img", SIZE_BYTES)
    uri = system.add("long", source)
    system.wait_in_sync("long")
    watch = _watch(system)
    load = PacedLoad(uri, 50)
    time.sleep(BEFORE_S)
    load.stretch("away")
    system.run("broker", "stop")
    time.sleep(60)
    in_outage = watch.samples[-1].volumes["long"]
    system.run("broker", "start")
    back_at = time.time()
    load.stretch("after")
    found_again_s = _wait_mode(watch, "long", "DATA", back_at)
    time.sleep(5)
    measured = load.stop()
    watch.close()
    print(f"DATA again {found_again_s:.1f} s after Kafka's return; {measured}")
    assert in_outage["mode"] == "BITMAP" and in_outage["mode_reason"], in_outage
    assert found_again_s <= BACK_S_MAX
    assert measured["away"].mb_per_s > 48, "the application was slowed"
    assert measured["away"].p99_ms <= P99_FACTOR_MAX * measured["before"].p99_ms, measured
    status = system.check_equal("long", source)
    stream = _stream(system, "long")
    (gap,) = stream.of("gap_begin")
    assert topic.gaps_by_reason([stream]) == {"overflow": 1}
    assert any(gap.position in end.attributes["closes"].split(",") for end in stream.of("sync_end"))
    assert status["gaps"] == 1


def _watch(system: System) -> Watch:
    return Watch(system.environment, system.folder / "watch.log")


def _wait_mode(watch: Watch, volume: str, mode: str, since: float) -> float:
    """Wait until the volume has that mode; return how long after `since`."""
    deadline_s = time.monotonic() + 3 * BACK_S_MAX
    while not _has(watch.samples[-1], volume, mode, since):
        assert time.monotonic() < deadline_s, f"not {mode}: {watch.samples[-1].volumes[volume]}"
        time.sleep(0.05)
    return watch.samples[-1].at - since


def _has(sample: Sample, volume: str, mode: str, since: float) -> bool:
    return sample.at > since and sample.volumes[volume]["mode"] == mode


def _stream(system: System, volume: str) -> topic.Stream:
    """Return what the writes topic says; what it adds up to must be the source too."""
    bootstrap = json.loads(system.run("status", "--json"))["broker"]["bootstrap"]
    stream = topic.fold(bootstrap, volume, SIZE_BYTES)
    assert stream.holes == []
    assert stream.image == (system.folder / f"{volume}.img").read_bytes()
    return stream
