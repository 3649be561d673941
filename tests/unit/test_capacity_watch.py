"""The live watch: a device's counters, and a file that is served while its writes are counted."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload.capacity.pass_through import SAMPLE_BYTES_MAX, PassThrough, Ratio
from hostoffload.capacity.watch import watch_counters
from nbd.blockfile import BlockFile
from nbd.client import Client
from nbd.exports import ExportTable
from nbd.listen import listen_unix
from nbd.server import Server
from nbd.uri import format_uri
from stream.errors import ConfigError, RetryError

MIB = 1 << 20
SOCKET = Path("/tmp") / f"ho-plan-{os.getpid()}.sock"


def client_uri() -> str:
    return format_uri("", str(SOCKET))


class Time:
    """A clock that stands still but for the waits of what uses it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ended = threading.Event()
        self.before_end: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def is_set(self) -> bool:
        return self.ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        self.now_s += timeout_s
        return self.ended.is_set()


def diskstats(writes: int, sectors: int, trimmed: int = 0) -> str:
    return f"   8       1 sdx1 9 0 72 1 {writes} 0 {sectors} 5 0 6 7 1 0 {trimmed} 1 0 0"


def test_counters_are_looked_at_once_a_second() -> None:
    time = Time()
    lines = iter([(0, 0), (10, 80), (10, 80), (40, 800)])
    seen = watch_counters((8, 1), 2.5, time, read=lambda: ["x", diskstats(*next(lines), trimmed=8)], clock=time, size_bytes=MIB)  # type: ignore[arg-type]
    assert [(one.seconds, one.payload_bytes, one.writes) for one in seen.intervals] == [(1.0, 40_960, 10), (1.0, 0, 0), (0.5, 368_640, 30)]
    assert seen.source == "/proc/diskstats of sdx1" and seen.size_bytes == MIB and seen.trimmed_bytes == 0
    assert seen.overwrites is None


def test_a_device_that_is_not_counted_or_goes_away_is_said() -> None:
    time = Time()
    with pytest.raises(ConfigError, match="counts nothing for device 8:1"):
        watch_counters((8, 1), 3, time, read=list, clock=time)  # type: ignore[arg-type]
    answers = iter([[diskstats(0, 0)], []])
    with pytest.raises(RetryError, match="sdx1 went away"):
        watch_counters((8, 1), 3, time, read=lambda: next(answers), clock=time)  # type: ignore[arg-type]
    time.ended.set()
    with pytest.raises(ConfigError, match="Nothing was watched"):
        watch_counters((8, 1), 3, time, read=lambda: [diskstats(0, 0)], clock=time)  # type: ignore[arg-type]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[PassThrough, Client, Time]]:
    """A file of 4 MiB behind a pass-through and a server, and a client of it."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(4 * MIB)
    time = Time()
    device = PassThrough(str(source), (1, 2), ("snappy", "zstd"), clock=time)
    path = SOCKET
    listener = listen_unix(path)
    server = Server(ExportTable({"": device}), [listener])
    server.start()
    with Client(client_uri()) as client:
        yield device, client, time
    assert server.stop()
    listener.close()
    path.unlink()
    device.close()


def test_a_pass_through_counts_what_clients_write(served: tuple[PassThrough, Client, Time]) -> None:
    device, client, time = served
    half = os.urandom(2048) + bytes(2048)
    client.write(0, half)
    client.write(0, half, fua=True)
    time.now_s = 101.0
    client.write(MIB, os.urandom(MIB))  # longer than a lane's chunk: it comes in pieces
    client.trim(2 * MIB, 4096)
    client.zero(3 * MIB, 8192)
    with pytest.raises(OSError):
        client.write(5 * MIB, half)
    assert client.read(0, 4096) == half
    time.now_s = 102.0
    client.write(0, half)  # after the end: not counted
    time.now_s = 100.0
    seen = device.watch("test", 2, time)  # type: ignore[arg-type]
    assert [(one.payload_bytes, one.writes) for one in seen.intervals] == [(8192, 2), (MIB, 1)]
    assert seen.trimmed_bytes == 4096 + 8192 and seen.size_bytes == 4 * MIB
    short, long = seen.overwrites or ()
    assert (short.windows, short.unique_bytes) == (2, 4096 + MIB) and (long.windows, long.unique_bytes) == (1, 4096 + MIB)
    assert seen.ratio is not None and 1.0 <= seen.ratio < 1.1 and seen.fold_ratio is not None


def test_what_fails_is_not_counted(served: tuple[PassThrough, Client, Time], monkeypatch: pytest.MonkeyPatch) -> None:
    device, client, time = served

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    client.write(0, bytes(512))
    for name in ("write", "zero", "trim"):
        monkeypatch.setattr(BlockFile, name, fail)
    with Client(client_uri()) as other:
        for act in (lambda: other.write(0, bytes(512)), lambda: other.zero(0, 512), lambda: other.trim(0, 512)):
            with pytest.raises(OSError):
                act()
    seen = device.watch("test", 1, time)  # type: ignore[arg-type]
    assert (seen.writes, seen.trimmed_bytes) == (1, 0)


def test_the_bytes_go_through_unchanged(served: tuple[PassThrough, Client, Time], tmp_path: Path) -> None:
    _, client, _ = served
    told = os.urandom(300_000)
    client.write(12_345, told)
    client.flush()
    assert (tmp_path / "source").read_bytes()[12_345 : 12_345 + len(told)] == told


def test_a_watch_that_is_ended_keeps_whole_seconds(served: tuple[PassThrough, Client, Time]) -> None:
    device, client, time = served
    client.write(0, bytes(512))
    time.now_s = 101.3
    client.write(0, bytes(512))
    time.now_s = 100.0
    real_wait = time.wait

    def wait(timeout_s: float) -> bool:
        if time.now_s >= 101.6:
            time.ended.set()
        return real_wait(timeout_s)

    time.wait = wait  # type: ignore[method-assign]
    seen = device.watch("test", 60, time)  # type: ignore[arg-type]
    assert [one.writes for one in seen.intervals] == [1]


def test_a_ratio_is_a_message_s() -> None:
    ratio = Ratio("zstd")
    assert ratio.value is None
    ratio.add(bytes(SAMPLE_BYTES_MAX))
    assert ratio.value is not None and ratio.value > 1000
    ratio.add(os.urandom(3 * SAMPLE_BYTES_MAX))
    assert ratio.value == pytest.approx(4 / 3, rel=0.01)
    assert Ratio("none").value is None
