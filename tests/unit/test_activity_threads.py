"""The activity log under threads: writers that take no lock, against a sweep that clears under them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.activity_log import SWEEP_INTERVAL_S, ActivityLog
from agent.generations import CLEAR_AFTER_S, Standing
from tests.activity_disk import MIB, SimDisk, set_in, source

PATH = Path("/state/agent/v.activity")
COUNT = 6
WRITERS = 3
WRITES = 2000


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Capture:
    """A volume's mutex, head and operations in flight; each write is acknowledged and flushed at once, so only its touch protects it."""

    def __init__(self) -> None:
        disk = SimDisk()
        self.log = ActivityLog.create(PATH, "v", source(COUNT * MIB), owed=False, files=disk)
        self.file = disk.files[PATH]
        self.mutex = threading.Lock()
        self.flying: set[tuple[int, int]] = set()
        self.owed = b""
        self.head = 0
        self.wrong: list[str] = []
        self.cleared = 0

    def write(self, writer: int) -> None:
        for number in range(WRITES):
            region = (number * (writer + 1)) % COUNT
            extent = (region * MIB + writer * 4096, region * MIB + writer * 4096 + 1 + (number % 3 == 0) * MIB)
            extent = (extent[0], min(extent[1], COUNT * MIB))
            with self.mutex:
                self.flying.add(extent)
            self.log.touch(*extent)
            covered = set(range(extent[0] // MIB, -(-extent[1] // MIB)))
            if not covered <= set_in(bytes(self.file.kept), COUNT):
                self.wrong.append(f"the source is written, {covered} is clear on the disk")
            if not covered <= set_in(bytes(self.file.seen), COUNT):
                self.wrong.append(f"the source is written, {covered} may become clear on the disk")
            with self.mutex:
                self.head += 1
                self.flying.remove(extent)

    def look(self) -> Standing:
        with self.mutex:
            return Standing(self.head, self.head, list(self.flying), self.owed)

    def sweep(self, over: threading.Event) -> None:
        """Sweep as fast as can be, over a clock that runs away: whatever was seen by one sweep may be cleared by the next but one."""
        now_s = 0.0
        while not over.is_set():
            now_s += CLEAR_AFTER_S + SWEEP_INTERVAL_S
            self.cleared += self.log.sweep(now_s, self.look, lambda: None)


def test_a_source_grows_while_its_log_is_swept() -> None:
    capture, over = Capture(), threading.Event()
    capture.log.owe(0, COUNT * MIB)
    sweeper = threading.Thread(target=capture.sweep, args=(over,))
    sweeper.start()
    try:
        for count in range(COUNT + 1, COUNT + 500):
            capture.owed = bytes(2 * (count - 1)) + b"\xff\xff"  # a volume's debt comes long before a sweep could clear what is new
            capture.log.resize(count * MIB)
            assert count - 1 in set_in(bytes(capture.file.kept), count)
    finally:
        over.set()
        sweeper.join(10)
    assert capture.log.size_bytes == (COUNT + 499) * MIB
    assert capture.cleared > 0


def test_no_write_reaches_the_source_with_its_bit_clear() -> None:
    capture, over = Capture(), threading.Event()
    sweeper = threading.Thread(target=capture.sweep, args=(over,))
    writers = [threading.Thread(target=capture.write, args=(number,)) for number in range(WRITERS)]
    sweeper.start()
    for one in writers:
        one.start()
    for one in writers:
        one.join(120)
    over.set()
    sweeper.join(10)
    assert capture.wrong == []
    assert capture.head == WRITERS * WRITES
    assert capture.cleared > 0, "nothing was cleared: nothing was tried"
