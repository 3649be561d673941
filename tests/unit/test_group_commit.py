"""Group commit: who waits for whom, and what an error does to the others."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from agent.group_commit import GroupCommit


class Disk:
    """Carries out groups; each waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.at_work = 0
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.error: BaseException | None = None

    def carry_out(self, changes: list[int]) -> None:
        self.at_work += 1
        assert self.at_work == 1, "two rounds at once"
        self.groups.append(list(changes))
        self.entered.release()
        assert self.let_go.acquire(timeout=10)
        self.at_work -= 1
        if self.error is not None:
            raise self.error


class Writers:
    """Threads that hand in one change each, and what became of them."""

    def __init__(self, commits: GroupCommit[int]) -> None:
        self._commits = commits
        self._threads: list[threading.Thread] = []
        self.done: list[int] = []
        self.refused: list[int] = []

    def start(self, *changes: int) -> None:
        """Start a thread for each, and return when they wait (or are at work)."""
        for change in changes:
            self._threads.append(threading.Thread(target=self._run, args=(change,)))
            self._threads[-1].start()

    def waiting(self, count: int) -> None:
        while len(self._commits._next.changes) < count:
            assert any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _run(self, change: int) -> None:
        try:
            self._commits.commit(change)
            self.done.append(change)
        except OSError:
            self.refused.append(change)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writers(disk: Disk) -> Writers:
    return Writers(GroupCommit(disk.carry_out))


def commits(writers: Writers) -> GroupCommit[int]:
    return writers._commits


def test_those_that_wait_share_a_round(disk: Disk, writers: Writers) -> None:
    writers.start(0)
    disk.entered.acquire()
    writers.start(*range(1, 20))
    writers.waiting(19)
    disk.let_go.release()
    disk.entered.acquire()
    assert writers.done in ([], [0])
    writers.start(20)
    writers.waiting(1)
    disk.let_go.release(2)
    writers.join()
    assert [sorted(group) for group in disk.groups] == [[0], list(range(1, 20)), [20]]
    assert sorted(writers.done) == list(range(21))


def test_nobody_comes_back_before_his_round_is_over(disk: Disk, writers: Writers) -> None:
    writers.start(0)
    disk.entered.acquire()
    writers.start(1)
    writers.waiting(1)
    assert writers.done == []
    disk.let_go.release()
    disk.entered.acquire()
    assert writers.done in ([], [0])
    disk.let_go.release()
    writers.join()
    assert sorted(writers.done) == [0, 1]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_is_everybodys(disk: Disk, writers: Writers, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # the interrupted thread itself
    writers.start(0)
    disk.entered.acquire()
    writers.start(1, 2, 3)
    writers.waiting(3)
    disk.error = error
    disk.let_go.release()
    writers.join()
    assert writers.done == []
    assert sorted(writers.refused)[-3:] == [1, 2, 3]
    assert disk.groups == [[0]], "nothing is tried after a failure"
    assert commits(writers).failure is not None
    for _ in range(3):
        with pytest.raises(OSError, match="could not be made durable"):
            commits(writers).commit(4)
    assert disk.groups == [[0]]


def test_closing_waits_for_the_round_on_its_way(disk: Disk, writers: Writers) -> None:
    writers.start(0)
    disk.entered.acquire()
    writers.start(1)
    writers.waiting(1)
    assert not commits(writers).close(0.0)
    disk.let_go.release()
    assert commits(writers).close(10.0)
    writers.join()
    assert (writers.done, writers.refused) == ([0], [1])
    assert disk.groups == [[0]]


def test_told_from_outside_to_fail(disk: Disk, writers: Writers) -> None:
    commits(writers).fail(OSError(errno.EIO, "elsewhere"))
    commits(writers).fail(OSError(errno.ENOSPC, "later"))
    with pytest.raises(OSError, match="elsewhere"):
        commits(writers).commit(1)
    assert disk.groups == []


def test_a_failure_from_outside_does_not_take_back_what_is_durable(disk: Disk, writers: Writers) -> None:
    writers.start(0)
    disk.entered.acquire()
    commits(writers).fail(OSError(errno.EIO, "elsewhere"))
    disk.let_go.release()
    writers.join()
    assert writers.done == [0]


def test_many_threads_many_times() -> None:
    """Each change is carried out once, by the time its thread comes back."""
    carried: list[int] = []
    group: GroupCommit[int] = GroupCommit(carried.extend)
    wrong: list[int] = []

    def run(first: int, commit: Callable[[int], None]) -> None:
        for change in range(first, first + 300):
            commit(change)
            if change not in carried[-5000:]:
                wrong.append(change)

    threads = [threading.Thread(target=run, args=(number * 1000, group.commit)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert sorted(carried) == [number * 1000 + change for number in range(8) for change in range(300)]
