"""Reading the state folder: whose reports count, and that nothing in it can stop a reader."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hostoffload import local_state, supervisor_report
from hostoffload.process import PidFile, ProcessId, boot_id, start_ticks
from hostoffload.state_lock import ROLE_ALL, StateLock
from stream.config import host_name
from stream.errors import RetryError

NOBODY = 2**22  # above every pid (pid_max of proc(5))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    for name in ("status", "run", "agent"):
        (tmp_path / name).mkdir()
    return tmp_path


def write_report(state_dir: Path, **changed: Any) -> None:
    told = {"kind": "cx", "instance": "one", "host": host_name(), "pid": os.getpid(), "at_ns": time.time_ns(), "volumes": {"db": {}}}
    (state_dir / "status" / "cx-one.json").write_text(json.dumps(told | changed))


def alive(state_dir: Path) -> bool:
    (one,) = local_state.read(state_dir).reports
    return one.alive


def test_a_report_lives_as_long_as_its_writer(state_dir: Path) -> None:
    write_report(state_dir)
    assert alive(state_dir)
    write_report(state_dir, pid=NOBODY)
    assert not alive(state_dir)


def test_a_report_older_than_the_process_under_its_pid_is_a_dead_ones(state_dir: Path) -> None:
    mine = ProcessId.of(os.getpid())
    assert mine is not None
    write_report(state_dir, at_ns=int((mine.started_at - 60) * 1e9))
    assert not alive(state_dir)


def test_a_report_of_another_host_says_nothing_about_processes_here(state_dir: Path) -> None:
    write_report(state_dir, host="elsewhere")
    assert not alive(state_dir)


def test_removed_volumes_are_left_out(state_dir: Path) -> None:
    volumes = [{"volume": "a", "state": "active"}, {"volume": "b", "state": "removed"}, {"volume": "c", "state": "paused"}]
    (state_dir / "agent" / "volumes.json").write_text(json.dumps({"volumes": volumes}))
    assert local_state.read(state_dir).volume_names() == ["a", "c"]


def test_the_living_report_is_preferred_to_a_newer_dead_one(state_dir: Path) -> None:
    write_report(state_dir)
    told = json.loads((state_dir / "status" / "cx-one.json").read_text())
    (state_dir / "status" / "cx-two.json").write_text(json.dumps(told | {"instance": "two", "pid": NOBODY, "at_ns": told["at_ns"] + 10**9}))
    found = local_state.read(state_dir).newest("cx", "db")
    assert found is not None and found.instance == "one"


def test_orphans_are_shown_only_while_no_supervisor_runs(state_dir: Path) -> None:
    mine = ProcessId.of(os.getpid())
    assert mine is not None
    PidFile("cx", "cx", mine, 5.0, 3, 2).write(state_dir / "run" / "cx.json")
    PidFile("target", "target", ProcessId(NOBODY, 1, boot_id()), 5.0, 3, 2).write(state_dir / "run" / "target.json")
    (state_dir / "run" / "broken.json").write_text("{")
    assert [(one.name, one.restarts) for one in local_state.read(state_dir).orphans] == [("cx", 3)]
    supervisor_report.SupervisorReport(state_dir, ROLE_ALL).write([])
    local = local_state.read(state_dir)
    assert local.supervisor is not None and local.supervisor.pid == os.getpid()
    assert local.orphans == ()


def test_a_report_of_a_dead_supervisor_is_none(state_dir: Path) -> None:
    supervisor_report.SupervisorReport(state_dir, ROLE_ALL).write([])
    path = supervisor_report.path_of(state_dir)
    told = json.loads(path.read_text())
    for changed in ({"pid": NOBODY}, {"start_ticks": told["start_ticks"] + 1}, {"boot": "another"}):
        path.write_text(json.dumps(told | changed))
        assert local_state.supervisor(state_dir) is None


def test_the_lock_has_one_holder_and_names_it(state_dir: Path) -> None:
    lock = StateLock(state_dir)
    assert lock.holder() is None
    with lock.held(ROLE_ALL):
        holder = lock.holder()
        assert holder is not None and (holder.process.pid, holder.role) == (os.getpid(), ROLE_ALL)
        with pytest.raises(RetryError, match=f"process {os.getpid()}"), StateLock(state_dir).held(ROLE_ALL, wait_s=0):
            pass
    with lock.held(ROLE_ALL, wait_s=0):
        pass


def test_a_zombie_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(pid) is None
    os.waitpid(pid, 0)
