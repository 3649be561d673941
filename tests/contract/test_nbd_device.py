"""The contract of `nbd.device`: any device must pass `DeviceContract`. Other packages subclass it with a `device` fixture of their own.

The driver plays the server's part by the interface's text alone; the model is a bytearray.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_memory_device import MemoryDevice

from nbd.device import BlockDevice, Session
from nbd.filedevice import FileDevice
from tests.nbd_feed import Feed

SIZE_BYTES = 40 << 20


class DeviceContract:
    """What holds for every device. Subclasses give a `device` fixture: writable, SIZE_BYTES long, all zero."""

    @pytest.fixture
    def session(self, device: BlockDevice) -> Iterator[Session]:
        session = device.open_session()
        yield session
        session.close()
        session.lane.close()

    @staticmethod
    def content(session: Session, offset_bytes: int = 0, length_bytes: int = SIZE_BYTES) -> bytes:
        into = bytearray(length_bytes)
        session.read(offset_bytes, memoryview(into))
        return bytes(into)

    def test_tells_its_size_and_mode(self, device: BlockDevice) -> None:
        assert device.size_bytes == SIZE_BYTES
        assert device.read_only is False

    def test_begins_as_zeroes(self, session: Session) -> None:
        assert not any(self.content(session))

    @pytest.mark.parametrize("length", [1, 511, 4096, 32 << 10, 65536, 262144 - 28, 262144, 300_001, 1 << 20, 32 << 20])
    def test_reads_what_was_written(self, session: Session, length: int) -> None:
        payload = random.Random(length).randbytes(length)
        feed = Feed(session)
        feed.write(12_345, payload)
        assert self.content(session, 12_345, length) == payload
        assert self.content(session, 0, 12_345) == bytes(12_345)
        assert self.content(session, 12_345 + length, 4096) == bytes(4096)

    @pytest.mark.parametrize("before", [0, 1, 4096])
    def test_writes_across_chunks(self, session: Session, before: int) -> None:
        """The part of a payload that lies in the current chunk may be short, or empty."""
        payload = random.Random(before).randbytes(400_000)
        feed = Feed(session)
        feed.write_at(before, 100, payload)
        feed.write(500_000, b"next")
        assert self.content(session, 100, 400_000) == payload
        assert self.content(session, 500_000, 4) == b"next"

    def test_writes_at_both_ends(self, session: Session) -> None:
        feed = Feed(session)
        feed.write(0, b"first")
        feed.write(SIZE_BYTES - 4, b"last")
        assert self.content(session, 0, 5) == b"first"
        assert self.content(session, SIZE_BYTES - 4, 4) == b"last"

    def test_follows_a_model_over_many_writes(self, session: Session) -> None:
        dice, feed, model = random.Random(7), Feed(session), bytearray(SIZE_BYTES)
        for _ in range(400):
            length = dice.choice([1, 100, 512, 4096, 5000, 20_000, 65_536, 150_000, 300_000])
            offset = dice.randrange(0, (4 << 20) - length)
            payload = dice.randbytes(length)
            feed.write(offset, payload, fua=dice.random() < 0.05)
            model[offset : offset + length] = payload
        assert self.content(session) == model

    @pytest.mark.parametrize("punch", [True, False])
    def test_zeroes_exactly_the_extent(self, session: Session, punch: bool) -> None:
        dice, model = random.Random(1), bytearray(random.Random(2).randbytes(1 << 20))
        Feed(session).write(0, bytes(model))
        for _ in range(50):
            offset = dice.randrange(0, 1 << 20)
            length = dice.randrange(1, (1 << 20) - offset + 1) // dice.choice([1, 8, 256]) or 1
            session.zero(offset, length, punch=punch, fast=False, fua=dice.random() < 0.2)
            model[offset : offset + length] = bytes(length)
        assert self.content(session, 0, 1 << 20) == model

    def test_zeroes_fast_or_not_at_all(self, session: Session) -> None:
        Feed(session).write(0, b"x" * 8192)
        try:
            session.zero(0, 8192, punch=True, fast=True, fua=False)
        except OSError as error:
            assert error.errno == errno.ENOTSUP
            assert self.content(session, 0, 8192) == b"x" * 8192
        else:
            assert self.content(session, 0, 8192) == bytes(8192)

    def test_trims_no_more_than_the_extent(self, session: Session) -> None:
        Feed(session).write(0, b"x" * 65536)
        session.trim(5000, 20_000, fua=False)
        session.trim(40_960, 4096, fua=True)
        found = self.content(session, 0, 65536)
        for begin, end in ((0, 5000), (25_000, 40_960), (45_056, 65536)):
            assert found[begin:end] == b"x" * (end - begin)
        assert set(found) <= {0, ord("x")}

    def test_flushes(self, session: Session) -> None:
        session.flush()
        Feed(session).write(0, b"x" * 4096)
        session.flush()
        assert self.content(session, 0, 4096) == b"x" * 4096

    def test_reads_from_the_cache_truly_or_not_at_all(self, session: Session) -> None:
        payload = random.Random(3).randbytes(100_000)
        Feed(session).write(1000, payload)
        into = bytearray(100_000)
        if session.read_cached(1000, memoryview(into)):
            assert into == payload

    def test_takes_announcements_anywhere(self, session: Session) -> None:
        session.announce(0, 4096)
        session.announce(SIZE_BYTES - 1, 1)
        session.announce(0, SIZE_BYTES)

    def test_describes_extents(self, session: Session) -> None:
        Feed(session).write(1 << 20, b"x" * (1 << 20))
        for offset, length, limit in ((0, SIZE_BYTES, 100), (5, 1, 1), (1 << 20, 4096, 3), (SIZE_BYTES - 1, 1, 5), (0, 1 << 22, 1)):
            extents = session.extents(offset, length, limit)
            assert 1 <= len(extents) <= limit
            assert all(nbytes > 0 for nbytes, _ in extents)
            assert sum(nbytes for nbytes, _ in extents) <= length
            at = offset
            for nbytes, state in extents:
                assert not state & ~3
                if state & 2:
                    assert not any(self.content(session, at, min(nbytes, 4 << 20))), "an extent told to be zero is not"
                at += nbytes

    def test_covers_all_by_asking_on(self, session: Session) -> None:
        Feed(session).write(3 << 20, b"x" * 70_000)
        at = 0
        while at < SIZE_BYTES:
            at += sum(nbytes for nbytes, _ in session.extents(at, SIZE_BYTES - at, 2))
        assert at == SIZE_BYTES

    def test_is_one_device_for_all_sessions(self, device: BlockDevice, session: Session) -> None:
        other = device.open_session()
        Feed(session).write(4096, b"mine")
        Feed(other).write(8192, b"theirs")
        assert self.content(other, 4096, 4) == b"mine"
        assert self.content(session, 8192, 6) == b"theirs"
        other.close()
        other.lane.close()
        assert self.content(session, 8192, 6) == b"theirs"

    def test_takes_back_an_abandoned_reservation(self, session: Session) -> None:
        feed, lane = Feed(session), session.lane
        feed.write(0, b"before")
        for _ in range(20):
            tail = lane.tail
            chunks = lane.reserve(8 << 20)
            chunks[0][:4] = b"junk"
            lane.abandon(chunks)
            assert lane.tail == tail
        feed.write(100, b"y" * 500_000)
        assert self.content(session, 0, 6) == b"before"
        assert self.content(session, 100, 500_000) == b"y" * 500_000

    def test_serves_sessions_side_by_side(self, device: BlockDevice) -> None:
        payloads = [random.Random(n).randbytes(2 << 20) for n in range(4)]
        failures: list[BaseException] = []

        def fill(number: int) -> None:
            try:
                session = device.open_session()
                feed = Feed(session)
                for at in range(0, 2 << 20, 30_000):
                    feed.write((number << 21) + at, payloads[number][at : at + 30_000])
                session.close()
                session.lane.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=fill, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        session = device.open_session()
        assert self.content(session, 0, 8 << 20) == b"".join(payloads)
        session.close()
        session.lane.close()


class TestFileDevice(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[FileDevice]:
        path = tmp_path / "image"
        with path.open("wb") as file:
            file.truncate(SIZE_BYTES)
        device = FileDevice(path)
        yield device
        device.close()


class TestMemoryDevice(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[MemoryDevice]:
        device = MemoryDevice(SIZE_BYTES)
        yield device
        device.check_kept()
        assert device.open_sessions == 0
        assert device.reserved_chunks == 0


class TestMemoryDeviceThatKeepsNothing(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[MemoryDevice]:
        device = MemoryDevice(SIZE_BYTES, keeping=False)
        yield device
        assert device.open_sessions == 0
        assert device.reserved_chunks == 0
