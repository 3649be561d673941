"""`Copier`: pays what is owed, whatever happens meanwhile, and says so only when it is paid."""

from __future__ import annotations

import errno
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import first_copy
from agent import ring as layout
from agent.first_copy import Copier
from agent.modes import Mode
from tests.agent_parts import CHUNK, MIB, WRITE, Delivering, Parts

SYNC_BEGIN, SYNC_END = 17, 18
GRAIN = 64 << 10


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_copy, "UNREADABLE_PAUSE_S", 0.005)


def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


class Copying:
    """A copier over parts, with somebody who delivers."""

    def __init__(self, parts: Parts, bytes_per_s_max: int = 0) -> None:
        self.parts = parts
        self.copier = Copier(parts.volume, bytes_per_s_max)
        self.attributes: dict[int, dict[str, str]] = {}

    def __enter__(self) -> Copying:
        self._delivering = Delivering(self.parts)
        self._delivering.__enter__()
        self.copier.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.copier.stop(10)
        self._delivering.__exit__()

    def done(self) -> None:
        until(lambda: self.parts.volume.snapshot()[:2] == (0, Mode.DATA))


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    yield Parts(tmp_path, size_bytes=8 * MIB)


def fill(parts: Parts, start: int, end: int) -> None:
    payload = random.Random(start).randbytes(end - start)
    parts.source.file.write(start, memoryview(payload), len(payload))


def mark_attributes(parts: Parts, kind: int) -> list[dict[str, str]]:
    """Return the attributes of the marks of a kind among what waits in the ring."""
    found = []
    for entry in parts.pending():
        if entry[6] == kind:
            at = 4096 + entry[4] * CHUNK + entry[5]
            found.append(json.loads(bytes(parts.pool.memory.view[at : at + entry[3]])))
    return found


def test_copies_everything_and_ends_in_data(parts: Parts) -> None:
    fill(parts, 0, 3 * MIB + 777)
    fill(parts, 5 * MIB, 5 * MIB + 4096)
    parts.replica[:] = b"\xff" * len(parts.replica)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "00000001-0000000000000001")
    assert parts.volume.snapshot()[:2] == (8 * MIB, Mode.RESYNC)
    with Copying(parts) as copying:
        copying.done()
    parts.assert_equal()
    kinds = [entry[6] for entry in parts.delivered]
    assert kinds[0] == SYNC_BEGIN
    assert kinds.count(SYNC_END) == 1
    assert kinds[-1] == SYNC_END
    assert parts.ring.text("closes") == ""
    payload = sum(entry[3] for entry in parts.delivered if entry[6] == WRITE)
    assert payload <= 3 * MIB + CHUNK + 4096 + CHUNK, "holes travelled as bytes"
    assert parts.ring.words[layout.W_RESYNC_BYTES] == payload


def test_data_comes_only_when_kafka_has_the_end(parts: Parts) -> None:
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: any(entry[6] == SYNC_END for entry in parts.pending()))
    assert parts.volume.mode is Mode.RESYNC
    parts.deliver()
    until(lambda: parts.volume.mode is Mode.DATA)
    assert copier.stop(10)


def test_names_the_gaps_that_it_closes(parts: Parts) -> None:
    parts.volume.debts.owe_copy(parts.whole, "one", "00000001-0000000000000001")
    parts.volume.debts.owe_copy(parts.whole, "two", "00000001-0000000000000005")
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: any(entry[6] == SYNC_END for entry in parts.pending()))
    assert mark_attributes(parts, SYNC_END)[0] == {"closes": "00000001-0000000000000001,00000001-0000000000000005"}
    assert copier.stop(10)


def test_a_sync_asked_for_while_the_end_waits_for_kafka_is_not_lost(parts: Parts) -> None:
    """The end of the first names the first gap alone; the second is copied, and closed by an end of its own."""
    parts.volume.debts.owe_copy(parts.whole, "one", "00000001-0000000000000001")
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: any(entry[6] == SYNC_END for entry in parts.pending()))
    fill(parts, 0, MIB)
    parts.volume.debts.owe_copy(parts.whole, "two", "00000001-0000000000000005")
    assert mark_attributes(parts, SYNC_END) == [{"closes": "00000001-0000000000000001"}]
    parts.deliver(max(entry[0] for entry in parts.pending() if entry[6] == SYNC_END))
    until(lambda: any(entry[6] == SYNC_END for entry in parts.pending()))
    assert "00000001-0000000000000005" in mark_attributes(parts, SYNC_END)[0]["closes"]
    assert parts.volume.mode is Mode.RESYNC
    parts.assert_equal()
    until(lambda: parts.volume.mode is Mode.DATA)
    assert copier.stop(10)


def test_a_gap_is_not_closed_by_an_end_that_was_not_copied_for_it(parts: Parts) -> None:
    """Asked for between the last piece and its end: everything is owed, so there is no end yet."""
    parts.ring.words[layout.W_SYNC_STATE] = layout.SYNC_RUNNING
    assert parts.volume.debts.end_copy() == {"closes": ""}
    parts.volume.debts.owe_copy(parts.whole, "late", "00000001-0000000000000005")
    assert parts.volume.debts.end_copy() is None
    assert not parts.volume.debts.finish_copy()
    assert parts.volume.mode is Mode.RESYNC
    assert parts.ring.text("closes") == "00000001-0000000000000005"


def test_a_bad_sector_stays_owed_and_holds_up_nothing_else(parts: Parts) -> None:
    fill(parts, 0, 8 * MIB)
    parts.source.file.bad = {3 * MIB + 5}
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    with Copying(parts) as copying:
        until(lambda: parts.volume.snapshot()[0] == CHUNK)
        sent = parts.ring.words[layout.W_RESYNC_BYTES]
        assert sent == 8 * MIB - CHUNK
        threading.Event().wait(0.1)
        assert parts.ring.words[layout.W_RESYNC_BYTES] == sent, "the same bytes are copied again and again"
        assert parts.volume.mode is Mode.RESYNC
        parts.deliver()
        assert parts.replica[: 3 * MIB] == parts.source.file.data[: 3 * MIB]
        assert parts.replica[3 * MIB + CHUNK :] == parts.source.file.data[3 * MIB + CHUNK :]
        parts.source.file.bad = set()
        copying.done()
    parts.assert_equal()


def test_a_single_extent_is_copied_in_data_mode_without_a_sync(parts: Parts) -> None:
    with Copying(parts) as copying:
        parts.source.file.short_bytes = 10
        with pytest.raises(OSError, match="planted"):
            parts.write(MIB, b"x" * 100)
        parts.source.file.short_bytes = None
        copying.done()
    parts.assert_equal()
    assert {entry[6] for entry in parts.delivered} == {WRITE}


def test_goes_on_where_it_was_killed(parts: Parts) -> None:
    fill(parts, 0, 8 * MIB)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "00000001-0000000000000001")
    calls = []

    class Killed(BaseException):
        pass

    def die_after_twelve(*_: int) -> None:
        calls.append(1)
        if len(calls) > 12:
            parts.source.file.before.clear()
            raise Killed

    parts.source.file.before["read"] = die_after_twelve
    parts.volume.copy_hole(0, 4096)
    copier = Copier(parts.volume, 0)
    copier._words[layout.W_SYNC_STATE] = layout.SYNC_RUNNING
    slot = parts.volume.intents.open()
    with pytest.raises(Killed):
        while (run := parts.volume.debts.take(slot, 0, 2 * MIB)) is not None:
            for at in range(*run, CHUNK):
                parts.volume.copy(at, at + CHUNK)
            parts.volume.debts.pay(slot, [])
    parts.restart()
    assert parts.volume.settle_intents() == 1
    assert parts.volume.snapshot()[0] == 6 * MIB
    with Copying(parts) as copying:
        copying.done()
    parts.assert_equal()


def test_a_stop_writes_down_what_is_left(parts: Parts) -> None:
    fill(parts, 0, 8 * MIB)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    copier = Copier(parts.volume, 0)
    reached, go = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        if len(parts.pending()) > 5:
            reached.set()
            assert go.wait(10)

    parts.source.file.before["read"] = hold
    copier.start()
    assert reached.wait(10)
    stopping = threading.Thread(target=copier.stop, args=(10,))
    stopping.start()
    until(lambda: copier._stop.is_set())
    go.set()
    stopping.join(10)
    parts.deliver()
    left = parts.owed()
    source = parts.source.file.data
    copied = {at // GRAIN for at in range(0, 8 * MIB, GRAIN) if parts.replica[at : at + GRAIN] == source[at : at + GRAIN]}
    assert left
    assert left | copied == set(range(128))


def test_keeps_the_speed_limit(parts: Parts) -> None:
    fill(parts, 0, 2 * MIB)
    parts.volume.debts.owe(0, 2 * MIB)
    began_s = time.monotonic()
    with Copying(parts, bytes_per_s_max=8 * MIB) as copying:
        copying.done()
    assert time.monotonic() - began_s >= 0.2


def test_goes_on_while_the_application_fills_the_buffer(tmp_path: Path) -> None:
    """Nothing is free for longer than it takes the application to ask: the copy has a share all the same."""
    parts = Parts(tmp_path, size_bytes=8 * MIB, chunks=32)
    fill(parts, 0, 4 * MIB)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    kept = parts.allocator.take(24)
    with Copying(parts) as copying:
        copying.done()
    parts.allocator.give(kept)
    parts.assert_equal()


def test_holds_no_more_than_its_share_of_the_buffer(tmp_path: Path) -> None:
    parts = Parts(tmp_path, size_bytes=32 * MIB, chunks=64)
    fill(parts, 0, 32 * MIB)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: parts.allocator.free_count <= 34)
    threading.Event().wait(0.1)
    assert parts.allocator.free_count >= 30
    assert copier.stop(10)


def test_does_not_publish_the_end_of_a_source_that_is_gone(parts: Parts) -> None:
    """A volume out of service copies nothing: what a vanished source seems to hold is not its content."""
    fill(parts, 0, MIB)
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    parts.volume.fail("planted")
    copier = Copier(parts.volume, 0)
    copier.start()
    until(lambda: not copier._thread.is_alive())
    assert parts.pending() == []
    assert parts.volume.snapshot()[0] == 8 * MIB


@pytest.mark.parametrize("code", [errno.EIO, errno.ENXIO])
def test_unreadable_extents_are_an_error_not_an_end(parts: Parts, code: int) -> None:
    parts.source.file.errors["extents"] = code
    parts.volume.debts.owe_copy(parts.whole, "first copy", "")
    with Copying(parts) as copying:
        threading.Event().wait(0.05)
        assert parts.volume.snapshot()[:2] == (8 * MIB, Mode.RESYNC)
        parts.source.file.errors.clear()
        copying.done()
    parts.assert_equal()
