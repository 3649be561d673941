"""Modes: the transitions as data, overflow into BITMAP and back, one gap that is announced, nothing that is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import ring as layout
from agent.first_copy import Copier
from agent.modes import TRANSITIONS, Event, Mode
from agent.overflow import RELAPSES_MAX
from agent.session import CaptureDevice
from tests.agent_parts import CHUNK, MIB, Parts
from tests.nbd_feed import Feed

GAP_BEGIN, SYNC_BEGIN, SYNC_END = 19, 17, 18


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, size_bytes=16 * MIB, chunks=24, overflow="bitmap")


def until(true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


def fill(parts: Parts, feed: Feed) -> int:
    """Write until order is lost; return how many writes that took."""
    for number in range(200):
        feed.write(number % 60 * CHUNK, bytes([number + 1]) * CHUNK)
        if parts.volume.mode is Mode.BITMAP:
            return number + 1
    raise AssertionError("the buffer never filled")


def kinds(parts: Parts) -> list[int]:
    return [entry[6] for entry in parts.delivered]


def come_back(parts: Parts) -> None:
    """Do what the keeper does: deliver everything, leave BITMAP."""
    parts.deliver()
    parts.log.reclaim()
    parts.volume.debts.regain_order("there is room")


def pay(parts: Parts) -> None:
    """Let a copier come to its end while everything is delivered."""
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: bool(parts.deliver()) | (parts.volume.mode is Mode.DATA))
    until(lambda: (parts.deliver(), parts.log.reclaim(), parts.volume.mode is Mode.DATA)[-1])
    assert copier.stop(10)


def test_every_mode_can_end_and_none_is_a_trap() -> None:
    for mode in Mode:
        assert TRANSITIONS[mode, Event.ENDED] is Mode.OFFLINE
        reached, seen = {mode}, set()
        while reached - seen:
            one = (reached - seen).pop()
            seen.add(one)
            reached |= {after for (before, _), after in TRANSITIONS.items() if before is one}
        assert Mode.DATA in seen, f"{mode.name} never comes back"


def test_a_full_buffer_slows_nobody_and_is_one_announced_gap(parts: Parts) -> None:
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    written = fill(parts, feed)
    assert written > 10
    for number in range(40):  # nothing waits: nobody delivers
        feed.write(number * CHUNK, bytes([200 + number % 50]) * CHUNK)
    assert parts.volume.modes.reason.startswith("the buffer is full")
    come_back(parts)
    assert parts.volume.mode is Mode.RESYNC
    pay(parts)
    assert kinds(parts).count(GAP_BEGIN) == 1
    assert kinds(parts).index(GAP_BEGIN) < kinds(parts).index(SYNC_BEGIN) < kinds(parts).index(SYNC_END)
    assert parts.ring.words[layout.W_GAPS] == 1
    feed.write(0, b"in order again")
    parts.assert_equal()


def test_the_gap_begins_behind_what_was_captured_in_order(parts: Parts) -> None:
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    before = parts.pending()
    assert before[-1][6] == GAP_BEGIN
    assert parts.ring.text("closes") == f"00000001-{before[-1][0]:016d}"
    assert [entry[0] for entry in before] == list(range(before[0][0], before[-1][0] + 1))


def test_long_writes_need_no_room_in_the_buffer(parts: Parts) -> None:
    device = CaptureDevice(parts.volume, "local")
    first, second = Feed(device.open_session()), Feed(device.open_session())
    fill(parts, first)
    first.write(100, b"a" * (3 * MIB + 17))
    second.write(2 * MIB, b"b" * (2 * MIB))
    assert parts.volume.mode is Mode.BITMAP
    come_back(parts)
    second.write(5 * MIB, b"c" * (2 * MIB + 3))
    pay(parts)
    first.write(7, b"d" * 5000)
    parts.assert_equal()


def test_zero_and_trim_are_owed_in_bitmap(parts: Parts) -> None:
    session = CaptureDevice(parts.volume, "local").open_session()
    feed = Feed(session)
    fill(parts, feed)
    session.zero(3 * CHUNK, CHUNK, punch=True, fast=False, fua=False)
    session.trim(5 * CHUNK, CHUNK, fua=False)
    session.flush()
    come_back(parts)
    pay(parts)
    parts.assert_equal()


def test_a_kill_in_bitmap_forgets_nothing(parts: Parts) -> None:
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    feed.write(9 * MIB, b"unrecorded" * 100)
    owed = parts.owed()
    assert owed
    parts.restart()
    assert parts.owed() == owed
    assert parts.volume.mode is Mode.BITMAP
    come_back(parts)
    pay(parts)
    parts.assert_equal()


def test_order_lost_again_after_the_end_was_told_is_a_gap_of_its_own(parts: Parts) -> None:
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    come_back(parts)
    with parts.log.mutex:
        assert parts.volume.debts.begin_copy() is not None
    slot = parts.volume.intents.open()
    while (run := parts.volume.debts.take(slot, 0, CHUNK)) is not None:
        parts.volume.copy(*run)
        parts.volume.debts.pay(slot, [])
        parts.deliver()
        parts.log.reclaim()
    closes = parts.ring.text("closes")
    assert parts.volume.marks.append_told(SYNC_END, parts.volume.debts.end_copy) is not None
    fill(parts, feed)
    assert not parts.volume.debts.finish_copy()
    assert parts.ring.text("closes").startswith(f"{closes},")
    assert parts.ring.words[layout.W_GAPS] == 2


def test_a_relapse_is_no_second_gap_and_the_third_holds_writes_back(parts: Parts) -> None:
    """Design rule 5: resync converges, by holding the volume's writes to what Kafka takes."""
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    for _ in range(RELAPSES_MAX):
        come_back(parts)
        assert not parts.volume.overflow.holding
        fill(parts, feed)
    come_back(parts)
    assert parts.volume.overflow.holding
    assert parts.ring.words[layout.W_GAPS] == 1
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            feed.write(number * CHUNK, b"x" * CHUNK)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: bool(parts.allocator._queue))
    assert not done.is_set(), "a held write goes on only as Kafka takes more"
    until(lambda: (parts.deliver(), parts.log.reclaim(), parts.volume.overflow.watch(), done.is_set())[-1])
    writer.join(10)
    assert parts.volume.mode is Mode.RESYNC
    pay(parts)
    assert not parts.volume.overflow.holding
    parts.assert_equal()


def test_held_writes_are_let_go_when_kafka_is_silent(parts: Parts) -> None:
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    parts.ring.words[layout.W_RELAPSES] = RELAPSES_MAX
    parts.volume.debts.owe_copy([(0, CHUNK)], "test", "")
    parts.volume.overflow._clock = lambda: parts.volume.overflow._answered_s + 6
    fill(parts, feed)
    assert "acknowledged nothing" in parts.volume.modes.reason


def test_throttle_waits_and_then_gives_order_up(tmp_path: Path) -> None:
    parts = Parts(tmp_path, size_bytes=16 * MIB, chunks=24, overflow="throttle")
    parts.volume.overflow._throttle_s_max = 0.05
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    come_back(parts)
    pay(parts)
    parts.assert_equal()


def test_a_stream_flush_promises_the_source_alone_while_a_gap_is_open(parts: Parts) -> None:
    device = CaptureDevice(parts.volume, "stream")
    session = device.open_session()
    feed = Feed(session)
    waiter = threading.Thread(target=session.flush)
    waiter.start()
    fill(parts, feed)
    parts.log.acknowledged()
    waiter.join(10)
    assert not waiter.is_alive(), "a flush that waits is let go when order is lost"
    session.flush()
    strict = CaptureDevice(parts.volume, "stream", "fail").open_session()
    with pytest.raises(OSError, match="BITMAP"):
        strict.flush()


def test_an_activity_log_that_fails_lets_nothing_reach_the_source(parts: Parts) -> None:
    """Design rule 1: activity log before the source write."""
    parts.activity.failure = OSError(5, "planted")
    before = bytes(parts.source.file.data)
    with pytest.raises(OSError, match="planted"):
        parts.write(0, b"x" * 5000)
    assert bytes(parts.source.file.data) == before
    parts.activity.failure = None
    parts.write(0, b"x" * 5000)
    assert parts.activity.touched[-1] == (0, 5000)
    parts.assert_equal()


def test_debts_are_in_the_activity_log_before_they_are_owed(parts: Parts) -> None:
    """Design rule 13: debts are written down."""
    parts.activity.failure = OSError(5, "planted")
    with pytest.raises(OSError, match="planted"):
        parts.volume.debts.owe_copy(parts.whole, "test", "")
    assert parts.owed() == set()
    parts.activity.failure = None
    parts.volume.debts.owe_copy(parts.whole, "test", "")
    assert parts.activity.owed == [(0, 16 * MIB)]


def test_a_failed_flush_leaves_what_it_stood_for_in_doubt(parts: Parts) -> None:
    """Design rule 15: a failed fdatasync; a later success does not clear it."""
    parts.write(3 * MIB + 5, b"x" * 100)
    parts.source.file.errors["sync"] = 5
    with pytest.raises(OSError, match="planted"):
        parts.volume.flush()
    parts.source.file.errors.clear()
    parts.volume.flush()
    assert parts.owed() == set(range(48, 64))
    assert parts.source.file.forgotten == [(3 * MIB, MIB)]
    parts.source.file.data[3 * MIB : 3 * MIB + 4096] = b"\7" * 4096  # what the disk really has
    slot = parts.volume.intents.open()
    while (run := parts.volume.debts.take(slot, 0, CHUNK)) is not None:
        parts.volume.copy(*run)
        parts.volume.debts.pay(slot, [])
    parts.assert_equal()


class CountingLock:
    """A lock that knows how many came to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._came.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def came(self, count: int) -> bool:
        """Wait until so many have come."""
        return all(self._came.acquire(timeout=30) for _ in range(count))


def test_flushes_that_wait_share_one_and_never_one_that_began_before(parts: Parts) -> None:
    began, gate = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        began.set()
        assert gate.wait(10)

    parts.source.file.before["sync"] = hold
    parts.volume._syncing = queue = CountingLock()
    first = threading.Thread(target=parts.volume.sync_source)
    first.start()
    assert began.wait(10)
    later = [threading.Thread(target=parts.volume.sync_source) for _ in range(5)]
    for one in later:
        one.start()
    assert queue.came(6)
    gate.set()
    for one in (first, *later):
        one.join(10)
    assert parts.source.file.syncs == 2, "five waited for one of their own, not for the one under way"


def test_a_write_pays_what_it_covers_whole(parts: Parts) -> None:
    """While a copy is under way: so that a volume that is written all over need not be read all over too.

    Not before its `sync_begin`: whoever has missed something takes nothing for whole that comes before that.
    """
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    fill(parts, feed)
    come_back(parts)
    parts.volume.debts.owe(0, 16 * MIB)
    feed.write(5 * MIB, b"w" * (192 << 10))
    assert parts.owed() == set(range(256))
    assert parts.volume.debts.take(0, 0, 16 * MIB) is None
    assert parts.volume.marks.append_told(SYNC_BEGIN, parts.volume.debts.begin_copy) is not None
    feed.write(MIB, b"x" * (192 << 10))
    feed.write(2 * MIB + 5, b"y" * (128 << 10))
    paid = {16, 17, 18, 33}
    assert parts.owed() == set(range(256)) - paid
    pay(parts)
    parts.assert_equal()
