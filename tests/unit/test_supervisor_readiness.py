"""When `up` may return, and when waiting is of no use."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hostoffload import layout, readiness
from hostoffload.local_state import LocalState, Report, Supervised, SupervisorFacts
from hostoffload.services import error_file
from stream.errors import ConfigError, RetryError


def supervised(name: str, pid: int | None, *, restarts: int = 0, exit_code: int | None = None) -> Supervised:
    return Supervised(name, name, pid, 1.0 if pid else None, restarts, exit_code, None)


def state(*processes: Supervised, reports: tuple[Report, ...] = ()) -> LocalState:
    return LocalState(reports, SupervisorFacts(9, 1.0, "all", processes), {})


def report(kind: str, pid: int, *, alive: bool = True) -> Report:
    return Report(kind, "one", pid, 1, alive)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "GREETING_S_MAX", 0.1)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_without_a_supervisor_it_is_what_lacks(state_dir: Path) -> None:
    assert readiness.lacking(state_dir, LocalState((), None, {})) == ["supervisor"]


@pytest.mark.parametrize(
    "told",
    [
        (),
        (report("cx", 4),),  # its predecessor's
        (report("cx", 5, alive=False),),
        (report("target", 5),),
    ],
)
def test_a_process_is_ready_once_it_has_reported_itself(state_dir: Path, told: tuple[Report, ...]) -> None:
    assert readiness.lacking(state_dir, state(supervised("cx", 5), reports=told)) == ["cx"]


def test_a_process_that_does_not_run_is_not_ready(state_dir: Path) -> None:
    local = state(supervised("broker", None), supervised("cx", None), reports=(report("cx", 5),))
    assert readiness.lacking(state_dir, local) == ["broker", "cx"]


def test_when_all_have_reported_the_server_must_greet(state_dir: Path) -> None:
    local = state(supervised("broker", 3), supervised("cx", 5), reports=(report("cx", 5),))
    assert readiness.lacking(state_dir, local) == ["NBD server"]


def test_an_agent_with_sockets_from_outside_is_ready_without_its_own(state_dir: Path) -> None:
    reports = (report("capture", 4), report("publisher", 5))
    facts = SupervisorFacts(9, 1.0, "agent", (supervised("capture", 4), supervised("publisher", 5)))
    local = LocalState(reports, facts, {})
    assert readiness.lacking(state_dir, local) == []
    path = layout.nbd_socket(state_dir)
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert readiness.lacking(state_dir, local) == [], "left by a former one: nobody listens"
        listener.listen()
        assert readiness.lacking(state_dir, local) == ["NBD server"], "nobody greets yet"


def test_what_the_system_can_do_without_is_not_waited_for(state_dir: Path) -> None:
    local = state(supervised("cx", None), supervised("export", None), supervised("metrics", None))
    assert readiness.lacking(state_dir, local) == ["cx"]


def test_a_refused_config_ends_the_wait_with_its_own_words(state_dir: Path) -> None:
    error_file(state_dir, "cx").write_text(json.dumps({"sentence": "Topic x contradicts", "hint": "Change it.", "exit_code": 2}))
    failure = readiness.failure(state_dir, state(supervised("cx", None, restarts=1, exit_code=2)), {})
    assert isinstance(failure, ConfigError)
    assert (failure.sentence, failure.hint) == ("Topic x contradicts", "Change it.")


def test_an_old_error_of_a_process_that_runs_is_no_failure(state_dir: Path) -> None:
    error_file(state_dir, "cx").write_text(json.dumps({"sentence": "Topic x contradicts", "hint": "", "exit_code": 2}))
    assert readiness.failure(state_dir, state(supervised("cx", 5)), {}) is None


def test_a_process_that_ends_again_and_again_ends_the_wait(state_dir: Path) -> None:
    before: dict[str, int] = {}
    assert readiness.failure(state_dir, state(supervised("cx", 5, restarts=70)), before) is None  # restarts of earlier days do not count
    still = readiness.RESTARTS_MAX - 1
    assert readiness.failure(state_dir, state(supervised("cx", None, restarts=70 + still, exit_code=1)), before) is None
    failure = readiness.failure(state_dir, state(supervised("cx", None, restarts=70 + readiness.RESTARTS_MAX, exit_code=1)), before)
    assert isinstance(failure, RetryError)
    assert "cx" in failure.sentence and "cx.log" in failure.hint
