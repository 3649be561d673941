"""`Volume` over a source that fails: the client gets the errno, the stream what the source holds (design rule 2)."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from agent import ring as layout
from agent.modes import Mode
from stream.record import Kind
from tests.agent_parts import CHUNK, FLUSH, MIB, WRITE, ZERO, Parts

GRAIN = 64 << 10


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def copy_what_is_owed(parts: Parts) -> None:
    """Pay all debts by hand."""
    slot = parts.volume.intents.open()
    while (run := parts.volume.debts.take(slot, 0, CHUNK)) is not None:
        parts.volume.copy(*run)
        parts.volume.debts.pay(slot, [])
    parts.volume.intents.close(slot)


def test_a_write_is_recorded_where_it_lies(parts: Parts) -> None:
    sequence = parts.write(5000, b"x" * 3000)
    assert sequence == parts.head == 2
    sequence, _, offset, length, _, _, kind, flags = parts.pending()[0]
    assert (sequence, offset, length, kind, flags) == (2, 5000, 3000, WRITE, 0)
    assert parts.ring.words[layout.W_CAPTURED_BYTES] == 3000
    parts.assert_equal()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_is_owed_and_not_published(parts: Parts, code: int) -> None:
    parts.source.file.errors["write"] = code
    with pytest.raises(OSError, match="planted") as failure:
        parts.write(70_000, b"x" * 100)
    assert failure.value.errno == code
    assert parts.pending() == []
    assert parts.owed() == {1}
    assert parts.ring.words[layout.W_CAPTURED_BYTES] == 0


def test_a_short_write_is_copied_from_the_source(parts: Parts) -> None:
    """ENOSPC in the middle: a part is on the source, and that part alone is in the stream in the end."""
    parts.write(0, b"o" * (2 * CHUNK))
    parts.source.file.short_bytes = CHUNK + 100
    with pytest.raises(OSError, match="planted"):
        parts.write(0, b"n" * (2 * CHUNK))
    parts.source.file.short_bytes = None
    assert bytes(parts.source.file.data[:CHUNK]) == b"n" * CHUNK
    copy_what_is_owed(parts)
    parts.assert_equal()
    assert parts.owed() == set()


@pytest.mark.parametrize("what", ["zero", "trim"])
def test_a_failed_zero_or_trim_is_owed(parts: Parts, what: str) -> None:
    parts.write(0, b"x" * MIB)
    parts.source.file.errors[what] = errno.EIO
    with pytest.raises(OSError, match="planted"):
        if what == "zero":
            parts.volume.zero(parts.slot, GRAIN, 2 * GRAIN, punch=True, fast=False, durable=False)
        else:
            parts.volume.trim(parts.slot, GRAIN, 2 * GRAIN, durable=False)
    assert parts.owed() == {1, 2}
    copy_what_is_owed(parts)
    parts.assert_equal()


def test_a_refused_fast_zero_changes_nothing_and_owes_nothing(parts: Parts) -> None:
    parts.write(0, b"x" * 4096)
    parts.deliver()
    with pytest.raises(OSError, match="never fast"):
        parts.volume.zero(parts.slot, 0, 4096, punch=True, fast=True, durable=False)
    assert parts.owed() == set()
    assert parts.pending() == []
    parts.volume.zero(parts.slot, 0, 4096, punch=True, fast=False, durable=False)
    assert parts.pending()[0][6] == ZERO


def test_a_trim_that_the_source_ignores_is_not_in_the_stream(parts: Parts) -> None:
    parts.write(0, b"x" * 4096)
    parts.source.file.trims = False
    assert parts.volume.trim(parts.slot, 0, 4096, durable=False) == parts.head
    assert len(parts.pending()) == 1
    parts.assert_equal()
    parts.write(0, b"not blocked")


def test_a_failed_operation_unlocks_its_extent(parts: Parts) -> None:
    parts.source.file.errors["write"] = errno.EIO
    for _ in range(3):
        with pytest.raises(OSError, match="planted"):
            parts.write(0, b"x")
    del parts.source.file.errors["write"]
    parts.write(0, b"y")
    assert parts.volume.locks.idle


def test_a_failed_sync_is_no_flush(parts: Parts) -> None:
    parts.source.file.errors["sync"] = errno.EIO
    with pytest.raises(OSError, match="planted"):
        parts.volume.flush()
    assert parts.pending() == []


def test_a_failed_write_is_in_doubt_until_a_flush(parts: Parts) -> None:
    """What it left may be in the page cache alone: copied from there, it is asked of the disk again when a flush says so."""
    parts.source.file.errors["write"] = errno.EIO
    with pytest.raises(OSError, match="planted"):
        parts.write(0, b"x")
    copy_what_is_owed(parts)
    parts.source.file.errors = {"sync": errno.EIO}
    with pytest.raises(OSError, match="planted"):
        parts.volume.flush()
    assert parts.source.file.forgotten == [(0, MIB)]
    assert 0 in parts.owed()


def test_nothing_is_forgotten_before_it_is_owed(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.write(0, b"x")
    parts.source.file.errors["sync"] = errno.EIO
    seen: list[tuple[bool, bool]] = []

    def forget(offset_bytes: int, length_bytes: int) -> None:
        seen.append((0 in parts.owed(), parts.log.mutex.locked()))
        parts.ring.settle(0, MIB)  # a copier was quick

    monkeypatch.setattr(parts.source.file, "forget", forget)
    with pytest.raises(OSError, match="planted"):
        parts.volume.flush()
    assert seen == [(True, True)]
    assert 0 in parts.owed()


def test_a_flush_stands_behind_what_it_covers(parts: Parts) -> None:
    parts.write(0, b"x")
    parts.volume.flush()
    assert [entry[6] for entry in parts.pending()] == [WRITE, FLUSH]
    assert parts.source.file.syncs == 1


def test_overlapping_writes_have_the_order_of_the_source(parts: Parts) -> None:
    """The second reaches the source only after the first has its position."""
    reached, go = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        if not reached.is_set():
            reached.set()
            assert go.wait(10)

    parts.source.file.before["write"] = hold
    first = threading.Thread(target=parts.write, args=(0, b"a" * 8192))
    first.start()
    assert reached.wait(10)
    second = threading.Thread(target=parts.write, args=(4096, b"b" * 8192))
    second.start()
    parts.write(100_000, b"elsewhere goes on")
    assert bytes(parts.source.file.data[4096:4100]) == bytes(4)
    go.set()
    first.join(10)
    second.join(10)
    assert [entry[2] for entry in parts.pending()] == [100_000, 0, 4096]
    parts.assert_equal()


class TestKilled:
    def test_before_the_source_write(self, parts: Parts) -> None:
        parts.volume.begin(parts.slot, GRAIN, GRAIN, 1)
        parts.restart()
        assert parts.volume.settle_intents() == 1
        assert parts.owed() == {1}

    def test_after_the_source_write_and_before_its_position(self, parts: Parts) -> None:
        parts.write(GRAIN, b"o" * GRAIN)
        parts.volume.begin(parts.slot, GRAIN + 5, 10, 1)
        parts.source.file.write(GRAIN + 5, memoryview(b"n" * 10), 10)
        parts.restart()
        parts.volume.settle_intents()
        copy_what_is_owed(parts)
        parts.assert_equal()

    def test_after_the_position(self, parts: Parts) -> None:
        parts.write(GRAIN, b"n" * GRAIN)
        parts.restart()
        parts.assert_equal()

    def test_while_the_copier_pays(self, parts: Parts) -> None:
        parts.source.file.write(0, memoryview(b"x" * MIB), MIB)
        parts.volume.debts.owe(0, MIB)
        slot = parts.volume.intents.open()
        assert parts.volume.debts.take(slot, 0, MIB) == (0, MIB)
        parts.volume.copy(0, CHUNK)
        parts.restart()
        parts.volume.settle_intents()
        assert parts.owed() == set(range(16))
        copy_what_is_owed(parts)
        parts.assert_equal()

    def test_after_a_debt_was_paid_owes_nothing(self, parts: Parts) -> None:
        parts.volume.debts.owe(0, MIB)
        slot = parts.volume.intents.open()
        parts.volume.debts.take(slot, 0, MIB)
        for at in range(0, MIB, CHUNK):
            parts.volume.copy(at, at + CHUNK)
        parts.volume.debts.pay(slot, [])
        parts.restart()
        assert parts.volume.settle_intents() == 0

    def test_a_closed_connection_leaves_no_intent(self, parts: Parts) -> None:
        parts.write(0, b"x")
        parts.volume.intents.close(parts.slot)
        parts.restart()
        assert parts.volume.settle_intents() == 0


class TestSnapshot:
    def test_counts_what_is_being_copied(self, parts: Parts) -> None:
        parts.volume.debts.owe(0, MIB)
        slot = parts.volume.intents.open()
        parts.volume.debts.take(slot, 0, MIB)
        assert parts.volume.snapshot()[0] == MIB
        parts.volume.debts.paid(CHUNK)
        assert parts.volume.snapshot()[0] == MIB - CHUNK
        parts.volume.debts.pay(slot, [(CHUNK, MIB)])
        assert parts.volume.snapshot()[0] == MIB - CHUNK
        assert parts.owed() == set(range(4, 16))

    def test_never_says_nothing_owed_while_a_run_is_taken(self, parts: Parts) -> None:
        slot, over, lies = parts.volume.intents.open(), threading.Event(), []

        def look() -> None:
            while not over.is_set():
                if parts.volume.snapshot()[0] == 0:
                    lies.append(1)

        parts.volume.debts.owe(0, MIB)
        looker = threading.Thread(target=look)
        looker.start()
        for _ in range(2000):
            parts.volume.debts.take(slot, 0, MIB)
            parts.volume.debts.pay(slot, [(0, MIB)])
        over.set()
        looker.join()
        assert not lies


class TestOutOfService:
    def test_every_change_fails(self, parts: Parts) -> None:
        parts.volume.fail("planted")
        assert parts.volume.mode is Mode.OFFLINE
        with pytest.raises(OSError, match="planted"):
            parts.write(0, b"x")
        with pytest.raises(OSError, match="planted"):
            parts.volume.flush()
        assert not any(parts.source.file.data[:1])

    def test_stop_waits_for_what_is_in_flight_and_lets_nothing_in(self, parts: Parts) -> None:
        reached, go = threading.Event(), threading.Event()

        def hold(*_: int) -> None:
            reached.set()
            assert go.wait(10)

        parts.source.file.before["write"] = hold
        failures: list[int | None] = []

        def late() -> None:
            try:
                parts.write(0, b"b")
            except OSError as error:
                failures.append(error.errno)

        first = threading.Thread(target=parts.write, args=(0, b"a"))
        first.start()
        assert reached.wait(10)
        second = threading.Thread(target=late)
        second.start()
        assert not parts.volume.stop(0.0), "an operation was in flight"
        go.set()
        first.join(10)
        second.join(10)
        assert failures == [errno.ESHUTDOWN]
        assert parts.volume.stop(1e18)
        assert bytes(parts.source.file.data[:1]) == b"a"


def test_a_mark_carries_its_attributes(parts: Parts) -> None:
    parts.volume.marks.append(Kind.SYNC_BEGIN, {"reason": "büro"})
    _, _, _, length, chunk, start, kind, _ = parts.pending()[0]
    at = 4096 + chunk * CHUNK + start
    assert kind == 17
    assert bytes(parts.pool.memory.view[at : at + length]).decode().startswith("{")
    free = parts.allocator.free_count
    parts.deliver()
    parts.volume.marks.close()
    parts.log.reclaim()
    assert parts.allocator.free_count == free + 1
