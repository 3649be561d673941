"""`RecordLog` and `ChunkAllocator`: room for entries, memory that comes back, and restarts at every step."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import ring as layout
from agent.allocator import INDEX_CHUNKS_RESERVED, ChunkAllocator
from agent.record_log import MARKS_KEPT, RecordLog
from stream.errors import IntegrityError
from stream.record import Kind
from tests.agent_parts import BLOCK_RECORDS, BLOCKS, CHUNK, DIRECTORY_AT, FLUSH, MIB, WRITE, Delivering, Parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, chunks=24)


def allocator(count: int, reclaim: Callable[[], None] = lambda: None) -> ChunkAllocator:
    return ChunkAllocator(count, (), reclaim, lambda _: None)


def until(true: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if true():
            return
        threading.Event().wait(0.0001)
    raise AssertionError("it never happened")


class TestAllocator:
    def test_gives_each_chunk_once(self) -> None:
        one = allocator(10)
        taken = one.take(8)
        assert sorted(taken) == sorted(set(taken))
        assert one.free_count == 2

    def test_leaves_a_reserve_for_entries(self) -> None:
        one = allocator(10)
        one.take(10 - INDEX_CHUNKS_RESERVED)
        waiter = threading.Thread(target=one.take, args=(1,), daemon=True)
        waiter.start()
        until(lambda: len(one._queue) == 1)
        assert len(one.take(INDEX_CHUNKS_RESERVED, index=True)) == INDEX_CHUNKS_RESERVED
        one.give([0, 1, 2])
        waiter.join(5)
        assert not waiter.is_alive()

    def test_gives_all_or_none_and_serves_in_order(self) -> None:
        one = allocator(10)
        one.take(8)
        order: list[str] = []

        def take(name: str, count: int) -> None:
            one.take(count)
            order.append(name)

        large = threading.Thread(target=take, args=("large", 6))
        large.start()
        until(lambda: len(one._queue) == 1)
        small = threading.Thread(target=take, args=("small", 1))
        small.start()
        until(lambda: len(one._queue) == 2)
        one.give([0, 1, 2, 3])
        assert one.free_count == 6, "a waiter took a part of what it needs"
        assert order == []
        one.give([4, 5])
        large.join(5)
        assert order == ["large"]
        one.give([6])
        small.join(5)
        assert order == ["large", "small"]

    def test_asks_for_what_is_acknowledged_before_it_waits(self) -> None:
        one = allocator(6, lambda: one.give([held]))
        held, *_ = one.take(4)
        assert one.take(1) == [held]

    def test_gives_neighbours_while_the_pool_is_nearly_empty(self) -> None:
        one = allocator(64)
        assert one.take_run() == [0, 1, 2, 3], "a sixteenth of the pool"
        assert one.take_run() == [4, 5, 6, 7]
        one.give([1, 2, 3])
        assert one.take_run() == [1, 2, 3], "what was freed last, as far as it goes"
        assert one.free_count == 56

    def test_gives_one_chunk_where_no_neighbours_are(self) -> None:
        one = allocator(64)
        one.take(12)
        one.give([3, 7])
        assert one.take_run() == [7]
        one = allocator(12)
        assert one.take_run() == [0], "a small pool"

    def test_gives_no_neighbours_once_a_quarter_is_taken(self) -> None:
        one = allocator(64)
        one.take(64 - 48 - INDEX_CHUNKS_RESERVED)
        assert one.take_run() == [14, 15, 16, 17]
        assert one.take_run() == [18]

    def test_gives_no_run_to_who_comes_after_one_that_waits(self) -> None:
        one = allocator(64)
        held = one.take(1)
        waiter = threading.Thread(target=one.take, args=(62,), daemon=True)
        waiter.start()
        until(lambda: len(one._queue) == 1)
        assert one.take_run(keep_waiting=lambda: False) is None
        one.give(held)
        waiter.join(5)
        assert not waiter.is_alive()

    def test_counts_a_run_as_the_volumes_own(self) -> None:
        one = allocator(64)
        one.join("v")
        run = one.take_run(owner="v")
        assert run is not None
        assert one.used("v") == len(run) == 4
        one.give(run)
        assert one.used("v") == 0
        assert one.free_count == 64

    def test_lets_all_go_when_it_closes(self) -> None:
        one = allocator(4)
        failures: list[int | None] = []

        def take() -> None:
            try:
                one.take(4)
            except OSError as error:
                failures.append(error.errno)

        threads = [threading.Thread(target=take) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(one._queue) == 3)
        one.close()
        for thread in threads:
            thread.join(5)
        assert failures == [errno.ESHUTDOWN] * 3
        assert one.free_count == 4


def test_entries_cross_blocks(tmp_path: Path) -> None:
    parts = Parts(tmp_path, claimed=BLOCK_RECORDS - 3)
    for number in range(10):
        parts.write(number * 4096, bytes([number + 1]) * 100)
    assert [entry[0] for entry in parts.pending()] == list(range(BLOCK_RECORDS - 2, BLOCK_RECORDS + 8))
    parts.assert_equal()


def test_a_split_write_is_one_step(parts: Parts) -> None:
    before = parts.head
    parts.write(1000, b"x" * (2 * CHUNK + 17))
    entries = parts.pending()
    assert [entry[7] for entry in entries] == [1, 1, 0]
    assert [(entry[2], entry[3]) for entry in entries] == [(1000, CHUNK), (1000 + CHUNK, CHUNK), (1000 + 2 * CHUNK, 17)]
    assert len({entry[1] for entry in entries}) == 1
    assert parts.head == before + 3


def test_memory_comes_back(parts: Parts) -> None:
    free = parts.allocator.free_count
    for _ in range(50):
        parts.write(0, b"x" * (3 * CHUNK))
        parts.deliver()
        parts.log.reclaim()
    assert parts.allocator.free_count == free - 1, "one block of entries stays"
    assert parts.log.used_bytes() == CHUNK


def test_blocks_of_entries_come_back(parts: Parts) -> None:
    free = parts.allocator.free_count
    with Delivering(parts):
        for _ in range(3 * BLOCK_RECORDS):
            parts.volume.flush()
    parts.deliver()
    parts.log.reclaim()
    assert parts.allocator.free_count == free - 1


def test_the_directory_wraps(tmp_path: Path) -> None:
    parts = Parts(tmp_path, claimed=BLOCKS * BLOCK_RECORDS * 3 - 5)
    for _ in range(10):
        parts.volume.flush()
    assert [entry[6] for entry in parts.pending()] == [FLUSH] * 10
    parts.restart()
    assert len(parts.pending()) == 10


def test_a_full_directory_waits_for_kafka(tmp_path: Path) -> None:
    parts = Parts(tmp_path, claimed=BLOCK_RECORDS - 1)
    parts.volume.flush()
    following = (BLOCK_RECORDS // BLOCK_RECORDS + 1) % BLOCKS
    parts.ring.directory[following] = 1  # as if a block a whole directory ago were still unacknowledged
    for _ in range(BLOCK_RECORDS - 1 - MARKS_KEPT):
        parts.volume.flush()
    waiter = threading.Thread(target=parts.volume.flush)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    parts.ring.directory[following] = 0
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_full_directory_does_not_hold_a_volume_that_fails(tmp_path: Path) -> None:
    parts = Parts(tmp_path, claimed=BLOCK_RECORDS - 1)
    parts.ring.directory[1] = 5
    failures: list[OSError] = []

    def flush() -> None:
        try:
            parts.volume.flush()
        except OSError as error:
            failures.append(error)

    waiter = threading.Thread(target=flush)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    parts.volume.fail("planted")
    waiter.join(5)
    assert [error.errno for error in failures] == [errno.EIO]


class TestRestart:
    def test_goes_on_where_it_was(self, parts: Parts) -> None:
        parts.write(0, b"a" * 5000)
        parts.write(100_000, b"b" * (CHUNK + 1))
        parts.deliver(parts.acked + 1)
        parts.restart()
        parts.write(0, b"c" * 10)
        parts.assert_equal()

    def test_needed_chunks_are_not_given_out(self, parts: Parts) -> None:
        for number in range(5):
            parts.write(number * CHUNK, bytes([number + 1]) * CHUNK)
        parts.restart()
        held = {entry[4] for entry in parts.pending()}
        taken = set(parts.allocator.take(parts.allocator.free_count - INDEX_CHUNKS_RESERVED))
        assert not taken & held
        parts.allocator.give(taken)
        parts.assert_equal()

    def test_all_memory_comes_back_after_a_restart(self, parts: Parts) -> None:
        for number in range(5):
            parts.write(number * CHUNK, b"x" * CHUNK)
        parts.restart()
        parts.deliver()
        parts.log.reclaim()
        parts.write(0, b"y")
        parts.deliver()
        parts.log.reclaim()
        assert parts.allocator.free_count == parts.pool.count - 1

    def test_what_is_acknowledged_while_it_starts_comes_back(self, parts: Parts) -> None:
        """The publisher lives on and acknowledges between the count of the held chunks and the adoption of the ring."""
        for number in range(5):
            parts.write(number * CHUNK, b"x" * CHUNK)
        held = parts.ring.chunks_held(parts.pool.view)
        assert len(held) == 6
        fresh = ChunkAllocator(parts.pool.count, held, lambda: None, lambda _: None)
        parts.deliver()
        log = RecordLog(parts.ring, parts.pool, fresh, lambda: None, held)
        assert fresh.free_count == parts.pool.count
        log.reserve(1)
        with log.mutex:
            log.append(Kind.FLUSH)
        assert parts.pending()[-1][6] == FLUSH

    def test_an_entry_block_without_entries_is_free(self, parts: Parts) -> None:
        parts.log.reserve(1)  # takes the block; killed before the record
        parts.restart()
        parts.write(0, b"x")
        parts.assert_equal()
        assert parts.allocator.free_count == parts.pool.count - 2

    def test_an_unfinished_entry_does_not_count(self, parts: Parts) -> None:
        """Killed between the entry and the head: the record is not there, and its place is used again."""
        parts.write(0, b"first")
        sequence = parts.head + 1
        struct.pack_into("=Q", parts.pool.memory.view, 4096 + (_directory(parts, sequence) - 1) * CHUNK + sequence % BLOCK_RECORDS * 64, 99)
        parts.restart()
        parts.write(4096, b"second")
        parts.assert_equal()

    def test_a_torn_ring_is_refused(self, parts: Parts) -> None:
        parts.write(0, b"first")
        parts.write(0, b"second")
        parts.ring.words[layout.W_HEAD] += 1
        with pytest.raises(IntegrityError):
            parts.ring.chunks_held(parts.pool.view)


def _directory(parts: Parts, sequence: int) -> int:
    return struct.unpack_from("=Q", parts.ring.memory.view, DIRECTORY_AT + sequence // BLOCK_RECORDS % BLOCKS * 8)[0]


class TestDiscard:
    def test_frees_everything(self, parts: Parts) -> None:
        for number in range(3):
            parts.write(number * CHUNK, b"x" * CHUNK)
        parts.volume.fail("planted")
        parts.log.discard()
        assert parts.allocator.free_count == parts.pool.count
        parts.log.retire(parts.allocator.take(1)[0], parts.head + 5)
        assert parts.allocator.free_count == parts.pool.count

    def test_keeps_the_entries_of_what_is_in_flight(self, parts: Parts) -> None:
        parts.write(0, b"x")
        parts.log.reserve(1)
        parts.volume.fail("planted")
        parts.log.discard()
        assert parts.allocator.free_count == parts.pool.count - 1
        taken = parts.allocator.take(parts.allocator.free_count - INDEX_CHUNKS_RESERVED)
        for number in taken:
            parts.pool.chunk(number)[:] = b"\x55" * CHUNK
        with parts.log.mutex:
            parts.log.append(Kind.FLUSH)
        assert all(bytes(parts.pool.chunk(number)) == b"\x55" * CHUNK for number in taken), "an entry was written into foreign memory"


class TestFlushWaits:
    def test_for_what_came_before(self, parts: Parts) -> None:
        sequence = parts.volume.flush()
        waiter = threading.Thread(target=parts.log.wait_durable, args=(sequence, lambda: True))
        waiter.start()
        waiter.join(0.05)
        assert waiter.is_alive()
        parts.deliver()
        parts.log.acknowledged()
        waiter.join(5)
        assert not waiter.is_alive()

    def test_no_longer_than_the_volume_is_in_service(self, parts: Parts) -> None:
        sequence = parts.volume.flush()
        failures: list[OSError] = []

        def wait() -> None:
            try:
                parts.log.wait_durable(sequence, lambda: True)
            except OSError as error:
                failures.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        parts.volume.fail("planted")
        waiter.join(5)
        assert [error.errno for error in failures] == [errno.EIO]


def test_capture_times_never_go_backward(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10**18, 10**18 - 5, 10**18 + 5])
    monkeypatch.setattr("agent.record_log._monotonic_ns", lambda: next(clock))
    parts.ring.words[layout.W_CAPTURE_NS] = 0
    for _ in range(3):
        parts.volume.flush()
    assert [entry[1] for entry in parts.pending()] == [10**18, 10**18, 10**18 + 5]


def test_a_full_buffer_goes_on_when_kafka_does(tmp_path: Path) -> None:
    parts = Parts(tmp_path, chunks=16, size_bytes=8 * MIB)

    def write(number: int) -> None:
        for _ in range(10):
            parts.write(number * MIB, bytes([number + 1]) * (2 * CHUNK))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    until(lambda: len(parts.allocator._queue) == 4)
    assert any(parts.waiting), "the publisher was not told that somebody waits"
    with Delivering(parts):
        for writer in writers:
            writer.join(20)
            assert not writer.is_alive()
    parts.assert_equal()
    assert sum(entry[6] == WRITE for entry in parts.delivered) == 80
