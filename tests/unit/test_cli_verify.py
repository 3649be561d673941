"""`verify`: what a round comes to at the targets, when another one is asked for, and what the command then says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hostoffload import control_room, local_state
from hostoffload.cli import main, verify
from hostoffload.local_state import HEARD_S_MAX, LocalState, Report
from hostoffload.verification import Parties, not_ready, parties, standing
from stream.config import host_name
from stream.control import Answer, Request
from stream.errors import RetryError

P9 = "00000001-0000000000000009"
P7 = "00000001-0000000000000007"
DECLARED = {"volume": "db", "state": "active", "replicas": [{"target": "t1", "path": "/b", "delay_s": 0.0}]}
BEGAN = Parties(1, {"t1": 2}, 7.0)


def ended(name: str = "r1", *, complete: bool = True, offsets: tuple[int, ...] = (), position: str = P9) -> dict[str, Any]:
    return {"round": name, "position": position, "complete": complete, "mismatches": len(offsets), "offsets": list(offsets)}


def local(
    *targets: dict[str, Any],
    mode: str = "DATA",
    mode_since: float = 7.0,
    alive: bool = True,
    pids: tuple[int, int] = (1, 2),
    replicas: Any = DECLARED["replicas"],
) -> LocalState:
    capture = {"mode": mode, "mode_reason": "why", "mode_since": mode_since, "position": P9}
    reports = [Report("capture", "host", pids[0], 5, alive, {"db": capture})]
    reports += [Report("target", f"t{index + 1}", pids[1] + index, 5, True, {"db": facts}) for index, facts in enumerate(targets)]
    return LocalState(tuple(reports), None, {"db": DECLARED | {"replicas": replicas}})


TWO = [*DECLARED["replicas"], {"target": "t2", "path": "/c", "delay_s": 0.0}, {"target": "late", "path": "/d", "delay_s": 60.0}]


# --- the judgement


def test_who_takes_part() -> None:
    assert parties(local({}), "db") == BEGAN
    assert parties(local({}, {}, replicas=TWO), "db") == Parties(1, {"t1": 2, "t2": 3}, 7.0)


def heard_of(publisher_lives: bool = True, **facts: Any) -> LocalState:
    """Return a state of two targets, of which one runs on another machine and told this over Kafka."""
    seen = local({"verify_ended": [ended()]}, replicas=TWO)
    told = {"targets": json.dumps({"t2": {"position": P9, "pid": 44} | facts})}
    return replace(seen, reports=(*seen.reports, Report("publisher", "host", 9, 5, publisher_lives, {"db": told})))


def test_a_target_on_another_machine_is_heard_of() -> None:
    began = parties(heard_of(heard_age_s=0.4), "db")
    assert began == Parties(1, {"t1": 2, "t2": 44}, 7.0)
    assert not standing(heard_of(heard_age_s=0.4), "db", "r1", began).over
    assert standing(heard_of(heard_age_s=0.4, verify_ended=[ended(position=P7)]), "db", "r1", began).proved_position == P7
    assert standing(heard_of(heard_age_s=0.4, pid=45), "db", "r1", began).interrupted
    assert standing(heard_of(heard_age_s=HEARD_S_MAX), "db", "r1", began).interrupted


@pytest.mark.parametrize("seen", [heard_of(), heard_of(heard_age_s=None), heard_of(heard_age_s=60.0), heard_of(False, heard_age_s=0.1)])
def test_a_target_that_is_not_heard_of_takes_no_part(seen: LocalState) -> None:
    with pytest.raises(RetryError, match="The target t2 of db does not run, or is not heard of"):
        parties(seen, "db")


@pytest.mark.parametrize(
    "seen", [local({}, alive=False), local({}, replicas=TWO), local(), local({}, replicas=TWO[2:]), LocalState((), None, {})]
)
def test_without_an_agent_or_a_target_there_is_no_round(seen: LocalState) -> None:
    with pytest.raises(RetryError) as caught:
        parties(seen, "db")
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (local({}), None),
        (local({}, mode="SYNC"), "mode is SYNC (why)"),
        (local({}, alive=False), "mode is None"),
        (local({"open_gaps": 1}), "a gap is open"),
        (local({"error": "wrong bytes"}), "stopped: wrong bytes"),
    ],
)
def test_when_a_round_may_begin(seen: LocalState, reason: str | None) -> None:
    found = not_ready(seen, "db")
    assert found is None if reason is None else reason in found


def test_a_round_is_over_when_every_target_is_through() -> None:
    running = {"verify_round": "r1", "verify_percent": 40.0, "verify_ended": [ended("b7")]}
    began = Parties(1, {"t1": 2, "t2": 3}, 7.0)
    half = standing(local({"verify_ended": [ended()]}, running, replicas=TWO), "db", "r1", began)
    assert (half.over, half.interrupted, half.percent, half.proved_position) == (False, None, 40.0, None)
    whole = standing(local({"verify_ended": [ended()]}, {"verify_ended": [ended(position=P7)]}, replicas=TWO), "db", "r1", began)
    assert (whole.over, whole.equal, whole.proved_position) == (True, True, P7)
    differs = standing(local({"verify_ended": [ended()]}, {"verify_ended": [ended(offsets=(5,))]}, replicas=TWO), "db", "r1", began)
    assert (differs.over, differs.equal, differs.mismatches, differs.proved_position) == (True, False, 1, None)


@pytest.mark.parametrize(
    "seen",
    [
        local({"verify_ended": [ended(complete=False)]}),
        local({}, mode="RESYNC"),
        local({}, alive=False),
        local({}, pids=(9, 2)),
        local({}, pids=(1, 9)),
        local({}, mode_since=8.0),
    ],
)
def test_a_round_is_interrupted(seen: LocalState) -> None:
    found = standing(seen, "db", "r1", BEGAN)
    assert (found.over, found.equal) == (False, False)
    assert found.interrupted


def test_what_ended_stays_so_whatever_happens_later() -> None:
    seen = local({"verify_ended": [ended(), ended("b8", complete=False)]}, mode="RESYNC", pids=(9, 9))
    assert standing(seen, "db", "r1", BEGAN).equal


def test_a_round_that_somebody_else_asked_for_takes_its_place() -> None:
    running = {"verify_round": "verify-db-77", "verify_percent": 10.0}
    seen = local({"verify_ended": [ended(complete=False)]} | running)
    assert standing(seen, "db", "r1", BEGAN).replaced_by == "verify-db-77"
    for other in ({"verify_round": "b8"}, {"verify_percent": None}):
        assert standing(local({"verify_ended": [ended(complete=False)]} | running | other), "db", "r1", BEGAN).replaced_by is None


def test_a_round_that_comes_to_nothing_is_found_dead_but_a_target_far_behind_is_not() -> None:
    stall = verify._Stall()
    behind = standing(local({"position": P7, "verify_round": "r1", "verify_percent": 5.0}), "db", "r1", BEGAN)
    assert not any(stall.over(behind, now_s) for now_s in (0.0, 10.0, 20.0, 900.0))
    through = replace(behind, applied=P9)
    assert stall.over(through, 901.0)
    assert not stall.over(replace(through, percent=6.0), 902.0)


# --- the command


@dataclass
class _Machine:
    """A state folder in which agent and target do at once what the test says: `rounds` are what becomes of each that is asked for."""

    state: Path
    rounds: list[Callable[[str], dict[str, Any]]] = field(default_factory=list)
    mode: str = "DATA"
    asked: list[Request] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    later: dict[str, Any] | None = None

    def tell(self, **facts: Any) -> None:
        self._report("capture", "host", {"mode": self.mode, "mode_reason": "why", "position": P9})
        self._report("target", "t1", {"position": P9, "open_gaps": 0} | facts)

    def _report(self, kind: str, instance: str, facts: dict[str, Any]) -> None:
        told = {"kind": kind, "instance": instance, "host": host_name(), "pid": os.getpid(), "at_ns": time.time_ns()}
        folder = self.state / "status"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{kind}-{instance}.json").write_text(json.dumps(told | {"volumes": {"db": facts}}))

    # what the command sees of control

    def __enter__(self) -> _Machine:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def ask(self, kind: str, volume: str, attributes: dict[str, str]) -> Request:
        self.asked.append(Request(f"{kind}-{volume}-{len(self.asked)}", kind, volume, attributes))
        return self.asked[-1]

    def answered(self, request: Request, timeout_s: float) -> Answer | None:
        if not self.rounds:
            return None
        self.tell(**self.rounds.pop(0)(request.id))
        return Answer(request.id, True, {"round": request.id})

    def withdraw(self, request: Request) -> None:
        self.withdrawn.append(request.id)

    def read(self, state_dir: Path) -> LocalState:
        """Read the state folder; what happens later is there the time after next."""
        found = local_state.read(state_dir)
        if self.later is not None and self.withdrawn:
            self.tell(**self.later)
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Machine]:
    made = _Machine(tmp_path)
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "volumes.json").write_text(json.dumps({"volumes": [DECLARED]}))
    monkeypatch.setattr(control_room, "ControlRoom", lambda config: made)
    monkeypatch.setattr(verify, "POLL_S", 0.001)
    monkeypatch.setattr(verify, "local_state", made)
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "127.0.0.1:1")
    made.tell()
    yield made
    assert made.withdrawn == [one.id for one in made.asked], "no request is left behind"


def _run(machine: _Machine, *more: str) -> int:
    return main(["--state", str(machine.state), "verify", "db", *more])


def test_an_equal_replica_is_proved(machine: _Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.rounds.append(lambda name: {"verify_ended": [ended("b1", offsets=(7,)), ended(name)]})
    assert _run(machine) == 0
    assert capsys.readouterr().out == f"db is proved equal at {P9}\n"


def test_what_differed_is_named(machine: _Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.rounds.append(lambda name: {"verify_ended": [ended(name, offsets=(4096, 8192))]})
    assert _run(machine, "--json") == 1
    told = capsys.readouterr()
    assert "2 chunks of the replica of t1 differed, at offset 4096, 8192" in told.err
    facts = json.loads(told.out)
    assert (facts["equal"], facts["proved_position"], facts["lacking"], facts["round"]) == (False, None, None, "verify-db-0")
    assert facts["targets"] == [{"name": "t1", **ended("verify-db-0", offsets=(4096, 8192))}]


def test_an_interrupted_round_is_begun_again_and_what_it_found_still_counts(
    machine: _Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.rounds += [
        lambda name: {"verify_ended": [ended(name, complete=False)]},
        lambda name: {"verify_ended": [ended(name, complete=False, offsets=(4096,))]},
        lambda name: {"verify_ended": [ended(name)]},
    ]
    assert _run(machine) == 1
    told = capsys.readouterr()
    assert told.err.count("it is begun again") == 2
    assert "1 chunk of the replica of t1 differed, at offset 4096" in told.err
    assert (told.out, len(machine.asked)) == ("", 3)


def test_a_round_replaced_by_another_is_not_asked_for_again(machine: _Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that ask in turns would else never come to an end."""
    other = "verify-db-77"

    def replaced(name: str) -> dict[str, Any]:
        machine.later = {"verify_ended": [ended(name, complete=False), ended(other)]}
        return {"verify_ended": [ended(name, complete=False)], "verify_round": other, "verify_percent": 10.0}

    machine.rounds.append(replaced)
    assert _run(machine, "--json") == 0
    told = capsys.readouterr()
    assert "the one that took its place is watched" in told.err
    assert (json.loads(told.out)["round"], len(machine.asked)) == (other, 1)


@pytest.mark.parametrize(
    ("mode", "rounds", "lacking"),
    [
        ("SYNC", [], "mode is SYNC (why)"),
        ("DATA", [], "the agent has not begun the round"),
        ("DATA", [lambda name: {"verify_round": name, "verify_percent": 25.0}], "compared 25.0 %"),
        ("DATA", [lambda name: {"verify_ended": [ended(name, complete=False)]}], "could not compare all of it"),
    ],
)
def test_the_time_runs_out(machine: _Machine, capsys: pytest.CaptureFixture[str], mode: str, rounds: list, lacking: str) -> None:
    machine.mode, machine.rounds = mode, rounds
    machine.tell()
    began_s = time.monotonic()
    assert _run(machine, "--timeout", "0.2", "--json") == 1
    assert time.monotonic() - began_s < 5
    told = capsys.readouterr()
    assert json.loads(told.out)["equal"] is False
    assert lacking in told.err


def test_without_a_target_it_can_not_be_done_now(machine: _Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (machine.state / "status" / "target-t1.json").unlink()
    assert _run(machine) == 3
    assert "t1" in capsys.readouterr().err


def test_a_target_that_dies_meanwhile_is_waited_for_so_long(
    machine: _Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ABSENCE_S_MAX", 0.05)

    def die(name: str) -> dict[str, Any]:
        machine.mode = "OFFLINE"
        (machine.state / "agent" / "volumes.json").write_text(json.dumps({"volumes": [DECLARED | {"replicas": TWO}]}))
        return {}

    machine.rounds.append(die)
    assert _run(machine) == 3
    assert "does not run, or is not heard of" in capsys.readouterr().err


def test_a_paused_or_unknown_volume_is_refused_at_once(machine: _Machine) -> None:
    assert main(["--state", str(machine.state), "verify", "other"]) == 2
    (machine.state / "agent" / "volumes.json").write_text(json.dumps({"volumes": [DECLARED | {"state": "paused"}]}))
    assert _run(machine) == 3
