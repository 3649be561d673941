"""What the target reports, and what an error of a session means for its volume."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cx_consumers import target_volume
from cx_consumers.target_facts import Board, ReportThread, VolumeFacts
from cx_consumers.target_task import Surroundings, Task, resync_request
from cx_consumers.target_verify import Ended
from cx_consumers.target_volume import VolumeTarget
from stream.control import decode_entry, encode_entry
from stream.errors import ConfigError, HostoffloadError, IntegrityError, ResyncError, RetryError
from stream.journal import OpenGap
from stream.position import Position
from stream.report import Reporter

WAIT_S = 10.0
TASK = Task("v1", "/replica", 1 << 20)


class _Surprise(RuntimeError):
    """An error that nobody foresaw."""


def _volume(errors: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> tuple[VolumeTarget, Board, threading.Event, list[int]]:
    """Return a volume whose sessions raise these errors, one after the other, and then work until they are stopped."""
    lives: list[int] = []

    class Session:
        def __init__(self, task: Task, around: Surroundings, facts: VolumeFacts) -> None:
            self._stopped, self._publish, self._facts = around

        def run(self) -> None:
            lives.append(1)
            if errors:
                raise errors.pop(0)
            self._publish(replace(self._facts, state="applying", error=None))
            self._stopped.wait()

    monkeypatch.setattr(target_volume, "Session", Session)
    monkeypatch.setattr(target_volume, "CONFIG_RETRY_S", 0.0)
    monkeypatch.setattr(target_volume, "BACKOFF_S_MIN", 0.0)
    board, bug = Board(), threading.Event()

    def surround(task: Task, stopped: threading.Event, publish: Callable[[VolumeFacts], None]) -> tuple:
        return stopped, publish, VolumeFacts()

    return VolumeTarget(TASK, surround, board, bug.set), board, bug, lives


def _told(board: Board, holds: Callable[[VolumeFacts], bool]) -> VolumeFacts:
    """Return the facts as soon as they hold."""
    version = -1
    while True:
        version, facts = board.wait(version, WAIT_S)
        if holds(facts["v1"]):
            return facts["v1"]
        assert facts, "nothing came in time"


@pytest.mark.parametrize("error", [RetryError("away"), ResyncError("gone"), ConfigError("wrong size", hint="mend it")])
def test_what_may_pass_is_tried_again(error: HostoffloadError, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, board, bug, lives = _volume([error, error], monkeypatch)
    _told(board, lambda facts: facts.state == "applying")
    assert volume.stop(WAIT_S)
    assert len(lives) == 3
    assert not bug.is_set()


def test_wrong_bytes_park_the_volume_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, board, bug, lives = _volume([IntegrityError("damaged", hint="keep it", topic="t")], monkeypatch)
    told = _told(board, lambda facts: facts.state == "parked")
    assert (told.error, told.hint) == ("damaged", "keep it")
    assert volume.stop(WAIT_S)
    assert len(lives) == 1
    assert not bug.is_set()


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _, bug, lives = _volume([_Surprise("boom")], monkeypatch)
    assert bug.wait(WAIT_S)
    assert volume.stop(WAIT_S)
    assert len(lives) == 1


def test_facts_are_reported_as_status_reads_them(tmp_path: Path) -> None:
    board = Board()
    thread = ReportThread(board, Reporter(tmp_path, "target", "t1", None))
    ended = (Ended("b1", Position(1, 4), True, 1, (4096,)),)
    facts = VolumeFacts(position=Position(1, 5), state="applying", consistent_at=Position(1, 5), path="/r", gaps=2)
    facts = replace(facts, proved_position=Position(1, 2), verify_ended=ended)
    board.publish("v1", facts)
    board.publish("v2", VolumeFacts())
    board.remove("v2")
    thread.stop()
    told = json.loads((tmp_path / "status" / "target-t1.json").read_text())
    assert told["kind"] == "target"
    assert list(told["volumes"]) == ["v1"]
    one = told["volumes"]["v1"]
    assert (one["position"], one["consistent_at"], one["not_until"]) == (str(Position(1, 5)), str(Position(1, 5)), None)
    assert (one["proved_position"], one["verify_round"], one["repairs_open"]) == (str(Position(1, 2)), None, 0)
    assert one["verify_ended"] == [{"round": "b1", "position": str(Position(1, 4)), "complete": True, "mismatches": 1, "offsets": [4096]}]
    assert (one["gaps"], one["held"], one["error"], one["delay_s"]) == (2, False, None, 0.0)


def test_a_resync_request_of_a_gap_is_always_the_same() -> None:
    gap = OpenGap(Position(1, 5), "retention", 7)
    request = resync_request("v1", "t1", gap)
    assert request == resync_request("v1", "t1", gap)
    assert request.key != resync_request("v1", "t2", gap).key
    assert decode_entry(encode_entry(request)) == request
    assert dict(request.attributes) == {"reason": "retention", "gap": str(Position(1, 5))}
