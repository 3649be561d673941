"""`Capture` in this process, a publisher played by a thread: volumes come and go, memory comes back, nothing ends it."""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent import capture as capture_module
from agent import declared as declared_file
from agent import ring as layout
from agent.capture import Capture
from agent.declared import Declared, Resync
from agent.pool import pool_chunks
from agent.ring import VolumeRing
from nbd.client import Client
from stream.config import AgentConfig, Config
from stream.control import VolumeDeclaration
from stream.errors import IntegrityError
from tests.agent_parts import MIB

SIZE = 4 * MIB
BUFFER = 96 * MIB


class Publisher:
    """Claims and acknowledges every ring of a folder as it is asked to, a few hundred times a second."""

    def __init__(self, rings: Path) -> None:
        self._rings = rings
        self._known: dict[Path, VolumeRing] = {}
        self.claims = True
        self.acknowledges = True
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()

    def _run(self) -> None:
        while not self._over:
            for path in self._rings.glob("*.ring"):
                try:
                    if path not in self._known or not self._known[path].memory.current:
                        self._known[path] = VolumeRing.attach(path)
                except (OSError, IntegrityError):
                    continue
                self._serve(self._known[path])
            time.sleep(0.002)

    def _serve(self, ring: VolumeRing) -> None:
        words = ring.words
        if words[layout.W_CLAIMED] != layout.CLAIM_DONE:
            if self.claims:
                words[layout.W_EPOCH] = 1
                words[layout.W_HEAD] = words[layout.W_ACKED] = words[layout.W_SENT] = 1
                words[layout.W_CLAIMED] = layout.CLAIM_DONE
        elif self.acknowledges:
            words[layout.W_ACKED] = words[layout.W_HEAD]
        if words[layout.W_COMPARE] == layout.COMPARE_WANTED:  # there is no target
            words[layout.W_COMPARE] = layout.COMPARE_UNANSWERED


class Host:
    """A state folder, a ring folder, a socket; captures that are started and stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state, self.rings = folder / "state", folder / "rings"
        (self.state / "agent").mkdir(parents=True)
        self.rings.mkdir()
        self.path = folder / "nbd.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.volumes: dict[str, VolumeDeclaration] = {}
        self.resyncs: dict[str, tuple[Resync, ...]] = {}
        self.publisher = Publisher(self.rings)
        self.capture: Capture | None = None
        self.failure: list[BaseException] = []

    def declare(self, name: str, state: str = "active", source: Path | None = None) -> None:
        path = source or self.folder / f"{name}.img"
        if not path.exists():
            path.write_bytes(bytes(SIZE))
        self.volumes[name] = VolumeDeclaration(name, "host", str(path), SIZE, state)
        self.write_declared()

    def change(self, name: str, state: str) -> None:
        self.volumes[name] = replace(self.volumes[name], state=state)
        self.write_declared()

    def write_declared(self) -> None:
        declared_file.write(declared_file.path_of(self.state), "host", Declared(tuple(self.volumes.values()), self.resyncs))

    def start(self) -> None:
        agent = AgentConfig("host", BUFFER, heartbeat_s=1000.0, overflow="throttle", throttle_s_max=3600.0, verify_bytes_per_s=0)
        config = Config(agent=agent)
        self.capture = Capture(config, self.state, self.rings, [self.listener.dup()])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.capture.serve(self._stop)
        except BaseException as error:
            self.failure.append(error)

    def stop(self) -> None:
        if self.capture is not None:
            self._stop.set()
            self._thread.join(20)
            assert not self._thread.is_alive(), "the keeper hangs"
            self.capture.close()
            self.capture = None
        assert not self.failure, self.failure

    def until(self, true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            assert not self.failure, self.failure
            try:
                if true():
                    return
            except KeyError:
                pass
            time.sleep(0.005)
        raise AssertionError("it never happened")

    def until_data(self, name: str) -> None:
        self.until(lambda: self.facts(name)["mode"] == "DATA" and self.facts(name)["owed_bytes"] == 0)

    def facts(self, name: str) -> dict:
        return self.capture._served[name].facts()[1]

    def client(self, name: str) -> Client:
        return Client(f"nbd+unix:///{name}?socket={self.path}", timeout_s=20)

    @property
    def taken(self) -> int:
        """Return how many chunks are given out."""
        return self.capture._pool.count - self.capture._allocator.free_count


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(capture_module, "RETRY_INTERVAL_S", 0.02)
    monkeypatch.setattr(capture_module, "LET_GO_S", 0.2)
    monkeypatch.setattr(capture_module, "DRAIN_S_MAX", 0.3)
    host = Host(tmp_path)
    yield host
    host.publisher.acknowledges = True
    host.stop()
    host.publisher.close()
    host.listener.close()


@pytest.fixture
def serving(host: Host) -> Host:
    host.declare("v")
    host.start()
    host.until_data("v")
    return host


def test_serves_what_is_declared(serving: Host) -> None:
    with serving.client("v") as client:
        client.write(4096, b"x" * 5000)
        assert client.read(4096, 5000) == b"x" * 5000
    assert (serving.folder / "v.img").read_bytes()[4096:9096] == b"x" * 5000


def test_memory_comes_back_when_a_connection_ends(serving: Host) -> None:
    with serving.client("v") as client:
        client.write(0, b"x" * (3 * MIB))
    serving.until(lambda: serving.taken == 2)  # a block of entries, and the chunk of marks


def test_a_resumed_volume_takes_writes(serving: Host) -> None:
    for _ in range(3):
        with serving.client("v") as client:
            client.write(0, os.urandom(MIB))
        serving.change("v", "paused")
        serving.until(lambda: "v" not in serving.capture._served)
        serving.change("v", "active")
        serving.until_data("v")
    with serving.client("v") as client:
        client.write(0, b"still here")
    serving.until(lambda: serving.taken == 1)


def test_a_paused_volume_gives_its_memory_back_when_kafka_has_it(serving: Host) -> None:
    serving.publisher.acknowledges = False
    with serving.client("v") as client:
        client.write(0, b"x" * (3 * MIB))
    serving.change("v", "paused")
    serving.until(lambda: "v" not in serving.capture._served)
    assert serving.taken > 10
    serving.publisher.acknowledges = True
    serving.until(lambda: serving.taken <= 1)


def test_a_removed_volume_gives_its_memory_back_without_kafka(serving: Host) -> None:
    serving.publisher.acknowledges = False
    with serving.client("v") as client:
        client.write(0, b"x" * (3 * MIB))
    serving.change("v", "removed")
    serving.until(lambda: serving.taken == 0)
    assert not (serving.rings / "v.ring").exists()


def test_a_volume_removed_while_nobody_served_leaves_nothing(serving: Host) -> None:
    serving.stop()
    serving.change("v", "removed")
    serving.start()
    serving.until(lambda: not (serving.rings / "v.ring").exists())
    serving.until(lambda: serving.taken == 0)
    assert not list((serving.state / "agent").glob("v.*"))


def test_a_volume_declared_with_another_source_is_copied_whole(serving: Host) -> None:
    other = serving.folder / "other.img"
    other.write_bytes(os.urandom(SIZE))
    serving.declare("v", source=other)
    serving.until(lambda: serving.capture._served["v"].source.file.path == str(other))
    serving.until_data("v")
    assert serving.facts("v")["resync_bytes"] == SIZE


def test_volumes_share_the_buffer_and_one_does_not_stop_the_other(serving: Host) -> None:
    serving.declare("w")
    serving.until_data("w")
    with serving.client("v") as one, serving.client("w") as two:
        one.write(0, b"1" * MIB)
        two.write(0, b"2" * MIB)
    serving.change("v", "removed")
    serving.until(lambda: "v" not in serving.capture._served)
    with serving.client("w") as two:
        two.write(0, b"3" * MIB)


def test_a_missing_source_is_told_and_tried_again(serving: Host) -> None:
    path = serving.folder / "late.img"
    serving.volumes["late"] = VolumeDeclaration("late", "host", str(path), SIZE)
    serving.write_declared()
    serving.until(lambda: "late" in serving.capture._errors)
    assert str(path) in serving.capture._errors["late"]
    path.write_bytes(bytes(SIZE))
    serving.until_data("late")
    assert "late" not in serving.capture._errors


def test_a_stop_before_anything_was_served_is_orderly(host: Host) -> None:
    host.publisher.claims = False
    host.declare("v")
    host.start()
    host.until(lambda: "v" in host.capture._served)
    host.stop()


def test_a_stop_without_a_declared_volume_is_orderly(host: Host) -> None:
    host.start()
    host.stop()


def test_a_report_that_can_not_be_written_ends_nothing(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()

    def full(*_: object) -> None:
        seen.set()
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(serving.capture._reporter, "report", full)
    assert seen.wait(10)
    with serving.client("v") as client:
        client.write(0, b"x")


def test_two_requests_do_not_chase_each_other(serving: Host) -> None:
    serving.resyncs["v"] = (Resync("one", "asked", ""), Resync("two", "asked", ""))
    serving.write_declared()
    serving.until(lambda: serving.capture._served["v"].ring.listed("handled") == ["one", "two"])
    serving.until_data("v")
    head = serving.capture._served["v"].volume.log.head
    time.sleep(0.3)
    assert serving.capture._served["v"].volume.log.head == head


def test_a_full_buffer_waits_and_goes_on(serving: Host) -> None:
    """Four connections, each with more than its share: all wait, none fails, all go on when Kafka is back."""
    serving.declare("w")
    serving.until_data("w")
    serving.publisher.acknowledges = False
    payload = random.Random(1).randbytes(4 * MIB)
    done, failures = [], []

    def write() -> None:
        try:
            with serving.client("v") as client:
                for _ in range(12):
                    client.write(0, payload)
            done.append(1)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    serving.until(lambda: len(serving.capture._allocator._queue) >= 3)
    assert not done
    allocator = serving.capture._allocator
    assert allocator.room("v") < 20
    assert allocator.room("w") > allocator.room("v") + 50, "the other volume's share is kept for it"
    serving.publisher.acknowledges = True
    for writer in writers:
        writer.join(30)
    assert not failures
    assert len(done) == 4
    serving.until(lambda: serving.taken <= 4)


def test_a_stop_with_a_full_buffer_comes_to_its_end(serving: Host) -> None:
    serving.publisher.acknowledges = False
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with serving.client("v") as client:
                for _ in range(40):
                    client.write(0, bytes([7]) * (4 * MIB))
        except OSError as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    serving.until(lambda: len(serving.capture._allocator._queue) >= 1)
    serving.stop()
    writer.join(10)
    assert failures


def test_the_largest_write_fits_an_idle_buffer(serving: Host) -> None:
    assert pool_chunks(BUFFER) * (256 << 10) >= 2 * 32 * MIB
    serving.declare("large", source=_sparse(serving.folder / "large.img", 64 * MIB))
    serving.until_data("large")
    serving.publisher.acknowledges = False
    with serving.client("large") as client:
        client.write(100, bytes([9]) * (32 * MIB - 1))


def _sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def test_a_capture_killed_with_a_full_ring_goes_on(host: Host) -> None:
    """The rings of a former process are taken over, declared or not."""
    host.declare("v")
    host.start()
    host.until_data("v")
    host.publisher.acknowledges = False
    with host.client("v") as client:
        client.write(0, b"x" * (3 * MIB))
    host.stop()
    host.change("v", "paused")
    host.start()
    host.until(lambda: host.taken >= 12)
    host.publisher.acknowledges = True
    host.until(lambda: host.taken == 1)
    host.change("v", "active")
    host.until_data("v")
    with host.client("v") as client:
        client.write(0, b"y")


def test_a_declared_volume_that_can_not_be_opened_stops_nobody(serving: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "planted")

    monkeypatch.setattr(capture_module, "ServedVolume", broken)
    serving.declare("w")
    serving.until(lambda: "w" in serving.capture._errors)
    with serving.client("v") as client:
        client.write(0, b"x")
