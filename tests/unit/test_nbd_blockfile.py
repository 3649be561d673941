"""BlockFile on a real file: whole writes or errors, holes, and the ways round what a file system can't do."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import nbd.blockfile as blockfile
from nbd.blockfile import EXTENT_DATA, EXTENT_HOLE, BlockFile

SIZE_BYTES = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE_BYTES))
    return path


@pytest.fixture
def file(path: Path) -> Iterator[BlockFile]:
    file = BlockFile(path)
    yield file
    file.close()


def read(file: BlockFile, offset: int, length: int) -> bytes:
    into = bytearray(length)
    file.read(offset, memoryview(into))
    return bytes(into)


def test_measures(file: BlockFile, path: Path) -> None:
    assert file.measure() == SIZE_BYTES
    os.truncate(path, 100)
    assert file.measure() == 100


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("cuts", [(), (1,), (100, 4096, 70_000)])
def test_writes_pieces_in_order(file: BlockFile, durable: bool, cuts: tuple[int, ...]) -> None:
    payload = random.Random(1).randbytes(100_000)
    bounds = [0, *cuts, len(payload)]
    pieces = [memoryview(payload)[a:b] for a, b in pairwise(bounds)]
    file.write(777, pieces if cuts else pieces[0], len(payload), durable)
    assert read(file, 777, len(payload)) == payload


def test_writes_more_pieces_than_a_call_takes(file: BlockFile) -> None:
    payload = random.Random(2).randbytes(5000)
    file.write(0, [memoryview(payload)[n : n + 1] for n in range(5000)], 5000)
    assert read(file, 0, 5000) == payload


@pytest.mark.parametrize("durable", [False, True])
def test_goes_on_after_a_short_write(file: BlockFile, durable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real, real_vector = os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:1000], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at, flags=0: real_vector(fd, [views[0][:1000]], at, flags))
    payload = random.Random(3).randbytes(4500)
    view = memoryview(payload)
    file.write(10, view, 4500, durable)
    file.write(10_000, [view[:1500], view[1500:]], 4500, durable)
    assert read(file, 10, 4500) == payload
    assert read(file, 10_000, 4500) == payload


def test_a_write_that_is_not_taken_is_an_error(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="took nothing"):
        file.write(0, memoryview(b"abc"), 3)


def test_makes_durable_without_dsync(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.pwritev, []

    def no_flags(fd: int, views: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no flags here")
        return real(fd, views, at)

    monkeypatch.setattr(os, "pwritev", no_flags)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    file.write(0, memoryview(b"abc"), 3, True)
    assert read(file, 0, 3) == b"abc"
    assert len(synced) == 1


def test_what_is_durable_at_once_leaves_errors_for_sync(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells an open file once what it could not write back, of whatever was written: `sync` must be the one to hear it."""
    real, used = os.pwritev, []
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at, flags=0: (used.append(fd), real(fd, views, at, flags))[1])
    monkeypatch.setattr(os, "fdatasync", used.append)
    file.write(0, memoryview(b"abc"), 3, True)
    file.zero(0, 4096, punch=True, durable=True)
    file.trim(0, 4096, durable=True)
    assert len(used) == 3
    assert file.fd not in used
    for fd in used:
        assert os.path.samestat(os.fstat(fd), os.fstat(file.fd))
    file.sync()
    assert used[3:] == [file.fd]


def test_a_file_that_shrank_is_an_error(file: BlockFile, path: Path) -> None:
    os.truncate(path, 1000)
    with pytest.raises(OSError, match="ends inside") as caught:
        read(file, 500, 1000)
    assert caught.value.errno == errno.EIO


def test_goes_on_after_a_short_read(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(0, memoryview(b"0123456789" * 100), 1000)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at, *flags: real(fd, [views[0][:300]], at, *flags))
    assert read(file, 0, 1000) == b"0123456789" * 100
    assert not file.read_cached(0, memoryview(bytearray(1000))), "a short read is a miss"


def test_a_cache_that_can_t_tell_is_read_plainly(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(0, memoryview(b"abc"), 3)
    real = os.preadv

    def no_flags(fd: int, views: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no flags here")
        return real(fd, views, at)

    monkeypatch.setattr(os, "preadv", no_flags)
    for _ in range(2):
        into = bytearray(3)
        assert file.read_cached(0, memoryview(into))
        assert into == b"abc"


def test_a_miss_is_told(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", miss)
    assert not file.read_cached(0, memoryview(bytearray(3)))


def test_other_failures_of_the_cache_are_errors(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="bad sector"):
        file.read_cached(0, memoryview(bytearray(3)))


def test_punches_and_zeroes(file: BlockFile, path: Path) -> None:
    file.write(0, memoryview(b"x" * SIZE_BYTES), SIZE_BYTES)
    full = path.stat().st_blocks
    file.zero(1 << 20, 1 << 20, punch=True, durable=True)
    assert path.stat().st_blocks < full
    assert file.extents(0, SIZE_BYTES, 10) == [(1 << 20, EXTENT_DATA), (1 << 20, EXTENT_HOLE), (2 << 20, EXTENT_DATA)]
    punched = path.stat().st_blocks
    file.zero(2 << 20, 1 << 20, punch=False)
    assert path.stat().st_blocks == punched
    assert read(file, 1 << 20, 2 << 20) == bytes(2 << 20)
    assert read(file, 3 << 20, 10) == b"x" * 10


@pytest.mark.parametrize("punch", [True, False])
def test_writes_zeroes_where_nothing_else_works(file: BlockFile, punch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockfile, "_fallocate", lambda *_: False)
    file.write(0, memoryview(b"x" * SIZE_BYTES), SIZE_BYTES)
    with pytest.raises(OSError, match="no faster") as caught:
        file.zero(100, 3 << 20, punch=punch, fast=True)
    assert caught.value.errno == errno.ENOTSUP
    assert read(file, 0, SIZE_BYTES) == b"x" * SIZE_BYTES
    file.zero(100, 3 << 20, punch=punch)
    assert read(file, 0, SIZE_BYTES) == b"x" * 100 + bytes(3 << 20) + b"x" * ((1 << 20) - 100)
    assert not file.trim(0, 4096)
    assert read(file, 0, 100) == b"x" * 100


def test_trim_tells_whether_the_extent_reads_zero(file: BlockFile) -> None:
    file.write(0, memoryview(b"x" * 65536), 65536)
    assert file.trim(4096, 8192, durable=True)
    assert read(file, 0, 65536) == b"x" * 4096 + bytes(8192) + b"x" * (65536 - 12288)


def test_sectors_cut_by_an_extent_of_a_device_are_written(file: BlockFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.sector_bytes = 512  # As on a block device, whose fallocate takes whole sectors only.
    asked = []
    real = blockfile._fallocate
    monkeypatch.setattr(blockfile, "_fallocate", lambda fd, mode, at, length: asked.append((at, length)) or real(fd, mode, at, length))
    file.write(0, memoryview(b"x" * 8192), 8192)
    for offset, length in ((100, 50), (500, 50), (1000, 2000), (4096, 512)):
        file.zero(offset, length, punch=True)
        assert read(file, offset - 1, length + 2) == b"x" + bytes(length) + b"x"
    assert asked == [(1024, 1536), (4096, 512)]


def test_fallocate_s_own_failures_are_errors(file: BlockFile) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        file.zero(1 << 62, 1 << 62, punch=False)
    assert caught.value.errno == errno.EFBIG


def test_limits_extents(file: BlockFile) -> None:
    file.zero(0, SIZE_BYTES, punch=True)
    for n in range(10):
        file.write(n * 131_072, memoryview(b"x" * 4096), 4096)
    assert len(file.extents(0, SIZE_BYTES, 5)) == 5
    assert file.extents(4000, 200, 5) == [(96, EXTENT_DATA), (104, EXTENT_HOLE)]
    assert file.extents(SIZE_BYTES - 1, 1, 5) == [(1, EXTENT_HOLE)]


@pytest.mark.parametrize("what", ["missing", "folder", "pipe"])
def test_opens_volumes_only(tmp_path: Path, what: str) -> None:
    path = tmp_path / "it"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    before = len(os.listdir("/proc/self/fd"))
    for read_only in (False, True):
        with pytest.raises(OSError, match=r"No such|directory|neither"):
            BlockFile(path, read_only=read_only)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_only_file_can_t_be_written(path: Path) -> None:
    file = BlockFile(path, read_only=True)
    with pytest.raises(OSError, match=r".") as caught:
        file.write(0, memoryview(b"abc"), 3)
    assert caught.value.errno == errno.EBADF
    file.close()
    file.close()
