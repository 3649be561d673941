"""The activity log: what is set, when it is on the disk, and which log is believed."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from agent.activity_log import AHEAD_REGIONS_MAX, ActivityLog, path_of
from agent.clean_stop import CleanStop
from agent.source import SourceIdentity
from agent.state_file import HOST_FILES
from tests.activity_disk import MIB, SimDisk, SimFile, regions_of, set_in, source

PATH = Path("/state/agent/v.activity")
SIZE = 9000 * MIB - 5  # three sectors of the map, two pages of the file apart from them
COUNT = 9000


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk()


@pytest.fixture
def log(disk: SimDisk) -> ActivityLog:
    return ActivityLog.create(PATH, "v", source(SIZE), owed=False, files=disk)


@pytest.fixture
def file(disk: SimDisk, log: ActivityLog) -> SimFile:
    return disk.files[PATH]


def reopened(disk: SimDisk) -> ActivityLog | None:
    return ActivityLog.open(PATH, "v", source(SIZE), files=disk)


class TestTouch:
    def test_a_region_is_on_the_disk_before_the_write(self, log: ActivityLog, file: SimFile) -> None:
        log.touch(5 * MIB + 4096, 5 * MIB + 8192)
        assert set_in(file.kept, COUNT) == {5}
        assert log.regions() == [(5 * MIB, 6 * MIB)]

    def test_a_hit_costs_no_io(self, log: ActivityLog, file: SimFile) -> None:
        log.touch(5 * MIB, 7 * MIB)
        before = file.syncs, file.writes
        for start in (5 * MIB, 6 * MIB - 1, 6 * MIB, 7 * MIB - 1):
            for end in (start + 1, 7 * MIB):
                log.touch(start, end)
        assert (file.syncs, file.writes) == before

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 1, {0}),
            (MIB - 1, MIB + 1, {0, 1}),
            (MIB - 1, MIB, {0}),
            (4031 * MIB, 4033 * MIB, {4031, 4032}),
            (4000 * MIB, 8100 * MIB, set(range(4000, 8100))),
            (SIZE - 1, SIZE, {COUNT - 1}),
            (0, SIZE, set(range(COUNT))),
        ],
    )
    def test_extents(self, log: ActivityLog, file: SimFile, start: int, end: int, expected: set[int]) -> None:
        log.touch(start, end)
        assert set_in(file.kept, COUNT) == regions_of(log.regions()) == expected

    def test_an_extent_that_is_set_in_part(self, log: ActivityLog, file: SimFile) -> None:
        log.touch(7 * MIB, 8 * MIB)
        log.touch(5 * MIB, 9 * MIB)
        assert set_in(file.kept, COUNT) == {5, 6, 7, 8}

    def test_the_last_extent_ends_with_the_volume(self, log: ActivityLog) -> None:
        log.touch(SIZE - 1, SIZE)
        assert log.regions() == [((COUNT - 1) * MIB, SIZE)]

    def test_a_write_in_sequence_finds_its_regions_set(self, log: ActivityLog, file: SimFile) -> None:
        """As many are set ahead as are set already: one sync each time the sequence has doubled, then one for every 33."""
        for region in range(1000):
            log.touch(region * MIB, (region + 1) * MIB)
        assert file.syncs <= 6 + 1000 // (AHEAD_REGIONS_MAX + 1) + 1
        assert set_in(file.kept, COUNT) >= set(range(1000))
        assert max(set_in(file.kept, COUNT)) < 1000 + AHEAD_REGIONS_MAX

    def test_ahead_ends_with_the_volume(self, log: ActivityLog, file: SimFile) -> None:
        log.owe((COUNT - 12) * MIB, (COUNT - 2) * MIB)
        log.touch((COUNT - 2) * MIB, (COUNT - 2) * MIB + 1)
        assert set_in(file.kept, COUNT) == set(range(COUNT - 12, COUNT))

    def test_scattered_writes_set_nothing_but_their_own(self, log: ActivityLog, file: SimFile) -> None:
        for region in range(0, COUNT, 2):
            log.touch(region * MIB, region * MIB + 1)
        assert set_in(file.kept, COUNT) == set(range(0, COUNT, 2))

    def test_an_extent_outside_is_refused(self, log: ActivityLog) -> None:
        for start in (SIZE + 5, SIZE - MIB):
            with pytest.raises((AssertionError, IndexError)):
                log.touch(start, SIZE + 2 * MIB)
        log.touch(0, SIZE)


class TestOwe:
    def test_a_debt_is_on_the_disk(self, log: ActivityLog, file: SimFile) -> None:
        log.owe(100 * MIB + 1, 4500 * MIB)
        assert set_in(file.kept, COUNT) == set(range(100, 4500))
        assert file.syncs == 1
        log.owe(200 * MIB, 300 * MIB)
        assert file.syncs == 1

    def test_many_debts_share_a_sync(self, log: ActivityLog, file: SimFile) -> None:
        log.owe_all([(region * MIB, region * MIB + 1) for region in range(0, COUNT, 3)])
        assert set_in(file.kept, COUNT) == set(range(0, COUNT, 3))
        assert file.syncs == 1
        log.owe_all([(0, 1), (3 * MIB, 4 * MIB)])
        log.owe_all([])
        assert file.syncs == 1

    def test_a_debt_of_nothing(self, log: ActivityLog, file: SimFile) -> None:
        log.owe(MIB, MIB)
        log.owe(0, 0)
        assert log.regions() == []

    def test_a_volume_of_ten_tib(self, disk: SimDisk) -> None:
        size = 10 << 40
        log = ActivityLog.create(PATH, "v", source(size), owed=False, files=disk)
        log.owe(0, size)
        assert log.regions() == [(0, size)]
        found = ActivityLog.open(PATH, "v", source(size), files=disk)
        assert found is not None
        assert found.regions() == [(0, size)]

    def test_a_new_log_can_be_born_with_its_debt(self, disk: SimDisk) -> None:
        ActivityLog.create(PATH, "v", source(SIZE), owed=True, files=disk)
        assert set_in(disk.files[PATH].kept, COUNT) == set(range(COUNT))
        found = reopened(disk)
        assert found is not None
        assert found.regions() == [(0, SIZE)]


class TestFailure:
    @pytest.mark.parametrize("what", ["pwrite", "fdatasync"])
    def test_is_sticky(self, log: ActivityLog, file: SimFile, what: str) -> None:
        log.touch(0, 1)
        assert log.failure is None
        file.errors[what] = errno.EIO
        with pytest.raises(OSError) as first:
            log.touch(5 * MIB, 5 * MIB + 1)
        assert first.value.errno == errno.EIO
        file.errors.clear()
        for extent in ((5 * MIB, 5 * MIB + 1), (9 * MIB, 10 * MIB), (0, 3 * MIB)):
            with pytest.raises(OSError, match="could not be made durable"):
                log.touch(*extent)
        for refused in (lambda: log.owe(MIB, 2 * MIB), log.unmark_clean, log.unmark_fenced, lambda: log.mark_fenced("x")):
            with pytest.raises(OSError):
                refused()
        assert log.failure is not None
        assert log.failure.errno == errno.EIO
        log.touch(0, 1)  # what is set stays set

    def test_a_bit_that_only_the_page_cache_has_is_written_again(self, log: ActivityLog, disk: SimDisk, file: SimFile) -> None:
        """The process that set it was killed before the sync, or the sync failed: the next one would take it for durable."""
        file.errors["fdatasync"] = errno.EIO
        with pytest.raises(OSError):
            log.touch(5 * MIB, 5 * MIB + 1)
        file.errors.clear()
        assert set_in(file.seen, COUNT) == {5}
        assert set_in(file.kept, COUNT) == set()
        found = reopened(disk)
        assert found is not None
        found.touch(5 * MIB, 5 * MIB + 1)
        assert set_in(file.kept, COUNT) == {5}

    def test_a_log_that_can_not_be_written_is_not_opened(self, log: ActivityLog, disk: SimDisk, file: SimFile) -> None:
        file.errors["fdatasync"] = errno.EIO
        with pytest.raises(OSError):
            reopened(disk)

    def test_a_full_disk_does_not_matter(self, log: ActivityLog, disk: SimDisk, file: SimFile) -> None:
        disk.full = True
        log.owe(0, SIZE)
        log.mark_clean(CleanStop("topic", "position", source(SIZE)))
        log.mark_fenced("somebody")
        log.unmark_clean()
        assert reopened(disk) is not None


class TestBelief:
    def test_goes_on_where_it_was(self, log: ActivityLog, disk: SimDisk) -> None:
        log.touch(3 * MIB, 4 * MIB)
        found = reopened(disk)
        assert found is not None
        assert found.regions() == [(3 * MIB, 4 * MIB)]

    def test_none_of_another_volume_source_or_size(self, log: ActivityLog, disk: SimDisk) -> None:
        assert ActivityLog.open(PATH, "w", source(SIZE), files=disk) is None
        assert ActivityLog.open(PATH, "v", source(SIZE, inode=78), files=disk) is None
        assert ActivityLog.open(PATH, "v", source(SIZE + 1), files=disk) is None
        assert ActivityLog.open(PATH.with_name("w.activity"), "v", source(SIZE), files=disk) is None
        assert reopened(disk) is not None

    def test_the_source_may_have_another_time(self, log: ActivityLog, disk: SimDisk) -> None:
        assert ActivityLog.open(PATH, "v", SourceIdentity(77, SIZE, 99), files=disk) is not None

    def test_none_with_a_damaged_header(self, log: ActivityLog, disk: SimDisk, file: SimFile) -> None:
        for at in range(512):
            file.seen[at] ^= 0x40
            assert reopened(disk) is None, f"byte {at}"
            file.seen[at] ^= 0x40
        assert reopened(disk) is not None

    @pytest.mark.parametrize("length", [0, 100, 511])
    def test_none_cut_short_in_the_header(self, log: ActivityLog, file: SimFile, disk: SimDisk, length: int) -> None:
        del file.seen[length:]
        assert reopened(disk) is None

    def test_none_that_can_not_be_read(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        file.errors["pread"] = errno.EIO
        assert reopened(disk) is None

    def test_a_damaged_sector_counts_as_set(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        log.touch(8999 * MIB, 8999 * MIB + 1)
        second = 3 * 4096 + 512
        file.seen[second + 17] ^= 1
        found = reopened(disk)
        assert found is not None
        assert found.regions() == [(4032 * MIB, 8064 * MIB), (8999 * MIB, SIZE)]
        assert set_in(file.kept, COUNT) == {*range(4032, 8064), 8999}
        assert file.seen[second + 17] == 0xFF

    @pytest.mark.parametrize("length", [3 * 4096, 3 * 4096 + 511, 3 * 4096 + 700])
    def test_missing_sectors_count_as_set(self, log: ActivityLog, file: SimFile, disk: SimDisk, length: int) -> None:
        del file.seen[length:]
        found = reopened(disk)
        assert found is not None
        first = 0 if length < 3 * 4096 + 512 else 4032
        assert found.regions() == [(first * MIB, SIZE)]


class TestResize:
    def test_growth_is_set(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        log.touch(0, 1)
        log.resize(SIZE + 20_000 * MIB)
        expected = {0, *range(COUNT - 1, COUNT + 20_000)}
        assert set_in(file.kept, COUNT + 20_000) == expected
        assert log.regions() == [(0, MIB), ((COUNT - 1) * MIB, SIZE + 20_000 * MIB)]
        log.touch(SIZE + 10_000 * MIB, SIZE + 10_001 * MIB)
        found = ActivityLog.open(PATH, "v", source(SIZE + 20_000 * MIB), files=disk)
        assert found is not None
        assert regions_of(found.regions()) == expected

    def test_growth_inside_the_last_region(self, log: ActivityLog, file: SimFile) -> None:
        log.resize(SIZE + 5)
        assert set_in(file.kept, COUNT) == {COUNT - 1}
        assert log.regions() == [((COUNT - 1) * MIB, SIZE + 5)]

    @pytest.mark.parametrize("what", ["extend", "pwrite", "fdatasync"])
    def test_what_fails_leaves_a_log_of_the_old_size(self, log: ActivityLog, file: SimFile, disk: SimDisk, what: str) -> None:
        file.errors[what] = errno.EIO
        with pytest.raises(OSError):
            log.resize(SIZE + 9000 * MIB)
        file.errors.clear()
        assert log.size_bytes == SIZE
        found = reopened(disk)
        assert found is not None
        found.touch(0, 1)

    def test_the_header_comes_last(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        """A power cut between the two syncs: still the log of the old size, or none of the new one."""

        def fail_second() -> None:
            if file.syncs == 2:
                file.errors["fdatasync"] = errno.EIO

        file.before_sync = fail_second
        with pytest.raises(OSError):
            log.resize(SIZE + MIB)
        file.errors.clear()
        file.cut_power(512, lambda count: [])
        assert ActivityLog.open(PATH, "v", source(SIZE + MIB), files=disk) is None
        assert reopened(disk) is not None


def test_writes_that_miss_at_once_share_a_sync(log: ActivityLog, file: SimFile) -> None:
    threads = 24
    entered = threading.Semaphore(0)
    held = threading.Event()

    def hold() -> None:
        if file.syncs == 1:
            held.wait(10)

    def write(region: int) -> None:
        entered.release()
        log.touch(region * 10 * MIB, region * 10 * MIB + 1)
        assert region * 10 in set_in(file.kept, COUNT)

    file.before_sync = hold
    running = [threading.Thread(target=write, args=(region,)) for region in range(threads)]
    for one in running:
        one.start()
    for _ in running:
        entered.acquire()
    while len(log._commits._next.changes) < threads - 1:
        assert any(one.is_alive() for one in running)
    held.set()
    for one in running:
        one.join(10)
    assert file.syncs == 2, "one for the first, one for all the others"
    assert set_in(file.kept, COUNT) == {region * 10 for region in range(threads)}


def test_a_real_file_is_private_and_whole(tmp_path: Path) -> None:
    path = path_of(tmp_path, "v")
    path.parent.mkdir()
    log = ActivityLog.create(path, "v", source(SIZE), owed=False)
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_size) == (0o600, 3 * 4096 + 4096)
    assert found.st_blocks * 512 >= found.st_size
    assert list(path.parent.iterdir()) == [path]
    log.touch(7 * MIB, 8 * MIB)
    log.close()
    reopened = ActivityLog.open(path, "v", source(SIZE))
    assert reopened is not None
    assert reopened.regions() == [(7 * MIB, 8 * MIB)]
    reopened.resize(SIZE + 200_000 * MIB)
    assert path.stat().st_size == 3 * 4096 + 7 * 4096
    reopened.close()
    reopened.close()
    with pytest.raises(OSError):
        reopened.fenced()
    ActivityLog.remove(path)
    ActivityLog.remove(path)
    assert not path.exists()
    assert ActivityLog.open(path, "v", source(SIZE)) is None
    with pytest.raises(FileNotFoundError):
        HOST_FILES.open(path)
