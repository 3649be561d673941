"""Folding beside persist: the thread that asks, the process that does, and what becomes of both when something dies."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cx_consumers.fold import FoldProcess, FoldThread, Turn, policy_of
from history.catalog import Catalog
from history.retention_table import FOR_EVER
from history.store import open_store
from stream.config import HistoryConfig
from stream.errors import ConfigError, IntegrityError, RetryError
from stream.record import Kind
from tests.history_maker import damage
from tests.history_story import store_all
from tests.journal_maker import JournalMaker, mark, write

CONFIG = HistoryConfig(retention="any write 1 s, 1 s for 1 d", codec="snappy")


def filled(folder: Path) -> Path:
    """Return a store with five seconds of history."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"))
    for number in range(50):
        maker.time_ns += 100_000_000
        maker.batch(write(number * 64, b"x" * 64))
    store_all(maker, open_store(str(folder)), set(range(0, 60, 5)))
    return folder


def test_what_is_due_is_done_by_another_process(tmp_path: Path) -> None:
    folds = FoldProcess(str(filled(tmp_path)), CONFIG)
    try:
        done = folds.turn("v1")
        levels = Catalog(open_store(str(tmp_path)), "v1").levels()
        assert done.folds == len(levels[1]) == 5
        assert done.folded == str(levels[1][-1].last)
        assert done.expired > 0
        assert done.reach is not None and done.reach.every_write_ns < 2 * 10**9 < done.reach.oldest_ns
        assert folds.turn("v1") == Turn(done.folded, 0, 0, reach=done.reach)
        assert folds.turn("v2") == Turn(None, 0, 0)
    finally:
        folds.stop()
    with pytest.raises(RetryError):
        folds.turn("v1")


def test_a_killed_one_is_started_again(tmp_path: Path) -> None:
    folds = FoldProcess(str(filled(tmp_path)), CONFIG)
    try:
        folds.turn("v2")
        os.kill(folds._process.pid, signal.SIGKILL)
        folds._process.wait()
        assert folds.turn("v1").folds == 5
        ask = folds._ask
        folds._ask = lambda process, told: (process.kill(), ask(process, told))[1]  # it dies when it is asked
        with pytest.raises(RetryError):
            folds.turn("v1")
        folds._ask = ask
        assert folds.turn("v1").folds == 0
    finally:
        folds.stop()


def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    """Killed, so that nobody could tell it to stop: its standard input ends."""
    code = (
        "import sys; from cx_consumers.fold import FoldProcess; from stream.config import HistoryConfig\n"
        f"folds = FoldProcess({str(tmp_path)!r}, HistoryConfig()); folds.turn('v1')\n"
        "print(folds._process.pid, flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    child = os.pidfd_open(pid)
    worker.kill()
    worker.wait()
    assert select.select([child], [], [], 10.0)[0], "the child outlives its worker"
    os.close(child)


def test_a_damaged_segment_is_named_and_nothing_is_deleted(tmp_path: Path) -> None:
    store = open_store(str(filled(tmp_path)))
    names = Catalog(store, "v1").levels()[0]
    damage(store, str(names[2]), store.list("v1/L0/")[2].size_bytes - 30)
    before = store.list("v1/L0/")
    folds = FoldProcess(str(tmp_path), CONFIG)
    try:
        with pytest.raises(IntegrityError, match=str(names[2])):
            folds.turn("v1")
    finally:
        folds.stop()
    assert store.list("v1/L0/") == before


def test_the_thread_tells_what_was_done_and_what_is_wrong() -> None:
    answers: list[Turn | Exception] = [Turn("p1", 2, 0), RetryError("away", hint="wait"), Turn("p2", 1, 4)]
    told: list[dict] = []
    done = threading.Event()

    def turn(volume: str) -> Turn:
        told.append(thread.facts())
        if not answers:
            done.set()
            raise RetryError("over")
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    thread = FoldThread("v1", 0.001, turn)
    thread.start()
    assert done.wait(10.0)
    thread.stop()
    thread.join(10.0)
    assert [(one["folded"], one["folds"], one["expired"], one["fold_error"]) for one in told[:4]] == [
        (None, 0, 0, None),
        ("p1", 2, 0, None),
        ("p1", 2, 0, "away"),
        ("p2", 3, 4, None),
    ]


def test_what_differs_is_copied_again() -> None:
    asked: list[tuple] = []
    done = threading.Event()

    def turn(volume: str) -> Turn:
        if asked:
            done.set()
            return Turn(None, 0, 0)
        return Turn(None, 0, 0, (("p7", 4096, 8192),))

    thread = FoldThread("v1", 0.001, turn, repair=lambda *told: asked.append(told))
    thread.start()
    assert done.wait(10.0)
    thread.stop()
    thread.join(10.0)
    assert asked == [("v1", "p7", 4096, 8192)]
    assert thread.facts()["history_different"] == 1


def test_the_config_is_a_policy() -> None:
    policy = policy_of(HistoryConfig())
    assert (policy.bookmarks_ns, policy.bytes_max, policy.codec, policy.scratch) == (365 * 86_400 * 10**9, 0, "zstd", None)
    assert policy_of(replace(HistoryConfig(), bookmarks_d=-1.0, scratch_dir="/x")).bookmarks_ns == FOR_EVER
    with pytest.raises(ConfigError, match="retention"):
        FoldProcess("memory:///", replace(HistoryConfig(), retention="everything"))


def test_stopping_does_not_wait_for_a_fold(tmp_path: Path) -> None:
    folds = FoldProcess(str(tmp_path), CONFIG)
    folds.turn("v1")
    os.kill(folds._process.pid, signal.SIGSTOP)  # as deep in its work as can be
    begun_s = time.monotonic()
    folds.stop()
    assert time.monotonic() - begun_s < 10.0
    assert folds._process.poll() is not None
