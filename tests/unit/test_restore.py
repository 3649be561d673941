"""Restore: what is written is the image, proved; nothing is replaced unasked; a killed one goes on; a damaged source leaves nothing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from nbd.blockfile import BlockFile
from recovery.readback import Readback
from recovery.restore import Restore, Restored
from recovery.restore_journal import RestoreJournal
from recovery.restore_target import RestoreTarget, open_alone
from recovery.runs import REGION_BYTES, Run, Runs, digest_of, gaps_between, pack_runs, unpack_runs
from stream.errors import ConfigError, IntegrityError, RetryError
from stream.position import Position
from tests.recovery_parts import FakeImage, sparse_bytes

SIZE = 40 << 20
WINDOW = REGION_BYTES


class Interrupted(BaseException):
    """Stands for SIGKILL in the middle of a write."""


def restore(image: FakeImage, path: Path, *, force: bool = False, watch=lambda *_: None) -> Restored:
    target = RestoreTarget(path, image.size_bytes, force=force)
    try:
        return Restore(image, target, watch=watch, window_bytes=WINDOW).run()
    finally:
        target.close()


@pytest.mark.parametrize("size", [SIZE, SIZE + 4096 + 17, 5])
def test_a_restored_file_is_the_image(tmp_path: Path, size: int) -> None:
    image = FakeImage(sparse_bytes(size, 3) if size > 5 else b"hello")
    done = restore(image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.data
    assert os.listdir(tmp_path) == ["out"], "nothing is left beside it"
    assert done.size_bytes == size and done.kept_bytes == 0 and done.written_bytes == done.data_bytes > 0


def test_holes_stay_holes(tmp_path: Path) -> None:
    data = bytearray(SIZE)
    data[1 << 20 : (1 << 20) + 4096] = b"x" * 4096
    restore(FakeImage(data), tmp_path / "out")
    assert (tmp_path / "out").stat().st_blocks * 512 <= 1 << 20
    assert (tmp_path / "out").stat().st_size == SIZE


def test_an_existing_file_is_replaced_only_when_told_and_only_when_all_is_proved(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    image = FakeImage(sparse_bytes(SIZE, 4))
    with pytest.raises(ConfigError, match="exists already"):
        restore(image, path)
    seen = []
    restore(image, path, force=True, watch=lambda what, *_: seen.append((what, path.read_bytes()[:8])))
    assert {what for what, _ in seen} >= {"write", "verify"} and {before for _, before in seen} == {b"precious"}
    assert path.read_bytes() == image.data and path.stat().st_mode & 0o777 == 0o640


def test_what_is_locked_or_no_volume_is_refused(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_bytes(b"source of an agent")
    with held.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RetryError, match="in use"):
            RestoreTarget(held, 5, force=True)
    with pytest.raises(ConfigError, match="folder"):
        RestoreTarget(tmp_path, 5, force=True)
    with pytest.raises(ConfigError, match="no folder"):
        RestoreTarget(tmp_path / "no" / "where", 5, force=False)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither"):
        RestoreTarget(tmp_path / "pipe", 5, force=True)
    (tmp_path / "mine.restoring").write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="in the way"):
        RestoreTarget(tmp_path / "mine", 5, force=False)


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    image, path = FakeImage(sparse_bytes(SIZE, 6)), tmp_path / "out"

    def appear(what: str, *_: object) -> None:
        if what == "verify" and not path.exists():
            path.write_bytes(b"somebody's")

    with pytest.raises(ConfigError, match="appeared meanwhile"):
        restore(image, path, watch=appear)
    assert path.read_bytes() == b"somebody's"


def test_a_file_that_is_in_use_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "held").write_bytes(b"source of an agent")
    with (tmp_path / "held").open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RetryError, match="in use"):
            open_alone(tmp_path / "held")
    mine = open_alone(tmp_path / "held")
    with pytest.raises(RetryError, match="in use"):
        open_alone(tmp_path / "held")
    mine.close()


def test_windows_are_durable_before_they_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    sync, append = BlockFile.sync, RestoreJournal.append
    monkeypatch.setattr(BlockFile, "sync", lambda self: (told.append("durable"), sync(self))[1])
    monkeypatch.setattr(RestoreJournal, "append", lambda self, *rest: (told.append("written down"), append(self, *rest))[1])
    restore(FakeImage(sparse_bytes(SIZE, 7)), tmp_path / "out")
    assert told.count("written down") > 1
    assert all(before == "durable" for before, what in zip(["", *told], told, strict=False) if what == "written down")


def test_an_unfinished_file_of_somebody_else_is_begun_anew(tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 8, extents=200))

    def kill(what: str, done_bytes: int, _: int) -> None:
        if what == "write" and done_bytes >= 3 * WINDOW:
            raise Interrupted

    with pytest.raises(Interrupted):
        restore(image, tmp_path / "out", watch=kill)
    (tmp_path / "other").write_bytes(bytes(SIZE))
    os.replace(tmp_path / "other", tmp_path / "out.restoring")
    assert restore(image, tmp_path / "out").kept_bytes == 0
    assert (tmp_path / "out").read_bytes() == image.data


def test_a_killed_restore_goes_on_where_it_was(tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 5, extents=200))

    def kill(what: str, done_bytes: int, _: int) -> None:
        if what == "write" and done_bytes >= 3 * WINDOW:
            raise Interrupted

    with pytest.raises(Interrupted):
        restore(image, tmp_path / "out", watch=kill)
    assert sorted(os.listdir(tmp_path)) == ["out.restoring", "out.restoring.journal"]
    image.swept.clear()
    done = restore(image, tmp_path / "out")
    assert min(start for start, _ in image.swept) >= 2 * WINDOW and done.kept_bytes > 0
    assert (tmp_path / "out").read_bytes() == image.data and os.listdir(tmp_path) == ["out"]


def test_what_a_killed_restore_wrote_of_another_point_does_not_count(tmp_path: Path) -> None:
    def kill(what: str, *_: int) -> None:
        if what == "verify":
            raise Interrupted

    with pytest.raises(Interrupted):
        restore(FakeImage(sparse_bytes(SIZE, 6)), tmp_path / "out", watch=kill)
    other = FakeImage(sparse_bytes(SIZE, 7), position=Position(1, 101))
    assert restore(other, tmp_path / "out").kept_bytes == 0
    assert (tmp_path / "out").read_bytes() == other.data


def test_what_changed_since_it_was_written_is_found(tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 8, extents=200))

    def meddle(what: str, done_bytes: int, of_bytes: int) -> None:
        if what == "write" and done_bytes == of_bytes:
            with (tmp_path / "out.restoring").open("rb+") as file:
                file.seek(place)
                byte = file.read(1)
                file.seek(place)
                file.write(bytes([byte[0] ^ 1]))
                os.fsync(file.fileno())

    data = next(index for index, byte in enumerate(image.data) if byte)
    hole = image.data.index(bytes(4096), 9 << 20) + 2048
    for place in (data, hole):  # noqa: B007 - read by meddle
        with pytest.raises(IntegrityError, match="reads back"):
            restore(image, tmp_path / "out", watch=meddle)
        assert os.listdir(tmp_path) == []


def test_a_damaged_store_leaves_nothing_and_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    data = sparse_bytes(SIZE, 9)
    data[30 << 20] = 1
    with pytest.raises(IntegrityError, match="checksum"):
        restore(FakeImage(data, fails_at=30 << 20), tmp_path / "out", force=True)
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_bytes() == b"precious"


def test_two_restores_to_one_target_do_not_mix(tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 10))
    refused = []

    def again(what: str, *_: int) -> None:
        if what == "verify" and not refused:
            with pytest.raises(RetryError, match="Another restore"):
                restore(image, tmp_path / "out")
            refused.append(True)

    restore(image, tmp_path / "out", watch=again)
    assert refused and (tmp_path / "out").read_bytes() == image.data


def test_a_damaged_journal_counts_up_to_the_damage(tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 11, extents=200))

    def kill(what: str, *_: int) -> None:
        if what == "verify":
            raise Interrupted

    with pytest.raises(Interrupted):
        restore(image, tmp_path / "out", watch=kill)
    journal = tmp_path / "out.restoring.journal"
    raw = bytearray(journal.read_bytes())
    raw[len(raw) // 2] ^= 1
    journal.write_bytes(raw)
    done = restore(image, tmp_path / "out")
    assert 0 < done.kept_bytes < done.data_bytes
    assert (tmp_path / "out").read_bytes() == image.data


def test_runs_keep_account_by_region() -> None:
    runs = [Run(5, 9, 1), Run(REGION_BYTES, REGION_BYTES + 1, 2**64 - 1), Run(1, 2, 0)]
    kept = Runs(runs)
    assert list(kept) == sorted(runs) and kept.total_bytes == 6
    assert list(unpack_runs(pack_runs(kept))) == sorted(runs)
    assert gaps_between(kept.region(0), 0, 12) == [(0, 1), (2, 5), (9, 12)]


def test_reading_back_needs_no_direct_access(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    path.write_bytes(b"abc" + bytes(REGION_BYTES))
    readback = Readback(path, REGION_BYTES + 3, Runs([Run(0, 3, digest_of(memoryview(b"abc")))]))
    if readback.direct:
        os.close(readback._direct_fd)
        readback._direct_fd = -1
    assert readback.run() > 0
    readback.close()
