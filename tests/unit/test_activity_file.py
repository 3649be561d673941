"""The file of the activity log: its bytes as docs/activity_log.md tells them, and the markers in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.activity_log import ActivityLog
from agent.clean_stop import CleanStop
from agent.source import SourceIdentity
from tests.activity_disk import MIB, SimDisk, SimFile, set_in
from tests.tidy.tree import ROOT

PATH = Path("/state/agent/golden.activity")
SOURCE = SourceIdentity(0x1122334455667788, 5000 * MIB - 512, 1_700_000_000_123_456_789)
MARKER = CleanStop("Zm9vYmFy", "00000003-0000000000000042", SOURCE)
FENCED_BY = "host-b, epoch 4"
CLEAN_AT, FENCE_AT = 4096, 8192
GOLDEN = {
    0: "484f414354495645010000000000100000fe7f38010000008877665544332211676f6c64656e",
    504: "e61e06ecd1a5520d",
    CLEAN_AT: "7b22626f6479223a20227b5c22706f736974696f6e5c223a205c2230303030303030332d303030303030303030303030303034325c222c205c22736f7572"
    "63655c223a207b5c22696e6f64655c223a20313233343630353631363433363530383535322c205c226d74696d655f6e735c223a20313730303030303030303132333435363738"
    "392c205c2273697a655f62797465735c223a20353234323837393438387d2c205c22746f7069635f69645c223a205c225a6d3976596d46795c227d222c202263686563"
    "6b73756d223a202262343066616266663263363966353362227d",
    FENCE_AT: "7b22626f6479223a2022686f73742d622c2065706f63682034222c2022636865636b73756d223a202262303930616531366461393137396365227d",
    12288: "0106",
    12288 + 504: "c043a1b2f18ec73c",
    12800: "02",
    12800 + 120: "c0",
    12800 + 504: "4e56c4245cc50ff9",
}
"""Every byte that is not zero, of a file of 16 KiB."""


def golden() -> bytes:
    content = bytearray(16384)
    for at, digits in GOLDEN.items():
        content[at : at + len(digits) // 2] = bytes.fromhex(digits)
    return bytes(content)


@pytest.fixture
def disk() -> SimDisk:
    disk = SimDisk()
    disk.make(PATH, golden())
    return disk


@pytest.fixture
def log(disk: SimDisk) -> ActivityLog:
    return reopened(disk)


@pytest.fixture
def file(disk: SimDisk) -> SimFile:
    return disk.files[PATH]


def reopened(disk: SimDisk) -> ActivityLog:
    found = ActivityLog.open(PATH, "golden", SOURCE, files=disk)
    assert found is not None
    return found


def test_todays_code_reads_the_golden_file(log: ActivityLog) -> None:
    assert log.regions() == [(0, MIB), (9 * MIB, 11 * MIB), (4033 * MIB, 4034 * MIB), (4998 * MIB, SOURCE.size_bytes)]
    assert log.clean() == MARKER
    assert log.fenced() == FENCED_BY


def test_todays_code_writes_the_golden_file(disk: SimDisk) -> None:
    disk.files.clear()
    log = ActivityLog.create(PATH, "golden", SOURCE, owed=False, files=disk)
    log.touch(0, 1)
    log.touch(9 * MIB, 11 * MIB)
    log.touch(4033 * MIB, 4033 * MIB + 1)
    log.owe(4999 * MIB - 1, SOURCE.size_bytes)
    log.mark_clean(MARKER)
    log.mark_fenced(FENCED_BY)
    assert bytes(disk.files[PATH].kept) == golden()


def test_opening_changes_nothing(log: ActivityLog, file: SimFile) -> None:
    assert bytes(file.kept) == bytes(file.seen) == golden()


def test_the_tables_of_the_page_are_these_bytes() -> None:
    page = (ROOT / "docs" / "activity_log.md").read_text(encoding="utf-8")
    header, sector = [
        [(int(at), int(size), field) for at, size, field in re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", part, re.MULTILINE)]
        for part in (page.partition("## The header")[2].partition("## The markers")[0], page.partition("## The map")[2])
    ]
    content = golden()
    wanted = {
        "magic": b"HOACTIVE",
        "version": b"\1\0\0\0",
        "bytes of a region": b"\0\0\x10\0",
        "size of the source": (5000 * MIB - 512).to_bytes(8, "little"),
        "inode": bytes.fromhex("8877665544332211"),
        "name": b"golden".ljust(64, b"\0"),
        "zero": bytes(408),
        "xxh3_64": bytes.fromhex(GOLDEN[504]),
    }
    assert [at for at, _, _ in header] == [sum(size for _, size, _ in header[:number]) for number in range(len(header))]
    assert [(at, size) for at, size, _ in sector] == [(0, 504), (504, 8)]
    assert len(header) == len(wanted)
    for (at, size, field), (begins, value) in zip(header, wanted.items(), strict=True):
        assert field.startswith(begins)
        assert content[at : at + size] == value, field
    parts = dict(re.findall(r"^\| (\d+) \| (?:4096|the rest) \| (.*) \|$", page, re.MULTILINE))
    assert parts == {"0": "header", "4096": "clean-stop marker", "8192": "fence", "12288": "map"}


class TestCleanStop:
    def test_comes_and_goes_durably(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        log.unmark_clean()
        assert log.clean() is None
        assert bytes(file.kept[CLEAN_AT : CLEAN_AT + 4096]) == bytes(4096)
        log.unmark_clean()
        log.mark_clean(MARKER)
        assert bytes(file.kept) == golden()
        assert reopened(disk).clean() == MARKER

    def test_no_damaged_marker_is_believed(self, log: ActivityLog, file: SimFile) -> None:
        length = len(GOLDEN[CLEAN_AT]) // 2
        for at in range(CLEAN_AT, CLEAN_AT + length + 3):
            for change in (1, 0x10, 0x80):
                file.seen[at] ^= change
                assert log.clean() in (None, MARKER), f"byte {at}"
                file.seen[at] ^= change

    def test_no_cut_marker_is_believed(self, log: ActivityLog, file: SimFile) -> None:
        for at in reversed(range(CLEAN_AT, CLEAN_AT + len(GOLDEN[CLEAN_AT]) // 2)):
            file.seen[at] = 0
            assert log.clean() is None

    @pytest.mark.parametrize(
        "text", ["null", "[]", "7", '"x"', "{}", '{"body": 5, "checksum": "x"}', '{"body": "{}", "checksum": 1}', "\udcff", "{"]
    )
    def test_nonsense_is_no_marker(self, log: ActivityLog, file: SimFile, text: str) -> None:
        file.seen[CLEAN_AT : CLEAN_AT + 4096] = text.encode(errors="surrogateescape").ljust(4096, b"\0")
        assert log.clean() is None

    def test_another_log_has_none(self, disk: SimDisk) -> None:
        assert ActivityLog.create(PATH, "golden", SOURCE, owed=True, files=disk).clean() is None


class TestFence:
    def test_comes_and_goes_durably(self, log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
        log.unmark_fenced()
        assert log.fenced() is None
        assert bytes(file.kept[FENCE_AT : FENCE_AT + 4096]) == bytes(4096)
        log.mark_fenced(FENCED_BY)
        assert bytes(file.kept) == golden()
        assert reopened(disk).fenced() == FENCED_BY

    def test_a_text_may_have_any_length(self, log: ActivityLog) -> None:
        log.mark_fenced("ü𝄞" * 3000)
        assert (log.fenced() or "").startswith("ü𝄞ü𝄞")

    def test_a_damaged_flag_stands(self, log: ActivityLog, file: SimFile) -> None:
        for at in range(FENCE_AT, FENCE_AT + 4096):
            file.seen[at] ^= 0x20
            assert log.fenced() is not None, f"byte {at}"
            file.seen[at] ^= 0x20

    @pytest.mark.parametrize("source", [SOURCE, SourceIdentity(1, 7 * MIB, 0)])
    def test_stays_when_the_log_is_made_anew(self, disk: SimDisk, file: SimFile, source: SourceIdentity) -> None:
        """A fenced volume never claims again by itself, whatever became of its header or its source."""
        file.seen[0] ^= 1
        assert ActivityLog.open(PATH, "golden", SOURCE, files=disk) is None
        assert ActivityLog.create(PATH, "golden", source, owed=True, files=disk).fenced() == FENCED_BY

    def test_is_seen_before_anything_is_opened(self, disk: SimDisk, file: SimFile) -> None:
        assert ActivityLog.fence_at(PATH, disk) == FENCED_BY
        reopened(disk).unmark_fenced()
        assert ActivityLog.fence_at(PATH, disk) is None
        assert bytes(file.kept[FENCE_AT : FENCE_AT + 4096]) == bytes(4096)
        assert ActivityLog.fence_at(PATH.with_name("other.activity"), disk) is None

    def test_goes_with_the_log(self, disk: SimDisk) -> None:
        ActivityLog.remove(PATH, disk)
        assert ActivityLog.create(PATH, "golden", SOURCE, owed=True, files=disk).fenced() is None


def test_a_power_cut_while_marking_harms_nothing(log: ActivityLog, file: SimFile, disk: SimDisk) -> None:
    """Of each page any part may be on the disk: the clean stop is whole or none, the fence stands or was never there."""
    log.unmark_clean()
    log.unmark_fenced()
    kept = bytes(file.kept)
    for first in range(0, 256, 8):
        file.kept[:] = kept
        file.seen[:] = kept
        file.pwrite(CLEAN_AT, golden()[CLEAN_AT : CLEAN_AT + 4096])
        file.pwrite(FENCE_AT, golden()[FENCE_AT : FENCE_AT + 4096])
        file.cut_power(8, lambda count, first=first: [piece for piece in range(count) if piece % 512 < first])
        found = reopened(disk)
        assert found.clean() in (None, MARKER)
        assert (found.fenced() is None) == (first == 0)
        assert set_in(file.kept, 5000) == set_in(kept, 5000)
