"""Sweeps of the activity log: what is cleared, and what may not be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.activity_log import SWEEP_INTERVAL_S, ActivityLog
from agent.generations import CLEAR_AFTER_S, GENERATIONS_MAX, Standing
from tests.activity_disk import MIB, SimDisk, SimFile, regions_of, set_in, source

PATH = Path("/state/agent/v.activity")
COUNT = 9000
GRAIN = 64 << 10


class Host:
    """Capture as a sweep sees it; time goes by as the test says."""

    def __init__(self, count: int = COUNT) -> None:
        self.disk = SimDisk()
        self.log = ActivityLog.create(PATH, "v", source(count * MIB), owed=False, files=self.disk)
        self.count = count
        self.now_s = 1000.0
        self.head = self.acked = 0
        self.flying: list[tuple[int, int]] = []
        self.owed: set[int] = set()
        """Numbers of owed grains of 64 KiB."""
        self.flushes = 0
        self.flush_error = 0

    @property
    def file(self) -> SimFile:
        return self.disk.files[PATH]

    @property
    def regions(self) -> set[int]:
        return regions_of(self.log.regions())

    def write(self, region: int, at_bytes: int = 0) -> None:
        """Write something and have it recorded."""
        start = region * MIB + at_bytes
        self.log.touch(start, start + 4096)
        self.head += 1

    def look(self) -> Standing:
        owed = bytearray(-(-self.count * 16 // 8) if self.owed else 0)
        for grain in self.owed:
            owed[grain // 8] |= 1 << grain % 8
        return Standing(self.head, self.acked, list(self.flying), bytes(owed))

    def flush(self) -> None:
        self.flushes += 1
        if self.flush_error:
            raise OSError(self.flush_error, os.strerror(self.flush_error))

    def pass_s(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Let so much time pass, with a sweep in every interval; return how many regions were cleared."""
        cleared = 0
        for _ in range(round(seconds / SWEEP_INTERVAL_S)):
            meanwhile()
            self.now_s += SWEEP_INTERVAL_S
            cleared += self.log.sweep(self.now_s, self.look, self.flush)
        return cleared


@pytest.fixture
def host() -> Host:
    return Host()


def test_is_cleared_half_a_minute_after_the_last_write(host: Host) -> None:
    host.write(5)
    host.write(7)
    host.acked = host.head
    assert host.pass_s(CLEAR_AFTER_S) == 0
    assert host.pass_s(3 * SWEEP_INTERVAL_S) == 2
    assert (host.regions, host.flushes) == (set(), 1)
    assert set_in(host.file.seen, COUNT) == set()


def test_clearing_costs_no_sync(host: Host) -> None:
    host.write(5)
    host.acked = host.head
    syncs = host.file.syncs
    host.pass_s(100)
    assert host.file.syncs == syncs
    host.write(5)
    assert host.file.syncs == syncs + 1
    assert set_in(host.file.kept, COUNT) == {5}


def test_a_region_that_is_written_stays(host: Host) -> None:
    def write() -> None:
        host.write(5)
        host.acked = host.head

    host.write(7)
    assert host.pass_s(100, write) == 1
    assert host.regions >= {5}
    assert 7 not in host.regions


def test_stays_until_kafka_has_it(host: Host) -> None:
    host.write(5)
    host.pass_s(1000)
    assert host.regions == {5}
    assert host.flushes == 0
    host.acked = host.head
    host.pass_s(2 * SWEEP_INTERVAL_S)
    assert host.regions == set()


def test_does_not_wait_for_what_came_later(host: Host) -> None:
    """A stream that always lags a little: the head of the moment counts, not that of today."""
    host.write(5)
    host.pass_s(4 * SWEEP_INTERVAL_S)
    host.acked = host.head
    for region in range(100, 120):
        host.write(region)
        host.pass_s(SWEEP_INTERVAL_S)
    assert 5 not in host.regions
    assert host.regions >= set(range(100, 120))


def test_stays_while_the_source_can_not_be_flushed(host: Host) -> None:
    host.write(5)
    host.acked = host.head
    host.flush_error = errno.EIO
    assert host.pass_s(100) == 0
    assert host.regions == {5}
    host.flush_error = 0
    assert host.pass_s(2 * SWEEP_INTERVAL_S) == 1


def test_what_a_failed_flush_made_owed_stays(host: Host) -> None:
    """The flush fails and the caller owes what it may have lost; the next one succeeds, and proves nothing (design rule 15)."""
    host.write(5)
    host.acked = host.head

    def flush() -> None:
        host.owed.add(5 * 16)
        raise OSError(errno.EIO, "lost")

    while not host.owed:
        host.now_s += SWEEP_INTERVAL_S
        host.log.sweep(host.now_s, host.look, flush)
    host.pass_s(100)
    assert host.regions == {5}


def test_a_write_in_flight_keeps_its_region(host: Host) -> None:
    """A disk that takes minutes for a write: nothing else touches the region meanwhile."""
    extent = (5 * MIB - 10, 5 * MIB + 10)
    host.flying.append(extent)
    host.log.touch(*extent)
    host.pass_s(300)
    assert host.regions == {4, 5}
    host.flying.remove(extent)
    host.head += 1  # its position, in one step with leaving; Kafka has it not yet
    host.pass_s(300)
    assert host.regions == {4, 5}
    host.acked = host.head
    host.pass_s(SWEEP_INTERVAL_S)
    assert host.regions == set()


def test_a_write_that_ends_between_two_sweeps_is_waited_for(host: Host) -> None:
    """The sweep that saw it in flight knew a head without its record."""
    host.flying.append((5 * MIB, 6 * MIB))
    host.log.touch(5 * MIB, 6 * MIB)
    host.pass_s(4 * SWEEP_INTERVAL_S)
    host.flying.clear()
    host.head += 1
    host.pass_s(300)
    assert host.regions == {5}


def test_a_debt_stays(host: Host) -> None:
    host.log.owe(10 * MIB, 20 * MIB)
    host.owed = set(range(10 * 16, 20 * 16))
    host.pass_s(300)
    assert host.regions == set(range(10, 20))
    host.owed = {10 * 16 + 15, 13 * 16, 14 * 16 + 7}
    host.pass_s(300)
    assert host.regions == {10, 13, 14}
    assert host.flushes > 0


def test_a_debt_that_is_paid_waits_for_kafka(host: Host) -> None:
    """Its copy is the newest record when it leaves the map (design rule 13)."""
    host.log.owe(10 * MIB, 11 * MIB)
    host.owed = {10 * 16 + 3}
    host.pass_s(300)
    host.owed, host.flying = set(), [(10 * MIB + 3 * GRAIN, 10 * MIB + 4 * GRAIN)]
    host.pass_s(300)
    host.flying = []
    host.head += 1
    host.pass_s(300)
    assert host.regions == {10}
    host.acked = host.head
    host.pass_s(2 * SWEEP_INTERVAL_S)
    assert host.regions == set()


@pytest.mark.parametrize("count", [1, 7, 8, 4033, COUNT])
def test_every_region_of_the_owed_map_is_found(count: int) -> None:
    host = Host(count)
    host.log.owe(0, count * MIB)
    kept = {region for region in range(count) if region % 5 in (0, 3) or region in (4095, 4096, 4097)}
    host.owed = {region * 16 + region % 16 for region in kept}
    host.pass_s(100)
    assert host.regions == kept


def test_an_owed_map_shorter_than_a_region(host: Host) -> None:
    """A volume's last region may have one bit of the map, and the map then ends in the middle of two bytes."""
    small = SimDisk()
    log = ActivityLog.create(PATH, "v", source(MIB + GRAIN), owed=True, files=small)
    for step in range(1, 50):
        log.sweep(step * SWEEP_INTERVAL_S, lambda: Standing(0, 0, [], b"\0\0\1"), lambda: None)
    assert log.regions() == [(MIB, MIB + GRAIN)]


def test_what_was_set_when_it_was_opened_is_cleared_too(host: Host) -> None:
    host.write(5)
    host.log.owe(100 * MIB, 200 * MIB)
    log = ActivityLog.open(PATH, "v", source(COUNT * MIB), files=host.disk)
    assert log is not None
    host.log, host.acked = log, host.head
    assert host.pass_s(CLEAR_AFTER_S) == 0
    assert host.pass_s(3 * SWEEP_INTERVAL_S) == 101


def test_what_is_set_ahead_is_cleared(host: Host) -> None:
    for region in range(40):
        host.write(region)
    assert max(host.regions) > 40
    host.acked = host.head
    host.pass_s(100)
    assert host.regions == set()
    assert set_in(host.file.seen, COUNT) == set()


def test_a_touch_between_flush_and_clearing_keeps_its_region(host: Host) -> None:
    host.write(5)
    host.write(7)
    host.acked = host.head

    def flush() -> None:
        host.write(7)

    while host.regions == {5, 7}:
        host.now_s += SWEEP_INTERVAL_S
        host.log.sweep(host.now_s, host.look, flush)
    assert host.regions == {7}
    assert set_in(host.file.seen, COUNT) == {7}
    syncs = host.file.syncs
    host.write(7)
    assert host.file.syncs == syncs
    host.pass_s(300)
    assert host.regions == {7}
    host.acked = host.head
    host.pass_s(2 * SWEEP_INTERVAL_S)
    assert host.regions == set()


def test_a_commit_under_way_is_not_cleared(host: Host) -> None:
    """A sync that takes longer than regions live: what it sets, ahead too, is set when it returns."""
    for region in range(3):
        host.write(region)
    host.acked = host.head
    host.file.before_sync = lambda: (host.pass_s(200), None)[1]
    host.flying.append((3 * MIB, 4 * MIB))
    host.log.touch(3 * MIB, 4 * MIB)
    host.file.before_sync = lambda: None
    assert host.regions == {3, 4, 5, 6}
    assert host.regions <= set_in(host.file.kept, COUNT)
    assert set_in(host.file.seen, COUNT) == host.regions


def test_a_touch_of_several_regions_keeps_them(host: Host) -> None:
    def write() -> None:
        host.log.touch(5 * MIB, 8 * MIB)
        host.head += 1
        host.acked = host.head

    host.pass_s(300, write)
    assert host.regions == {5, 6, 7}


def test_a_debt_in_a_set_region_stays_until_it_is_in_the_map(host: Host) -> None:
    """Its region is about to be cleared when the debt is written down; the ring's map has it a moment later."""
    host.write(5)
    host.acked = host.head
    host.pass_s(CLEAR_AFTER_S)
    host.log.owe(5 * MIB, 6 * MIB)
    host.pass_s(3 * SWEEP_INTERVAL_S)
    host.owed = {5 * 16}
    host.pass_s(300)
    assert host.regions == {5}


def test_is_not_called_too_often(host: Host) -> None:
    looks: list[Standing] = []

    def look() -> Standing:
        looks.append(host.look())
        return looks[-1]

    for step in range(1000):
        host.log.sweep(host.now_s + step * 0.05, look, host.flush)
    assert len(looks) == 25


def test_kafka_away_for_hours_costs_no_stamps(host: Host) -> None:
    """More generations than there are stamps: the last one stays open, and everything is cleared in the end."""
    written = set()

    def write() -> None:
        region = (len(written) * 7) % COUNT
        written.add(region)
        host.write(region)

    host.pass_s(3 * GENERATIONS_MAX * SWEEP_INTERVAL_S, write)
    assert host.regions == written
    host.acked = host.head
    host.pass_s(CLEAR_AFTER_S + 4 * SWEEP_INTERVAL_S)
    assert host.regions == set()


def test_months_of_generations(host: Host) -> None:
    """Stamps are used again and again."""

    def write() -> None:
        host.write(host.head % 50)
        host.acked = host.head - 3

    host.pass_s(2000 * SWEEP_INTERVAL_S, write)
    host.acked = host.head
    host.pass_s(CLEAR_AFTER_S + 4 * SWEEP_INTERVAL_S)
    assert host.regions == set()


def test_a_failed_log_is_not_swept(host: Host) -> None:
    host.write(5)
    host.acked = host.head
    host.file.errors["fdatasync"] = errno.EIO
    with pytest.raises(OSError):
        host.write(9)
    assert host.pass_s(300) == 0
    assert host.regions == {5}


def test_clearing_that_can_not_be_written_fails_the_log(host: Host) -> None:
    host.write(5)
    host.acked = host.head
    host.file.errors["pwrite"] = errno.EIO
    host.pass_s(300)
    assert host.log.failure is not None
    with pytest.raises(OSError):
        host.write(5)
    assert set_in(host.file.kept, COUNT) == {5}


@pytest.mark.parametrize("when", ["look", "flush"])
def test_a_log_closed_under_a_sweep_writes_no_more(host: Host, when: str) -> None:
    host.write(5)
    host.acked = host.head

    def look() -> Standing:
        if when == "look":
            host.log.close()
        return host.look()

    host.pass_s(CLEAR_AFTER_S)
    for _ in range(3):
        host.now_s += SWEEP_INTERVAL_S
        host.log.sweep(host.now_s, look, host.log.close)
    assert host.file.closed
    with pytest.raises(OSError, match="closed"):
        host.log.owe(0, MIB)


@pytest.mark.parametrize("when", ["look", "flush"])
def test_a_source_may_grow_under_a_sweep(host: Host, when: str) -> None:
    """Growth is seen by another thread than the one that sweeps."""
    host.write(5)
    host.acked = host.head
    host.pass_s(CLEAR_AFTER_S)

    def grow() -> None:
        if host.count == COUNT:
            host.log.resize((COUNT + 100) * MIB)
            host.count = COUNT + 100

    def look() -> Standing:
        if when == "look":
            grow()
        return host.look()

    for _ in range(3):
        host.now_s += SWEEP_INTERVAL_S
        host.log.sweep(host.now_s, look, grow)
    assert host.regions == set(range(COUNT, COUNT + 100))
    assert set_in(host.file.seen, COUNT + 100) == host.regions


def test_growth_is_swept_like_all_else(host: Host) -> None:
    host.write(8999)
    host.log.resize((COUNT + 100) * MIB)
    host.count = COUNT + 100
    host.acked = host.head
    assert host.pass_s(300) == 101
    host.write(COUNT + 50)
    assert host.regions == {COUNT + 50}
