"""Bookmarks at capture: each request is carried out once at most, and told, whatever dies in between."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from agent import bookmarker
from agent.bookmarker import Bookmarker
from agent.bookmarks import Asked, BookmarkFile, Outcome
from agent.state_file import HostFiles
from agent.volume import Volume
from tests.agent_parts import Parts

BOOKMARK = 21


class Host:
    """Two volumes and a bookmarker; `begin` is a new capture process over the same memory."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        (self.state / "agent").mkdir(parents=True)
        self.parts = {}
        for name in ("a", "b"):
            (folder / name).mkdir()
            self.parts[name] = Parts(folder / name, name=name)
            self.parts[name].log.keep_entries()
        self.absent: set[str] = set()
        self.begin()

    def begin(self) -> None:
        self.bookmarker = Bookmarker(BookmarkFile(self.state), [one.ring for one in self.parts.values()], self.find)

    def find(self, name: str) -> Volume | None:
        return None if name in self.absent else self.parts[name].volume

    def outcomes(self) -> list[Outcome]:
        return BookmarkFile(self.state).read()[1]

    def outcome(self, name: str) -> Outcome:
        for _ in range(4000):
            for one in self.outcomes():
                if one.asked.id == name:
                    return one
            threading.Event().wait(0.001)
        raise AssertionError(f"nothing was told of {name}")

    def marks(self, name: str) -> list[int]:
        return [entry[0] for entry in self.parts[name].pending() if entry[6] == BOOKMARK]


def asked(name: str, *volumes: str, label: str = "x", in_s: float = 30) -> Asked:
    return Asked(name, label, "g" if len(volumes) > 1 else "", volumes, time.time_ns() + int(in_s * 1e9))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_request_is_carried_out_once(host: Host) -> None:
    one = asked("r-1", "a", "b")
    host.bookmarker.ask([one])
    outcome = host.outcome("r-1")
    assert (outcome.asked, outcome.error) == (one, "")
    assert {name: mark.position for name, mark in outcome.marks.items()} == dict.fromkeys("ab", "00000001-0000000000000002")
    host.bookmarker.ask([one])
    host.bookmarker.stop()
    host.begin()
    host.bookmarker.ask([one, asked("r-2", "b")])
    host.outcome("r-2")
    assert (host.marks("a"), host.marks("b")) == ([2], [2, 3])


def test_what_can_not_be_marked_is_told(host: Host) -> None:
    host.absent.add("b")
    host.bookmarker.ask([asked("r-1", "a", "b"), asked("r-2", "a", in_s=-1)])
    assert host.outcome("r-1").error.startswith("Volume b is not served now")
    assert host.outcome("r-2").error.startswith("The time was over")
    assert not host.marks("a")


def hang_a_write(host: Host) -> tuple[threading.Thread, threading.Event]:
    """Begin a write on volume a that ends when the event is set; a barrier waits for it."""
    at_work, go_on = threading.Event(), threading.Event()

    def hang(offset_bytes: int, length_bytes: int) -> None:
        at_work.set()
        assert go_on.wait(20)

    host.parts["a"].source.file.before["write"] = hang
    writing = threading.Thread(target=lambda: host.parts["a"].write(0, b"1" * 4096))
    writing.start()
    assert at_work.wait(5)
    host.bookmarker._limit_s = 10.0
    return writing, go_on


def test_what_is_begun_stays_written_down_while_another_volume_is_forgotten(host: Host) -> None:
    """Else a kill after the marks would leave nobody who knows, and they were taken again."""
    host.bookmarker.ask([asked("r-1", "b")])
    host.outcome("r-1")
    writing, go_on = hang_a_write(host)
    second = asked("r-2", "a")
    host.bookmarker.ask([second])
    while BookmarkFile(host.state).read()[0] != second:
        threading.Event().wait(0.001)
    host.bookmarker.forget("b")
    assert BookmarkFile(host.state).read() == (second, [])
    go_on.set()
    writing.join(5)
    assert host.outcome("r-2").error == ""
    assert BookmarkFile(host.state).read()[0] is None


def test_what_is_taken_back_is_not_begun(host: Host) -> None:
    writing, go_on = hang_a_write(host)
    first, second = asked("r-1", "a"), asked("r-2", "b")
    host.bookmarker.ask([first, second])
    host.bookmarker.ask([first])
    go_on.set()
    writing.join(5)
    assert host.outcome("r-1").error == ""
    assert host.outcome("r-2").error.startswith("The bookmark was taken back")
    assert host.marks("b") == []


def test_a_barrier_that_nobody_began_is_not_said_to_be(host: Host) -> None:
    BookmarkFile(host.state).write(asked("r-1", "a", "b"), [])
    host.begin()
    assert host.outcome("r-1").error.startswith("The agent was started again before it took the mark")
    host.bookmarker.ask([asked("r-1", "a", "b"), asked("r-2", "a")])
    host.outcome("r-2")
    assert (host.marks("a"), host.marks("b")) == ([2], [])


@pytest.mark.parametrize("torn", ["r-1", "r-1 00000001-0000", "r-1 00000001-0000000000000002 ", "r-1 00000001-0000000000000002 1x", "\x01"])
def test_a_text_that_a_kill_tore_is_no_mark(host: Host, torn: str) -> None:
    BookmarkFile(host.state).write(asked("r-1", "a"), [])
    host.parts["a"].ring.set_text("marked", torn)
    host.parts["a"].volume.marks.append_told(21, lambda: {"label": "x"})
    host.begin()
    assert not host.outcome("r-1").marks


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_kill_between_marks_and_outcome_is_settled_from_the_rings(host: Host, killed_after: int) -> None:
    """Play the part of a barrier that came before the kill: the text, then the mark, in the order of names."""
    one = asked("r-1", "a", "b")
    BookmarkFile(host.state).write(one, [])
    for name in ("a", "b")[:killed_after]:
        host.parts[name].ring.set_text("marked", "r-1 00000001-0000000000000002 0")
        host.parts[name].volume.marks.append_told(21, lambda: {"label": "x"})
    if killed_after == 1:
        host.parts["b"].ring.set_text("marked", "r-1 00000001-0000000000000002 0")  # killed before the mark itself
    host.begin()
    outcome = host.outcome("r-1")
    assert set(outcome.marks) == set(("a", "b")[:killed_after])
    if killed_after == 2:
        assert outcome.error == ""
    else:
        assert "the mark is in a alone, not in b" in outcome.error
    assert BookmarkFile(host.state).read()[0] is None


def test_of_a_mark_whose_ring_is_lost_nobody_says_that_it_is_not_there(host: Host) -> None:
    BookmarkFile(host.state).write(asked("r-1", "a", "b"), [])
    host.parts["a"].ring.set_text("marked", "r-1 00000001-0000000000000002 0")
    host.parts["a"].volume.marks.append_told(21, lambda: {"label": "x"})
    del host.parts["b"]
    host.begin()
    outcome = host.outcome("r-1")
    assert outcome.error.startswith("The host's memory was lost while the mark of b was being taken: Kafka may have it")
    assert set(outcome.marks) == {"a"}
    host.bookmarker.ask([asked("r-1", "a", "b"), asked("r-2", "a")])
    host.outcome("r-2")
    assert len(host.marks("a")) == 2, "it is not taken again"


def test_what_is_begun_and_what_became_of_it_outlive_the_power(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down durably before the mark, and after it."""
    told: list[tuple[bool, int]] = []
    real = HostFiles.make

    def make(files: HostFiles, path: Path, content: bytes) -> None:
        real(files, path, content)
        told.append((json.loads(content)["begun"] is not None, len(host.marks("a"))))

    monkeypatch.setattr(HostFiles, "make", make)
    host.bookmarker.ask([asked("r-1", "a")])
    host.outcome("r-1")
    host.bookmarker.stop()  # the file may be seen before its writer goes on
    assert told == [(True, 0), (False, 1)]


def test_a_removed_volume_is_forgotten(host: Host) -> None:
    host.bookmarker.ask([asked("r-1", "a", "b"), asked("r-2", "b")])
    host.outcome("r-2")
    host.bookmarker.forget("a")
    assert [one.asked.id for one in host.outcomes()] == ["r-2"]


def test_a_file_that_can_not_be_read_tells_nothing(host: Host) -> None:
    file = BookmarkFile(host.state)
    for damaged in ("", "{", "[]", '{"begun": 1, "outcomes": []}', '{"begun": null}'):
        file.path.write_text(damaged)
        assert file.read() == (None, [])


def test_an_outcome_that_can_not_be_written_down_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmarker, "RETRY_S", 0.01)
    real, failing = BookmarkFile.write, [3]

    def full(self: BookmarkFile, begun: Asked | None, outcomes: list[Outcome]) -> None:
        if begun is None and failing[0]:
            failing[0] -= 1
            raise OSError(28, "No space left on device")
        real(self, begun, outcomes)

    monkeypatch.setattr(BookmarkFile, "write", full)
    host.bookmarker.ask([asked("r-1", "a")])
    assert host.outcome("r-1").error == "" and failing == [0]


def test_without_room_to_write_it_down_nothing_is_marked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.bookmarker.ask([asked("r-1", "a")])
    host.outcome("r-1")
    real = BookmarkFile.write

    def full(self: BookmarkFile, begun: Asked | None, outcomes: list[Outcome]) -> None:
        if begun is not None:
            raise OSError(28, "No space left on device")
        real(self, begun, outcomes)

    monkeypatch.setattr(BookmarkFile, "write", full)
    host.bookmarker.ask([asked("r-2", "a")])
    assert "can't be written down: No space left" in host.outcome("r-2").error
    assert host.marks("a") == [2]
