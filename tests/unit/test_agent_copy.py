"""`Volume.copy` and `Volume.copy_hole`: what the first copy records is what the source holds at that position."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from tests.agent_parts import DATA, MIB, ZERO, Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


class Step:
    """Hold an operation of the source at its beginning until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, *_: int) -> None:
        self.reached.set()
        assert self.go.wait(10), "nobody let the operation go"


def test_copies_what_the_source_holds(parts: Parts) -> None:
    parts.source.file.write(0, memoryview(b"x" * 100_000), 100_000)
    parts.volume.copy(0, 100_000)
    parts.assert_equal()


def test_a_write_in_flight_when_the_copy_begins_is_not_overwritten_by_it(parts: Parts) -> None:
    """The write entered its extent before the copy began to read, and reaches the source after the copy has read."""
    file, step = parts.source.file, Step()
    file.write(0, memoryview(b"o" * 4096), 4096)
    file.before["write"] = step
    writer = threading.Thread(target=parts.write, args=(0, b"n" * 4096))
    writer.start()
    assert step.reached.wait(10)

    real_read = file.read

    def read(offset_bytes: int, into: memoryview) -> None:
        real_read(offset_bytes, into)
        if not step.go.is_set():
            step.go.set()
            writer.join(10)

    file.read = read
    parts.volume.copy(0, 4096)
    writer.join(10)
    parts.assert_equal()


def test_a_write_that_comes_during_the_read_makes_it_read_again(parts: Parts) -> None:
    file = parts.source.file
    file.write(0, memoryview(b"o" * 4096), 4096)
    real_read, reads = file.read, []

    def read(offset_bytes: int, into: memoryview) -> None:
        real_read(offset_bytes, into)
        reads.append(offset_bytes)
        if len(reads) == 1:
            parts.write(100, b"new")

    file.read = read
    parts.volume.copy(0, 4096)
    assert len(reads) == 2
    parts.assert_equal()


def test_zeroes_travel_without_payload(parts: Parts) -> None:
    parts.source.file.write(0, memoryview(bytes(4096)), 4096)
    parts.replica[:4096] = b"x" * 4096
    free = parts.allocator.free_count
    assert parts.volume.copy(0, 4096) == 0
    assert parts.pending()[-1][6] == ZERO
    assert parts.allocator.free_count == free - 1, "only the block of entries is held"
    parts.assert_equal()


@pytest.mark.parametrize("place", ["first", "last", "middle"])
def test_one_byte_keeps_a_chunk_from_being_zero(parts: Parts, place: str) -> None:
    at = {"first": 0, "last": 4095, "middle": 2000}[place]
    parts.source.file.write(at, memoryview(b"x"), 1)
    assert parts.volume.copy(0, 4096) == 4096
    parts.assert_equal()


def test_an_unreadable_source_leaves_no_trace(parts: Parts) -> None:
    parts.volume.copy(0, 4096)
    free = parts.allocator.free_count
    parts.source.file.errors["read"] = errno.EIO
    with pytest.raises(OSError, match="planted"):
        parts.volume.copy(0, 4096)
    del parts.source.file.errors["read"]
    assert parts.allocator.free_count == free
    head = parts.head
    parts.write(0, b"goes on")
    assert parts.head == head + 1
    parts.assert_equal()


def test_unreadable_under_the_lock_leaves_no_trace(parts: Parts) -> None:
    file = parts.source.file
    real_read, reads = file.read, []

    def read(offset_bytes: int, into: memoryview) -> None:
        reads.append(offset_bytes)
        if len(reads) == 2:
            raise OSError(errno.EIO, "planted")
        real_read(offset_bytes, into)
        parts.write(0, b"touch")

    file.read = read
    with pytest.raises(OSError, match="planted"):
        parts.volume.copy(0, 4096)
    file.read = real_read
    parts.write(0, b"not blocked")
    parts.assert_equal()


def test_a_hole_is_told_only_while_it_is_one(parts: Parts) -> None:
    parts.replica[: 2 * MIB] = b"x" * (2 * MIB)
    assert parts.volume.copy_hole(0, MIB)
    parts.write(MIB + 5000, b"data")
    assert parts.source.file.extents(MIB + 4096, 4096, 1) == [(4096, DATA)]
    assert not parts.volume.copy_hole(MIB, 2 * MIB)
    parts.volume.copy(MIB, MIB + 4096)
    parts.deliver()
    assert not any(parts.replica[: MIB + 4096])
