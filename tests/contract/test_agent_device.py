"""The agent's device keeps the contract of every NBD device, and what it kept is what Kafka gets."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.session import CaptureDevice
from agent.source import Source
from stream.record import FLAG_MORE
from tests.agent_parts import CHUNK, MIB, Delivering, Parts
from tests.contract.test_nbd_device import SIZE_BYTES, DeviceContract
from tests.nbd_feed import Feed


class FileParts(Parts):
    """Parts whose source is a real file."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        super().__init__(folder, size_bytes=size_bytes, chunks=400)
        path = folder / "source"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        self.source = Source(str(path))
        self._wire(set())

    def assert_equal(self) -> None:
        self.deliver()
        content = Path(self.source.file.path).read_bytes()
        differ = [at for at in range(0, len(content), 4096) if content[at : at + 4096] != self.replica[at : at + 4096]]
        assert not differ, f"{len(differ)} blocks differ, the first at {differ[0]}"


@contextlib.contextmanager
def served(folder: Path, flush_policy: str) -> Iterator[tuple[FileParts, CaptureDevice]]:
    parts = FileParts(folder, SIZE_BYTES)
    device = CaptureDevice(parts.volume, flush_policy)
    with Delivering(parts):
        yield parts, device
    parts.assert_equal()
    parts.log.reclaim()
    assert device.connections == 0
    assert parts.allocator.free_count >= parts.pool.count - 1, "chunks were lost"
    parts.source.close()


class TestCaptureDevice(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[CaptureDevice]:
        with served(tmp_path, "local") as (_, device):
            yield device


class TestCaptureDeviceThatFlushesToTheStream(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[CaptureDevice]:
        with served(tmp_path, "stream") as (_, device):
            yield device


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, size_bytes=4 * MIB, chunks=64)


def test_a_long_write_that_only_kafka_did_not_confirm_is_kept(parts: Parts) -> None:
    """FUA under `stream`, and the volume goes out of service meanwhile: the client hears of an error, the record is in the ring."""
    session = CaptureDevice(parts.volume, "stream").open_session()
    feed = Feed(session)
    feed.write(0, b"before")
    payload = random.Random(1).randbytes(MIB)

    def fail() -> None:
        while not parts.pending() or parts.pending()[-1][2] + parts.pending()[-1][3] < MIB:
            threading.Event().wait(0.001)
        parts.volume.fail("planted")

    failing = threading.Thread(target=fail)
    failing.start()
    lane, chunks = session.lane, []
    body = lane.tail + 28
    first = lane.chunk[body:]
    first[:] = payload[: len(first)]
    chunks = lane.reserve(MIB - len(first))
    pieces, at = [first], len(first)
    for chunk in chunks:
        part = payload[at : at + CHUNK]
        chunk[: len(part)] = part
        pieces.append(chunk[: len(part)])
        at += len(part)
    with pytest.raises(OSError, match="planted"):
        session.write(0, pieces, MIB, True)
    lane.abandon(chunks)
    failing.join()
    for number in parts.allocator.take(parts.allocator.free_count - 2):
        parts.pool.chunk(number)[:] = b"\x55" * CHUNK
    lane.chunk[lane.tail :] = b"\x66" * (len(lane.chunk) - lane.tail)
    parts.assert_equal()


def test_a_long_write_that_fails_gives_its_chunks_back(parts: Parts) -> None:
    session = CaptureDevice(parts.volume, "local").open_session()
    free = parts.allocator.free_count
    parts.source.file.errors["write"] = errno.ENOSPC
    for _ in range(5):
        chunks = session.lane.reserve(MIB)
        with pytest.raises(OSError, match="planted"):
            session.write(0, [session.lane.chunk[100:], *chunks], MIB + CHUNK - 100, False)
        session.lane.abandon(chunks)
    assert parts.allocator.free_count == free - 1, "only the block of entries is held"
    assert parts.pending() == []


def test_a_failed_write_leaves_what_follows_in_the_chunk_alone(parts: Parts) -> None:
    """Three writes were received together, the middle one fails: the third is where it was received."""
    session = CaptureDevice(parts.volume, "local").open_session()
    chunk = session.lane.chunk
    chunk[0:100], chunk[100:200], chunk[200:300] = b"a" * 100, b"b" * 100, b"c" * 100
    session.write(0, chunk[0:100], 100, False)
    parts.source.file.errors["write"] = errno.EIO
    with pytest.raises(OSError, match="planted"):
        session.write(4096, chunk[100:200], 100, False)
    parts.source.file.errors.clear()
    session.write(8192, chunk[200:300], 100, False)
    assert session.lane.tail == 300
    parts.assert_equal()


def test_a_chunk_is_used_again_only_when_kafka_has_all_of_it(parts: Parts) -> None:
    session = CaptureDevice(parts.volume, "local").open_session()
    lane = session.lane
    lane.chunk[:100] = b"a" * 100
    session.write(0, lane.chunk[:100], 100, False)
    first = lane.number
    lane.turn(lane.chunk[200:210])
    assert lane.number != first
    second = lane.number
    lane.chunk[:100] = b"b" * 100
    session.write(100, lane.chunk[:100], 100, False)
    parts.deliver()
    lane.turn(lane.chunk[200:210])
    assert lane.number == second
    parts.assert_equal()


class TestLongWrites:
    """Long writes are received into neighbours of the pool that the server sees as one chunk."""

    @pytest.fixture
    def roomy(self, tmp_path: Path) -> Parts:
        return Parts(tmp_path, size_bytes=8 * MIB, chunks=512)

    def test_go_into_one_long_chunk_and_are_records_within_the_pools_chunks(self, roomy: Parts) -> None:
        session = CaptureDevice(roomy.volume, "local").open_session()
        feed, source = Feed(session), random.Random(5)
        for number in range(70):
            feed.write(number * 65536, source.randbytes(65536))
        assert len(session.lane.chunk) == 8 * CHUNK
        entries = roomy.pending()
        assert all(start + length <= CHUNK for _, _, _, length, _, start, _, _ in entries)
        split = [entry for entry in entries if entry[7] == FLAG_MORE]
        assert len(split) == 70 * 65564 // CHUNK, "each chunk's end is in one write"
        roomy.assert_equal()

    def test_lie_where_they_were_received_until_kafka_has_them(self, roomy: Parts) -> None:
        """Whatever else is received meanwhile, and by whomever: nothing is given out twice."""
        device = CaptureDevice(roomy.volume, "local")
        source = random.Random(6)
        feeds = [Feed(device.open_session()) for _ in range(3)]
        for number in range(120):
            source.choice(feeds).write(source.randrange(7 * MIB), source.randbytes(source.choice((4096, 65536, 40_000, 700_000))))
            if number % 10 == 9:
                roomy.deliver(roomy.acked + source.randrange(1 + roomy.head - roomy.acked))
                roomy.log.reclaim()
        roomy.assert_equal()
        for feed in feeds:
            feed.session.close()
            feed.lane.close()
        roomy.log.reclaim()
        assert roomy.allocator.free_count == roomy.pool.count - 1, "only the block of entries is held"

    def test_survive_a_kill(self, roomy: Parts) -> None:
        feed, source = Feed(CaptureDevice(roomy.volume, "local").open_session()), random.Random(7)
        for number in range(50):
            feed.write(number * 65536, source.randbytes(65536))
        roomy.deliver(roomy.head - 20)
        roomy.restart()
        roomy.volume.settle_intents()
        other = Feed(CaptureDevice(roomy.volume, "local").open_session())
        for number in range(50, 100):
            other.write(number * 65536, source.randbytes(65536))
        roomy.assert_equal()

    def test_that_fail_leave_the_next_ones_alone(self, roomy: Parts) -> None:
        session = CaptureDevice(roomy.volume, "local").open_session()
        feed = Feed(session)
        for number in range(5):
            feed.write(number * 65536, bytes([number + 1]) * 65536)
        chunk, tail = session.lane.chunk, session.lane.tail
        assert len(chunk) == 8 * CHUNK
        bad, good = chunk[tail : tail + 300_000], chunk[tail + 300_000 : tail + 600_000]
        bad[:], good[:] = b"b" * 300_000, b"g" * 300_000
        roomy.source.file.errors["write"] = errno.ENOSPC
        with pytest.raises(OSError, match="planted"):
            session.write(MIB, bad, 300_000, False)
        roomy.source.file.errors.clear()
        session.write(2 * MIB, good, 300_000, False)
        assert session.lane.tail == tail + 600_000
        assert roomy.owed() == set(range(16, 21)), "what failed is owed"
        roomy.deliver()
        assert bytes(roomy.replica[2 * MIB : 2 * MIB + 300_000]) == b"g" * 300_000

    def test_idle_connections_leave_most_of_the_pool_free(self, roomy: Parts) -> None:
        device = CaptureDevice(roomy.volume, "local")
        for number in range(100):
            feed = Feed(device.open_session())
            for at in range(5):
                feed.write(at * 65536, bytes([number]) * 65536)
            roomy.deliver()
        roomy.log.reclaim()
        assert roomy.allocator.free_count > roomy.pool.count // 2
        assert roomy.allocator.used("v") >= 100 + 8, "some got a long one"


def test_many_sessions_come_and_go(parts: Parts) -> None:
    device = CaptureDevice(parts.volume, "local")
    free = parts.allocator.free_count
    with Delivering(parts):
        for number in range(200):
            session = device.open_session()
            Feed(session).write(number * 4096, os.urandom(2000))
            session.close()
            session.lane.close()
    parts.assert_equal()
    parts.log.reclaim()
    assert parts.allocator.free_count == free - 1
    assert parts.volume.intents.free_count == 1023
