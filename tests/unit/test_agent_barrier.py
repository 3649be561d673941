"""The barrier: all volumes or none, never longer than its limit, and nobody else is touched (design rule 10)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import ring as layout
from agent.barrier import Barrier
from agent.modes import Event
from agent.session import CaptureDevice
from stream.errors import RetryError
from stream.record import Kind
from tests.agent_parts import CHUNK, POOL_AT, WRITE, Parts

BOOKMARK = 21
LIMIT_S = 0.3
TOLD = {"label": "x", "group": "g", "members": "a,b", "barrier": "id-1"}


class Disk:
    """A disk that can hang: a write that came in waits until it is let go."""

    def __init__(self, parts: Parts) -> None:
        self.came = threading.Event()
        self.go_on = threading.Event()
        parts.source.file.before["write"] = self._hang

    def _hang(self, offset_bytes: int, length_bytes: int) -> None:
        self.came.set()
        assert self.go_on.wait(20)


def volume(folder: Path, name: str, **options: object) -> Parts:
    (folder / name).mkdir()
    parts = Parts(folder / name, name=name, **options)
    parts.log.keep_entries()
    return parts


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Parts, Parts]]:
    yield volume(tmp_path, "a"), volume(tmp_path, "b")


def barrier(*parts: Parts, limit_s: float = LIMIT_S) -> Barrier:
    return Barrier([one.volume for one in parts], limit_s)


def take(*parts: Parts, limit_s: float = LIMIT_S):
    return barrier(*parts, limit_s=limit_s).mark(Kind.BOOKMARK, TOLD, "id-1")


def refusal(*parts: Parts) -> RetryError:
    with pytest.raises(RetryError) as refused:
        take(*parts, limit_s=10)
    return refused.value


def marks(parts: Parts) -> list[int]:
    return [entry[0] for entry in parts.pending() if entry[6] == BOOKMARK]


def writes(parts: Parts) -> list[int]:
    return [entry[0] for entry in parts.pending() if entry[6] == WRITE]


def in_background(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if true():
            return
        threading.Event().wait(0.0005)
    raise AssertionError("it never happened")


def test_each_volume_gets_the_mark_at_its_head(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    a.write(0, b"1" * 4096)
    passed = take(b, a)
    assert [(name, mark.position) for name, mark in passed.marks.items()] == [
        ("a", "00000001-0000000000000003"),
        ("b", "00000001-0000000000000002"),
    ]
    assert 0 <= passed.stopped_ms < LIMIT_S * 1000
    for parts, sequence in ((a, 3), (b, 2)):
        entry = parts.entry(sequence)
        at = POOL_AT + entry[4] * CHUNK + entry[5]
        assert entry[6] == BOOKMARK
        assert entry[1] == passed.marks[parts.name].capture_time_ns
        assert json.loads(bytes(parts.pool.memory.view[at : at + entry[3]])) == TOLD
        assert parts.ring.text("marked") == f"id-1 {passed.marks[parts.name].position} {entry[1]}"
        parts.write(4096, b"2" * 4096)  # all go on
        parts.assert_equal()


def test_what_was_admitted_before_is_behind_the_mark_and_what_came_after_is_not(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    disk = Disk(b)
    first = in_background(lambda: b.write(0, b"1" * 4096))
    assert disk.came.wait(5)
    done: list[object] = []
    taking = in_background(lambda: done.append(take(a, b, limit_s=10)))
    until(lambda: bool(b.volume.locks._waiters))
    late = in_background(lambda: a.write(0, b"2" * 4096))  # a is closed already, though it is b that is waited for
    until(lambda: len(a.volume.locks._waiters) == 2)
    assert not done and not writes(a)
    disk.go_on.set()
    for thread in (first, taking, late):
        thread.join(10)
    assert len(done) == 1
    assert (writes(b), marks(b)) == ([2], [3])
    assert (marks(a), writes(a)) == ([2], [3])


def test_a_disk_that_hangs_makes_the_barrier_fail_and_nobody_waits(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    disk = Disk(b)
    hung = in_background(lambda: b.write(0, b"1" * 4096))
    assert disk.came.wait(5)
    began_s = time.monotonic()
    with pytest.raises(RetryError, match="Writes under way on volume b did not end within 100 ms"):
        take(a, b, limit_s=0.1)
    assert time.monotonic() - began_s < 5
    a.write(0, b"2" * 4096)
    assert not marks(a) and not marks(b)
    assert not a.volume.locks._waiters and not b.volume.locks._waiters
    disk.go_on.set()
    hung.join(5)
    b.write(4096, b"3" * 4096)
    assert take(a, b).marks.keys() == {"a", "b"}
    a.assert_equal()
    b.assert_equal()


class SlowLocks:
    """The locks of a volume that takes 0.2 s to drain, by the barrier's own clock."""

    def __init__(self, parts: Parts, clock: list[float], seen: list[float]) -> None:
        self._locks = parts.volume.locks
        self._clock = clock
        self._seen = seen
        parts.volume.locks = self

    def __getattr__(self, name: str) -> object:
        return getattr(self._locks, name)

    def drained(self, gate: object, timeout_s: float) -> bool:
        self._seen.append(round(timeout_s, 3))
        self._clock[0] += 0.2
        return timeout_s >= 0.2


def test_each_volume_is_drained_with_what_the_ones_before_left_of_the_time(pair: tuple[Parts, Parts], tmp_path: Path) -> None:
    three, clock, seen = [*pair, volume(tmp_path, "c")], [100.0], []
    for one in three:
        SlowLocks(one, clock, seen)
    volumes = [one.volume for one in reversed(three)]
    with pytest.raises(RetryError, match="volume c did not end within 500 ms"):
        Barrier(volumes, 0.5, lambda: clock[0]).mark(Kind.BOOKMARK, TOLD, "id-1")
    assert seen == [0.5, 0.3, 0.1]
    assert not any(marks(one) for one in three)
    seen.clear()
    passed = Barrier(volumes, 1.0, lambda: clock[0]).mark(Kind.BOOKMARK, TOLD, "id-1")
    assert (seen, passed.stopped_ms) == ([1.0, 0.8, 0.6], 600.0)


def test_a_volume_that_takes_no_part_is_not_touched(pair: tuple[Parts, Parts], tmp_path: Path) -> None:
    a, b = pair
    other = volume(tmp_path, "c")
    disk = Disk(b)
    hung = in_background(lambda: b.write(0, b"1" * 4096))
    assert disk.came.wait(5)
    done: list[object] = []
    taking = in_background(lambda: done.append(take(a, b, limit_s=10)))
    until(lambda: bool(a.volume.locks._waiters))
    other.write(0, b"2" * 4096)
    into = memoryview(bytearray(4096))
    CaptureDevice(a.volume, "local").open_session().read(0, into)  # nor is a reader of a member
    assert not done
    disk.go_on.set()
    hung.join(5)
    taking.join(10)
    assert len(done) == 1


@pytest.mark.parametrize("how", ["bitmap", "resync", "sync", "gap"])
def test_no_mark_while_a_gap_is_open(pair: tuple[Parts, Parts], how: str) -> None:
    a, b = pair
    if how == "bitmap":
        b.volume.lose_order()
    elif how == "resync":
        b.volume.debts.owe_copy(b.whole, "asked for", "")
    elif how == "sync":
        b.volume.modes.lay_down()
        b.volume.modes.happen(Event.SERVED_NEW, "first copy")
    else:
        b.ring.words[layout.W_GAP_OPEN] = 1
    with pytest.raises(RetryError, match=r"Volume b is in mode .* a gap is open") as refused:
        take(a, b)
    assert refused.value.exit_code == 3
    assert not marks(a) and not marks(b)
    a.write(0, b"1" * 4096)


def test_order_that_is_lost_while_the_others_are_drained_marks_nothing(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    disk = Disk(b)
    hung = in_background(lambda: b.write(0, b"1" * 4096))
    assert disk.came.wait(5)
    refused: list[RetryError] = []
    taking = in_background(lambda: refused.append(refusal(a, b)))
    until(lambda: bool(b.volume.locks._waiters))
    a.volume.lose_order()
    disk.go_on.set()
    taking.join(10)
    hung.join(5)
    assert "Volume a is in mode BITMAP" in refused[0].sentence
    assert not marks(a) and not marks(b)


def test_a_volume_out_of_service_is_named(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    b.volume.fail("planted")
    with pytest.raises(RetryError, match="Volume b is out of service: planted"):
        take(a, b)


def test_marks_on_an_idle_volume_never_run_out_of_room(tmp_path: Path) -> None:
    a = volume(tmp_path, "a")
    for number in range(9000):  # more than two blocks of entries, and many chunks of attributes
        take(a)
        if number % 500 == 0:
            a.deliver()
            a.log.reclaim()
    assert a.head == 9001


def test_a_full_buffer_refuses_before_anybody_is_stopped(tmp_path: Path) -> None:
    a = volume(tmp_path, "a", chunks=4)
    a.allocator.take(3, index=True)
    with pytest.raises(RetryError, match="no memory for a mark of volume a"):
        Barrier([a.volume], LIMIT_S).mark(Kind.BOOKMARK, TOLD, "id-1", room_s=0.05)
    assert not a.volume.locks._waiters


def test_who_waited_at_the_gate_hears_that_the_volume_stopped(pair: tuple[Parts, Parts]) -> None:
    a, b = pair
    disk = Disk(b)
    hung = in_background(lambda: b.write(0, b"1" * 4096))
    assert disk.came.wait(5)
    refused: list[RetryError] = []
    taking = in_background(lambda: refused.append(refusal(a, b)))
    until(lambda: bool(b.volume.locks._waiters))
    failed: list[OSError] = []

    def write() -> None:
        with pytest.raises(OSError) as one:
            a.write(0, b"2" * 4096)
        failed.append(one.value)

    late = in_background(write)
    until(lambda: len(a.volume.locks._waiters) == 2)
    a.volume.fail("planted")
    disk.go_on.set()
    for thread in (hung, taking, late):
        thread.join(10)
    assert failed and failed[0].strerror == "planted"
    assert refused and not marks(a)
    assert not marks(b)
