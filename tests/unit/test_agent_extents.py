"""Locks on extents: overlapping operations in one order, others side by side, nobody starved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from agent.extents import ExtentLocks, Watch


class Room:
    """Extent locks with their mutex, and threads that enter."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.locks = ExtentLocks(self.mutex)
        self.entered: list[str] = []
        self.pool = ThreadPoolExecutor(8)

    def enter(self, name: str, start: int, end: int) -> Future[None]:
        """Enter on a thread; return when it is either in or waits."""
        future = self.pool.submit(self._enter, name, start, end)
        self.until(lambda: future.done() or self.waiting >= self._expected_waiting)
        return future

    @property
    def waiting(self) -> int:
        return len(self.locks._waiters)

    def until(self, true: Callable[[], bool]) -> None:
        for _ in range(200_000):
            if true():
                return
            threading.Event().wait(0.0001)
        raise AssertionError("it never happened")

    def blocked(self, name: str, start: int, end: int) -> Future[None]:
        """Enter on a thread that must wait."""
        self._expected_waiting = self.waiting + 1
        future = self.enter(name, start, end)
        assert not future.done()
        return future

    def free(self, name: str, start: int, end: int) -> None:
        """Enter on a thread that must not wait."""
        self._expected_waiting = 1 << 30
        self.enter(name, start, end).result(5)

    def leave(self, start: int) -> None:
        with self.mutex:
            self.locks.leave(start)

    def _enter(self, name: str, start: int, end: int) -> None:
        with self.mutex:
            self.locks.enter(start, end)
            self.entered.append(name)


@pytest.fixture
def room():
    room = Room()
    yield room
    room.pool.shutdown(wait=True)


def test_neighbours_run_side_by_side(room: Room) -> None:
    room.free("a", 0, 10)
    room.free("b", 10, 20)
    room.free("c", 30, 31)
    assert not room.locks.idle


@pytest.mark.parametrize(("start", "end"), [(0, 10), (9, 10), (9, 30), (0, 1), (3, 4), (0, 100)])
def test_overlapping_waits(room: Room, start: int, end: int) -> None:
    room.free("a", 0, 10)
    second = room.blocked("b", start, end)
    room.leave(0)
    second.result(5)
    assert room.entered == ["a", "b"]


def test_who_waits_is_not_overtaken_by_who_overlaps_it(room: Room) -> None:
    room.free("small 1", 0, 10)
    large = room.blocked("large", 0, 100)
    small = room.blocked("small 2", 50, 60)
    room.free("elsewhere", 200, 210)
    room.leave(0)
    large.result(5)
    assert not small.done()
    room.leave(0)
    small.result(5)
    assert room.entered == ["small 1", "elsewhere", "large", "small 2"]


def test_many_waiters_for_one_extent_come_in_their_order(room: Room) -> None:
    room.free("first", 0, 10)
    futures = [room.blocked(str(number), 0, 10) for number in range(5)]
    for future in futures:
        room.leave(0)
        future.result(5)
    assert room.entered == ["first", *map(str, range(5))]


def test_a_watch_sees_who_enters_it(room: Room) -> None:
    watch = Watch(10, 20)
    with room.mutex:
        room.locks.begin_watch(watch)
    room.free("elsewhere", 0, 10)
    assert not watch.touched
    room.free("inside", 19, 30)
    assert watch.touched


def test_a_watch_counts_who_was_there_before_it_began(room: Room) -> None:
    room.free("before", 5, 11)
    watch = Watch(10, 20)
    with room.mutex:
        room.locks.begin_watch(watch)
    room.leave(5)
    with room.mutex:
        assert room.locks.enter_watched(watch)
        room.locks.leave(10)
    assert room.locks.idle


def test_an_untouched_watch_says_so_and_ends(room: Room) -> None:
    watch = Watch(10, 20)
    with room.mutex:
        room.locks.begin_watch(watch)
        assert not room.locks.enter_watched(watch)
    late = room.blocked("late", 15, 16)
    assert not watch.touched
    room.leave(10)
    late.result(5)
    assert not watch.touched
