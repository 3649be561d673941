"""A frozen application is thawed once, whatever ends the frozen stretch: real shell lines, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hostoffload import freeze
from hostoffload.freeze import FrozenApplication
from hostoffload.process import start_ticks
from stream.errors import RetryError

CHILD = """
import signal, sys, time
from pathlib import Path
from hostoffload.freeze import FrozenApplication, interrupted_by_signals
folder = Path(sys.argv[1])
with interrupted_by_signals():
    try:
        with FrozenApplication(sys.argv[2], sys.argv[3], 30) as frozen:
            (folder / "inside").touch()
            time.sleep(30)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
"""


def until(true: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if true():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_freeze_then_thaw(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with FrozenApplication(f"echo frozen >> {log}", f"echo thawed >> {log}", 10) as frozen:
        assert lines(log) == ["frozen"]
    assert lines(log) == ["frozen", "thawed"]
    assert frozen.frozen_ms > 0 and frozen.thaw_failure is None


def test_a_freeze_that_fails_is_thawed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RetryError, match="ended with exit code 7"), FrozenApplication("exit 7", f"echo thawed >> {log}", 10):
        raise AssertionError("it is not frozen")
    assert lines(log) == ["thawed"]


def test_a_freeze_that_hangs_is_ended_and_thawed(tmp_path: Path) -> None:
    log, pid = tmp_path / "log", tmp_path / "pid"
    with pytest.raises(RetryError, match="did not end within"), FrozenApplication(
        f"echo $$ > {pid}; sleep 60", f"echo thawed >> {log}", 0.3
    ):
        raise AssertionError("it is not frozen")
    assert lines(log) == ["thawed"]
    until(lambda: start_ticks(int(lines(pid)[0])) is None)


def test_an_error_in_between_thaws(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RuntimeError), FrozenApplication("true", f"echo thawed >> {log}", 10):
        raise RuntimeError("planted")
    assert lines(log) == ["thawed"]


def test_a_thaw_that_fails_is_told(tmp_path: Path) -> None:
    with FrozenApplication("true", "exit 3", 10) as frozen:
        pass
    assert frozen.thaw_failure == "the thaw command ended with exit code 3"


def test_a_thaw_that_hangs_is_told_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "THAW_S_MAX", 0.2)
    done = tmp_path / "done"
    with FrozenApplication("true", f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; touch {done}", 10) as frozen:
        pass
    assert "still runs after" in frozen.thaw_failure
    (tmp_path / "go").touch()
    until(done.exists)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("where", ["frozen", "freezing"])
def test_a_signal_thaws_once(tmp_path: Path, number: signal.Signals, where: str) -> None:
    log, began, pid = tmp_path / "log", tmp_path / "began", tmp_path / "pid"
    line = f"echo $$ > {pid}; touch {began}" + ("" if where == "frozen" else "; sleep 60; :")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), line, f"echo thawed >> {log}"], start_new_session=True)
    until((tmp_path / "inside").exists if where == "frozen" else began.exists)
    child.send_signal(number)
    child.wait(10)
    until(lambda: lines(log) == ["thawed"])
    until(lambda: start_ticks(int(lines(pid)[0])) is None)
    assert (tmp_path / "interrupted").exists() == (number != signal.SIGKILL)


def test_an_interrupt_during_the_thaw_waits_for_its_end(tmp_path: Path) -> None:
    log, thawing, go = tmp_path / "log", tmp_path / "thawing", tmp_path / "go"
    thaw = f"touch {thawing}; while [ ! -e {go} ]; do sleep 0.01; done; echo thawed >> {log}"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), "true", thaw], start_new_session=True)
    until((tmp_path / "inside").exists)
    child.send_signal(signal.SIGINT)
    until(thawing.exists)
    child.send_signal(signal.SIGINT)
    assert child.poll() is None
    go.touch()
    child.wait(10)
    assert lines(log) == ["thawed"]
