"""`bookmark` and `group`: what they ask, what they say, and that the application is thawed whatever comes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hostoffload import control_room
from hostoffload.cli import bookmark, main
from stream.control import Answer, Bookmark, Entry, GroupDeclaration, Request, VolumeDeclaration
from stream.errors import ConfigError, RetryError
from stream.position import Position

P5, P9 = "00000001-0000000000000005", "00000001-0000000000000009"
TAKEN = {"position": P5, "positions": f"a={P5}", "capture_time_ns": "1700000000123456789", "stopped_ms": "1.25"}


class FakeRoom:
    """A control room over a dict; `answers` are given to a request one after the other."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.answers: list[Answer | RetryError | None] = []
        self.on_ask: Callable[[], None] = lambda: None
        self.asked: list[Request] = []
        self.withdrawn: list[str] = []
        self.removed: list[str] = []
        for name in ("a", "b"):
            self.put(VolumeDeclaration(name, "host", "/source", 1))

    def __enter__(self) -> FakeRoom:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def put(self, entry: Entry) -> None:
        self.entries[entry.key] = entry

    def remove(self, key: str) -> None:
        self.removed.append(key)
        del self.entries[key]

    def volumes(self) -> Mapping[str, VolumeDeclaration]:
        return {one.volume: one for one in self.entries.values() if isinstance(one, VolumeDeclaration)}

    def groups(self) -> Mapping[str, GroupDeclaration]:
        return {one.group: one for one in self.entries.values() if isinstance(one, GroupDeclaration)}

    def volume(self, name: str) -> VolumeDeclaration:
        if name not in self.volumes():
            raise ConfigError(f"There is no volume {name!r}", hint="Volumes: a, b.")
        return self.volumes()[name]

    def bookmark(self, volume: str, label: str) -> Bookmark | None:
        return self.entries.get(f"bookmark/{volume}/{label}")

    def ask(self, kind: str, volume: str, attributes: Mapping[str, str]) -> Request:
        self.asked.append(Request("r-1", kind, volume, dict(attributes)))
        self.on_ask()
        return self.asked[-1]

    def answered(self, request: Request, timeout_s: float) -> Answer | None:
        found = self.answers.pop(0) if self.answers else None
        if isinstance(found, RetryError):
            raise found
        if found is None:
            threading.Event().wait(timeout_s)
        return found

    def withdraw(self, request: Request) -> None:
        self.withdrawn.append(request.id)


def answer(done: bool = True, **told: str) -> Answer:
    return Answer("r-1", done, {**TAKEN, "durable": "true", **told} if done else told)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRoom:
    made = FakeRoom()
    monkeypatch.setattr(control_room, "ControlRoom", lambda config: made)
    monkeypatch.setenv("HOSTOFFLOAD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "127.0.0.1:1")
    monkeypatch.setattr(bookmark, "ANSWER_GRACE_S", 0.2)
    return made


class TestBookmark:
    def test_of_a_volume(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        room.answers = [None, answer(durable="false"), None, answer()]
        assert main(["bookmark", "a", "before-upgrade", "--json"]) == 0
        told = capsys.readouterr()
        facts = json.loads(told.out)
        assert (facts["volume"], facts["group"], facts["label"]) == ("a", None, "before-upgrade")
        assert (facts["position"], facts["positions"]) == (P5, {"a": P5})
        assert (facts["capture_time_ns"], facts["time"]) == (1700000000123456789, "2023-11-14T22:13:20.123456789Z")
        assert (facts["stopped_ms"], facts["frozen_ms"], facts["thaw_failure"]) == (1.25, None, None)
        assert "writes were held for 1.2 ms" in told.err
        (asked,) = room.asked
        assert (asked.kind, asked.volume, asked.attributes["label"]) == ("bookmark", "a", "before-upgrade")
        assert room.withdrawn == ["r-1"]

    def test_of_a_group(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        room.put(GroupDeclaration("g", "host", ("a", "b")))
        room.answers = [answer(positions=f"a={P5},b={P9}")]
        assert main(["bookmark", "g", "x"]) == 0
        assert capsys.readouterr().out == f"x at a {P5}, b {P9}, 2023-11-14T22:13:20.123456789Z\n"
        assert room.asked[0].volume == "a"
        assert {key: room.asked[0].attributes[key] for key in ("group", "members")} == {"group": "g", "members": "a,b"}

    @pytest.mark.parametrize(
        ("arguments", "code", "told"),
        [
            (["nobody", "x"], 2, "There is no volume or group 'nobody'"),
            (["a", "latest"], 2, "reads like another kind of point"),
            (["a", "given"], 2, f"has a bookmark 'given' already, at {P9}"),
            (["g", "given"], 2, f"has a bookmark 'given' already, at {P9}"),
            (["old", "x"], 2, "Volume gone of the group old is not protected any more"),
            (["rest", "x"], 3, "rest is paused"),
            (["a", "x", "--freeze", "true"], 2, "--freeze and --thaw go together"),
            (["a", "x", "--timeout", "0.5"], 2, "out of range"),
        ],
    )
    def test_mistakes(self, room: FakeRoom, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str) -> None:
        room.put(GroupDeclaration("g", "host", ("a", "b")))
        room.put(GroupDeclaration("old", "host", ("a", "gone")))
        room.put(VolumeDeclaration("rest", "host", "/source", 1, "paused"))
        room.put(Bookmark("a", "given", "", Position(1, 9), 0))
        assert main(["bookmark", *arguments]) == code
        said = capsys.readouterr()
        assert said.out == "" and told in said.err
        assert not room.asked

    @pytest.mark.parametrize(("told", "code"), [({"wrong": "true"}, 2), ({}, 3)])
    def test_a_refusal_is_told(self, room: FakeRoom, capsys: pytest.CaptureFixture[str], told: dict[str, str], code: int) -> None:
        room.answers = [answer(False, error="Volume a is in mode BITMAP. Wait until order is kept again", **told)]
        assert main(["bookmark", "a", "x"]) == code
        assert capsys.readouterr().err == "error: Volume a is in mode BITMAP\nhint: Wait until order is kept again\n"

    def test_a_mark_that_kafka_does_not_get_in_time(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        room.answers = [answer(durable="false")]
        assert main(["bookmark", "a", "x", "--timeout", "1"]) == 3
        assert f"is taken at {P5}, but Kafka does not have it yet" in capsys.readouterr().err
        assert room.withdrawn == ["r-1"]

    def test_an_agent_that_does_not_answer(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bookmark", "a", "x", "--timeout", "1"]) == 3
        assert "The agent did not answer" in capsys.readouterr().err
        assert room.withdrawn == ["r-1"]

    def test_without_an_agent_here(self, room: FakeRoom, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOSTOFFLOAD_AGENT_NAME", "host")
        assert main(["bookmark", "a", "x"]) == 3
        assert "No agent runs on this machine" in capsys.readouterr().err
        assert not room.asked


class TestFreeze:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        return tmp_path / "log"

    @pytest.fixture
    def arguments(self, log: Path) -> list[str]:
        return ["bookmark", "a", "x", "--json", "--freeze", f"echo frozen >> {log}", "--thaw", f"echo thawed >> {log}"]

    def test_the_mark_is_taken_while_it_is_frozen(
        self, room: FakeRoom, log: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: list[str] = []
        room.on_ask = lambda: seen.extend(log.read_text().split())
        room.answers = [answer(durable="false"), answer()]
        assert main(arguments) == 0
        assert seen == ["frozen"]
        assert log.read_text().split() == ["frozen", "thawed"]
        assert json.loads(capsys.readouterr().out)["frozen_ms"] > 0

    def test_it_is_thawed_before_kafka_has_the_mark(self, room: FakeRoom, log: Path, arguments: list[str]) -> None:
        class Durable(list):
            """The second answer comes when the application was thawed."""

            def pop(self, at: int = 0) -> Answer:
                found = super().pop(at)
                assert found.attributes["durable"] == "false" or "thawed" in log.read_text()
                return found

        room.answers = Durable([answer(durable="false"), answer()])
        assert main(arguments) == 0

    def test_a_freeze_that_fails_asks_for_nothing(self, room: FakeRoom, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bookmark", "a", "x", "--freeze", "exit 7", "--thaw", f"echo thawed >> {log}"]) == 3
        assert "The freeze command ended with exit code 7" in capsys.readouterr().err
        assert log.read_text() == "thawed\n" and not room.asked

    @pytest.mark.parametrize("answers", [[answer(False, error="No.")], [RetryError("The broker went away")], []])
    def test_whatever_goes_wrong_it_is_thawed(self, room: FakeRoom, log: Path, arguments: list[str], answers: list) -> None:
        room.answers = answers
        assert main([*arguments, "--timeout", "1"]) == 3
        assert log.read_text().split() == ["frozen", "thawed"]
        assert room.withdrawn == ["r-1"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_thaws_and_says_what_is_known(
        self, room: FakeRoom, log: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], number: signal.Signals
    ) -> None:
        room.on_ask = lambda: signal.raise_signal(number)
        assert main(arguments) == 130
        assert log.read_text().split() == ["frozen", "thawed"]
        told = capsys.readouterr().err
        assert "interrupted; no mark was taken so far" in told and "the application was thawed" in told

    def test_a_thaw_that_fails_is_no_success(self, room: FakeRoom, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        room.answers = [answer()]
        assert main(["bookmark", "a", "x", "--freeze", "true", "--thaw", "exit 4", "--json"]) == 3
        told = capsys.readouterr()
        assert json.loads(told.out)["position"] == P5
        assert "the bookmark is taken, but the thaw command ended with exit code 4" in told.err

    def test_both_failures_are_told(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bookmark", "a", "x", "--freeze", "exit 7", "--thaw", "exit 4"]) == 3
        told = capsys.readouterr().err
        assert "freeze command ended with exit code 7; and the thaw command ended with exit code 4" in told


class TestGroup:
    def test_create_list_remove(self, room: FakeRoom, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["group", "create", "g", "b", "a", "b", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"group": "g", "volumes": ["a", "b"]}
        assert room.groups()["g"].volumes == ("a", "b")
        assert main(["group", "create", "g", "a", "b"]) == 0  # the same again
        assert main(["group", "list"]) == 0
        assert capsys.readouterr().out == "g  host  a b\n"
        assert main(["group", "remove", "g"]) == 0
        assert room.removed == ["group/g"]
        capsys.readouterr()
        assert main(["group", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"groups": []}

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["create", "Shop", "a"], "is not a group name"),
            (["create", "a", "b"], "There is a volume 'a'"),
            (["create", "g", "a", "gone"], "There is no volume 'gone'"),
            (["create", "g", "a", "far"], "of 2 hosts: host, other"),
            (["create", "known", "a"], "There is a group 'known' already, of a, b"),
            (["remove", "g"], "There is no group 'g'"),
        ],
    )
    def test_mistakes(self, room: FakeRoom, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
        room.put(VolumeDeclaration("far", "other", "/source", 1))
        room.put(GroupDeclaration("known", "host", ("a", "b")))
        assert main(["group", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and told in said.err
