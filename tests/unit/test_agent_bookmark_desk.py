"""Bookmarks at the publisher: what is asked is checked, handed over once, and answered with what became of it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import ring as layout
from agent.bookmark_desk import GRACE_S, BookmarkDesk
from agent.bookmarks import Asked, BookmarkFile, Outcome, TakenMark
from stream.control import Answer, Bookmark, Entry, EpochClaim, Request, VolumeDeclaration
from stream.errors import RetryError
from stream.position import Position

SOON_NS = 30 * 10**9


class Desk:
    """A desk over a dict of entries and rings that are words alone."""

    def __init__(self, folder: Path) -> None:
        (folder / "agent").mkdir()
        self.file = BookmarkFile(folder)
        self.entries: dict[str, Entry] = {}
        self.rings: dict[str, SimpleNamespace] = {}
        self.put_fails = False
        self.desk = BookmarkDesk(BookmarkFile(folder), "me", self.rings.get, self.reply, self.put)
        for name in ("a", "b"):
            self.declare(name)
            self.ring(name, acked=0)

    def declare(self, name: str, agent: str = "me", state: str = "active") -> None:
        self.put(VolumeDeclaration(name, agent, "/source", 1 << 20, state))

    def ring(self, name: str, *, acked: int, epoch: int = 1) -> None:
        words = [0] * 64
        words[layout.W_EPOCH], words[layout.W_ACKED] = epoch, acked
        self.rings[name] = SimpleNamespace(words=words)

    def put(self, entry: Entry) -> None:
        if self.put_fails:
            raise RetryError("planted")
        self.entries[entry.key] = entry

    def reply(self, request: Request, *, done: bool, **attributes: str) -> None:
        self.put(Answer(request.id, done, attributes))

    def ask(self, name: str = "r", volume: str = "a", label: str = "x", *, in_ns: int = SOON_NS, **told: str) -> Asked:
        until_ns = time.time_ns() + in_ns
        self.put(Request(name, "bookmark", volume, {"label": label, "until_ns": str(until_ns), **told}, "cli", len(self.entries)))
        members = tuple(sorted({volume, *told.get("members", volume).split(",")}))
        return Asked(name, label, told.get("group", ""), members, until_ns)

    def look(self) -> tuple[Asked, ...]:
        self.desk.look(self.entries)
        return self.desk.asked

    def took(self, asked: Asked, *sequences: int, error: str = "") -> Outcome:
        """Play capture: every volume asked for got its mark."""
        named = zip(asked.volumes, sequences, strict=False)
        marks = {name: TakenMark(f"00000001-{sequence:016d}", 7_000 + sequence) for name, sequence in named}
        outcome = Outcome(asked, marks, 1.5, error)
        self.file.write(None, [*self.file.read()[1], outcome])
        return outcome

    def answer(self, name: str = "r") -> Answer | None:
        return self.entries.get(f"answer/{name}")

    def refusal(self, name: str = "r") -> str:
        answer = self.answer(name)
        assert answer is not None and not answer.done
        return answer.attributes["error"]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_what_is_asked_is_handed_over_until_it_is_durable(desk: Desk) -> None:
    asked = desk.ask()
    assert desk.look() == (asked,)
    assert desk.answer() is None
    desk.took(asked, 5)
    assert desk.look() == (asked,)
    at = "00000001-0000000000000005"
    told = {"position": at, "positions": f"a={at}", "capture_time_ns": "7005", "stopped_ms": "1.5"}
    assert desk.answer().done and desk.answer().attributes == told | {"durable": "false"}
    assert "bookmark/a/x" not in desk.entries
    desk.ring("a", acked=5)
    assert desk.look() == ()
    assert desk.answer().attributes == told | {"durable": "true"}
    assert desk.entries["bookmark/a/x"] == Bookmark("a", "x", "", Position(1, 5), 7005)


def test_a_group_is_durable_when_all_of_it_is(desk: Desk) -> None:
    asked = desk.ask(volume="b", group="g", members="b,a")
    assert desk.look() == (asked,) and asked.volumes == ("a", "b")
    desk.took(asked, 5, 9)
    desk.ring("a", acked=5)
    desk.look()
    answer = desk.answer().attributes
    assert (answer["position"], answer["capture_time_ns"], answer["durable"]) == ("00000001-0000000000000009", "7009", "false")
    assert answer["positions"] == "a=00000001-0000000000000005,b=00000001-0000000000000009"
    desk.ring("b", acked=20)
    assert desk.look() == ()
    assert desk.answer().attributes["durable"] == "true"
    assert {key for key in desk.entries if key.startswith("bookmark/")} == {"bookmark/a/x", "bookmark/b/x"}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"label": "latest"}, "another kind of point"),
        ({"label": ""}, "is not a label"),
        ({"members": "a,gone"}, "Volume gone of the group g is not protected"),
        ({"members": "a,far"}, "Volume far of the group g is served by the agent other"),
        ({"members": "a,rest"}, "Volume rest of the group g is paused"),
        ({"members": "a,old"}, "Volume old of the group g is not protected"),
        ({"members": "a,No Volume"}, "is not a volume name"),
        ({"members": ",".join(f"v{number}" for number in range(65))}, "too many for one barrier"),
        ({"in_ns": 10**13}, "does not say until when"),
    ],
)
def test_what_is_wrong_is_said_and_never_reaches_capture(desk: Desk, told: dict, why: str) -> None:
    desk.declare("far", agent="other")
    desk.declare("rest", state="paused")
    desk.declare("old", state="removed")
    desk.ask(**({"group": "g"} | told))
    assert desk.look() == ()
    assert why in desk.refusal()
    assert desk.answer().attributes["wrong"] == "true"


def test_a_label_is_given_once(desk: Desk) -> None:
    desk.put(Bookmark("b", "x", "", Position(1, 3), 0))
    desk.ask("one", group="g", members="a,b")
    assert desk.look() == ()
    assert "Volume b has a bookmark 'x' already, at 00000001-0000000000000003" in desk.refusal("one")
    assert desk.look() == ()


def test_two_requests_for_one_label_at_once(desk: Desk) -> None:
    first = desk.ask("one")
    desk.ask("two")
    assert desk.look() == (first,)
    assert "is being given to volume a just now" in desk.refusal("two")
    desk.took(first, 5)
    desk.ask("three")
    assert desk.look() == (first,)
    assert "is being given to volume a just now" in desk.refusal("three")


def test_requests_about_volumes_of_another_agent_are_not_ours(desk: Desk) -> None:
    desk.declare("far", agent="other")
    desk.ask(volume="far")
    desk.ask("unknown", volume="nobody")
    assert desk.look() == ()
    assert desk.answer() is None and desk.answer("unknown") is None


def test_a_request_that_nobody_carries_out_is_answered_after_its_time(desk: Desk) -> None:
    desk.ask(in_ns=-10**9)
    assert len(desk.look()) == 1  # a barrier that began in time may be under way
    desk.ask("late", label="y", in_ns=-int((GRACE_S + 1) * 1e9))
    desk.look()
    assert "did not take the mark in time" in desk.refusal("late")


def test_what_is_under_way_is_not_given_up(desk: Desk) -> None:
    asked = desk.ask(in_ns=-int((GRACE_S + 1) * 1e9))
    desk.file.write(asked, [])
    assert desk.look() == (asked,) and desk.answer() is None
    desk.took(asked, 5)
    desk.look()
    assert desk.answer().done


def test_what_capture_refuses_is_passed_on(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, error="Volume a is in mode BITMAP")
    assert desk.look() == ()
    assert desk.refusal() == "Volume a is in mode BITMAP"
    assert "wrong" not in desk.answer().attributes


def test_a_label_is_entered_though_nobody_waits_for_it_any_more(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, 5)
    del desk.entries["request/r"]
    assert desk.look() == ()
    assert "bookmark/a/x" not in desk.entries
    desk.ring("a", acked=5)
    desk.look()
    assert "bookmark/a/x" in desk.entries and desk.answer() is None


def test_marks_of_a_barrier_that_a_kill_cut_are_entered_too(desk: Desk) -> None:
    asked = desk.ask(group="g", members="a,b")
    desk.took(asked, 5, error="The agent died in the middle of the barrier")
    desk.ring("a", acked=5)
    desk.look()
    assert not desk.answer().done
    assert "bookmark/a/x" in desk.entries and "bookmark/b/x" not in desk.entries


def test_a_mark_that_the_log_had_before_a_newer_epoch_is_durable(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, 5)
    desk.ring("a", acked=7, epoch=2)
    desk.look()
    assert desk.answer().attributes["durable"] == "false"  # the claim is not known yet
    desk.put(EpochClaim("a", 2, b"", "me", "topic", 0, 0))
    desk.look()
    assert desk.answer().attributes["durable"] == "false"  # nor is it won yet
    desk.put(EpochClaim("a", 2, b"", "me", "topic", 6, 0))
    desk.look()
    assert desk.answer().attributes["durable"] == "true"


def test_a_mark_that_was_lost_with_the_host_is_said_to_be(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, 5)
    desk.put(EpochClaim("a", 2, b"", "me", "topic", 5, 0))
    desk.look()
    assert "memory was lost before Kafka had the mark of a" in desk.refusal()
    assert "bookmark/a/x" not in desk.entries


def test_a_removed_volume_is_entered_nothing(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, 5)
    desk.ring("a", acked=5)
    desk.declare("a", state="removed")
    desk.look()
    assert "bookmark/a/x" not in desk.entries


def test_a_broker_that_is_away_is_tried_again(desk: Desk) -> None:
    asked = desk.ask()
    desk.took(asked, 5)
    desk.ring("a", acked=5)
    desk.put_fails = True
    with pytest.raises(RetryError):
        desk.look()
    desk.put_fails = False
    desk.look()
    assert desk.answer().attributes["durable"] == "true" and "bookmark/a/x" in desk.entries
