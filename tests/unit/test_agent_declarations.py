"""What `ho.control` declares reaches capture, and every request its answer: done, or a sentence; never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import declarations as declarations_module
from agent import declared as declared_file
from agent.declarations import Declarations
from agent.declared import Resync
from stream.config import Config
from stream.control import Answer, Entry, EpochClaim, Replica, Request, VolumeDeclaration
from stream.errors import ConfigError, RetryError
from tests.agent_parts import MIB, Parts

SIZE = 4 * MIB


class FakeControl:
    """The topic: entries by key, and whether it can be written and read."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.put_fails = 0
        self.read_fails = 0
        self.changed = True

    def put(self, entry: Entry) -> None:
        if self.put_fails:
            self.put_fails -= 1
            raise RetryError("planted: ho.control can't be written")
        self.entries[entry.key] = entry
        self.changed = True

    def forget(self, key: str) -> None:
        self.entries.pop(key, None)
        self.changed = True

    def close(self) -> None:
        """Nothing is open."""


class FakeFollower:
    """Follows a FakeControl; `entries` is a copy, as of the last poll."""

    def __init__(self, control: FakeControl) -> None:
        self._control = control
        self.entries: dict[str, Entry] = {}

    def catch_up(self) -> None:
        if self._control.read_fails:
            self._control.read_fails -= 1
            raise RetryError("planted: ho.control can't be read")
        self.poll(0)

    def poll(self, timeout_s: float) -> list[object]:
        changed, self._control.changed = self._control.changed, False
        self.entries.clear()
        self.entries.update(self._control.entries)
        return [1] if changed else []

    def volumes(self) -> dict[str, VolumeDeclaration]:
        return {entry.volume: entry for entry in self.entries.values() if isinstance(entry, VolumeDeclaration)}

    def close(self) -> None:
        """Nothing is open."""


class FakePublication:
    def __init__(self, parts: Parts) -> None:
        self.ring = parts.ring
        self.rewound: list[int] = []

    def rewind(self, sequence: int) -> bool:
        self.rewound.append(sequence)
        return sequence > 5


class Bench:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.control = FakeControl()
        patch.setattr(declarations_module, "ControlWriter", lambda _: self.control)
        patch.setattr(declarations_module, "Follower", lambda _: FakeFollower(self.control))
        self.path = declared_file.path_of(folder)
        self.publications: dict[str, FakePublication] = {}
        self.declarations = Declarations(Config(), folder, "me", self.publications.get)
        self.declare()

    def declare(self, volume: str = "v", agent: str = "me", **told: object) -> None:
        self.control.put(VolumeDeclaration(volume, agent, "/source", SIZE, **told))

    def ask(self, name: str, kind: str, volume: str = "v", **told: str) -> None:
        self.control.put(Request(name, kind, volume, told))

    def attach(self, folder: Path) -> FakePublication:
        self.publications["v"] = FakePublication(Parts(folder, size_bytes=SIZE))
        return self.publications["v"]

    def follow(self, rounds: int = 3, each: Callable[[], None] = lambda: None) -> None:
        """Do some rounds of the thread."""
        left = iter(range(rounds))
        stop = self.declarations._stop

        class Follower(FakeFollower):
            def poll(self, timeout_s: float) -> list[object]:
                if timeout_s:
                    each()
                    if next(left, None) is None:
                        stop.set()
                return super().poll(timeout_s)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(declarations_module, "Follower", lambda _: Follower(self.control))
            patch.setattr(declarations_module, "BACKOFF_S", 0.0)
            stop.clear()
            self.declarations._run()

    def answer(self, name: str) -> Answer | None:
        entry = self.control.entries.get(f"answer/{name}")
        assert entry is None or isinstance(entry, Answer)
        return entry


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


class TestRequests:
    def test_a_resync_of_extents_reaches_capture_and_is_answered_once_it_is_written_down(self, bench: Bench, tmp_path: Path) -> None:
        ring = bench.attach(tmp_path).ring
        bench.ask("r-1", "resync", reason="verify", extents="0-65536,131072-196608", gap="00000001-0000000000000005")
        bench.follow()
        expected = Resync("r-1", "verify", "00000001-0000000000000005", ((0, 65536), (131072, 196608)))
        assert declared_file.read(bench.path).resyncs == {"v": (expected,)}
        assert bench.answer("r-1") is None
        ring.add_listed("handled", "r-1")
        bench.follow()
        assert bench.answer("r-1").done
        assert declared_file.read(bench.path).resyncs == {}

    def test_a_resync_that_closes_a_gap_is_answered_when_it_has(self, bench: Bench, tmp_path: Path) -> None:
        """Else nobody would ask for it again after the ring was lost with the host, or with its topic."""
        gap = "00000001-0000000000000005"
        ring = bench.attach(tmp_path).ring
        bench.ask("r-1", "resync", gap=gap)
        ring.add_listed("closes", gap)
        ring.add_listed("handled", "r-1")
        bench.follow()
        assert bench.answer("r-1") is None
        assert declared_file.read(bench.path).resyncs["v"][0].gap == gap, "a ring made anew is told of it"
        ring.set_text("closes", "")
        bench.follow()
        assert bench.answer("r-1").done

    def test_a_verify_is_answered_with_its_round(self, bench: Bench, tmp_path: Path) -> None:
        ring = bench.attach(tmp_path).ring
        bench.ask("check-1", "verify")
        bench.follow()
        assert declared_file.read(bench.path).verifies == {"v": ("check-1",)}
        ring.add_listed("handled", "check-1")
        bench.follow()
        answer = bench.answer("check-1")
        assert (answer.done, answer.attributes) == (True, {"round": "check-1"})
        assert declared_file.read(bench.path).verifies == {}

    def test_a_request_that_is_wrong_is_answered_with_a_sentence(self, bench: Bench, tmp_path: Path) -> None:
        bench.attach(tmp_path)
        bench.ask("r-1", "resync", extents="all of it")
        bench.ask("r-2", "resync", extents=f"0-{SIZE + 1}")
        bench.ask("r-3", "republish", position="early")
        bench.ask("a,b", "verify")
        bench.follow()
        told = {name: bench.answer(name) for name in ("r-1", "r-2", "r-3", "a,b")}
        assert not any(answer.done for answer in told.values())
        assert "is no extent" in told["r-1"].attributes["error"]
        assert "ends behind the volume" in told["r-2"].attributes["error"]
        assert "is not a position" in told["r-3"].attributes["error"]
        assert told["a,b"].attributes["error"]
        assert declared_file.read(bench.path).resyncs == {}

    def test_what_is_malformed_is_answered_without_a_ring_too(self, bench: Bench) -> None:
        bench.ask("r-1", "resync", extents="all of it")
        bench.ask("r-2", "resync", extents=f"0-{SIZE + 1}")
        bench.follow()
        assert not bench.answer("r-1").done
        assert bench.answer("r-2") is None, "the ring may know of growth"

    def test_a_volume_that_grew(self, bench: Bench, tmp_path: Path) -> None:
        """The ring knows it before the declaration does; extents that wait for it are handed over when it is there."""
        bench.ask("r-1", "resync", extents=f"{SIZE}-{SIZE + MIB}")
        bench.follow()
        publication = bench.attach(tmp_path)
        publication.ring.size_bytes = SIZE + MIB
        bench.follow()
        assert declared_file.read(bench.path).resyncs["v"][0].extents == ((SIZE, SIZE + MIB),)
        assert bench.answer("r-1") is None

    def test_requests_for_others_are_left_alone(self, bench: Bench) -> None:
        bench.declare("w", "you")
        bench.ask("r-1", "resync", "w", extents="nonsense")
        bench.ask("r-2", "digest", "v")
        bench.follow()
        assert bench.answer("r-1") is None
        assert bench.answer("r-2") is None

    def test_a_republish_is_answered_at_once(self, bench: Bench, tmp_path: Path) -> None:
        publication = bench.attach(tmp_path)
        bench.ask("p-1", "republish", position="00000001-0000000000000009")
        bench.ask("p-2", "republish", position="00000001-0000000000000003")
        bench.follow()
        assert sorted(publication.rewound) == [3, 9]
        assert bench.answer("p-1").done
        assert not bench.answer("p-2").done

    def test_many_requests_are_all_carried_out_once(self, bench: Bench, tmp_path: Path) -> None:
        """As many as the ring can tell back at a time: none is forgotten, and none is done twice."""
        ring = bench.attach(tmp_path).ring
        for number in range(50):
            bench.ask(f"resync-{'v' * 60}-{number:019d}", "resync")
        taken: list[str] = []

        def capture() -> None:
            for asked in declared_file.read(bench.path).resyncs.get("v", ()):
                if asked.id not in ring.listed("handled"):
                    taken.append(asked.id)
                    ring.add_listed("handled", asked.id)

        bench.follow(40, capture)
        assert len(taken) == 50
        assert len(set(taken)) == 50
        assert all(bench.answer(name).done for name in taken)


class TestTrouble:
    def test_an_answer_that_can_not_be_written_is_written_later(self, bench: Bench, tmp_path: Path) -> None:
        bench.attach(tmp_path).ring.add_listed("handled", "r-1")
        bench.ask("r-1", "resync")
        bench.control.put_fails = 2
        bench.follow(8)
        assert bench.answer("r-1").done

    def test_a_control_that_can_not_be_read(self, bench: Bench) -> None:
        bench.control.read_fails = 3
        bench.follow()
        assert [one.volume for one in declared_file.read(bench.path).volumes] == ["v"]

    def test_a_bug_of_ours_does_not_end_it(self, bench: Bench, tmp_path: Path) -> None:
        publication = bench.attach(tmp_path)
        bench.ask("p-1", "republish", position="00000001-0000000000000009")
        failures = iter([True, False])

        def rewind(sequence: int) -> bool:
            if next(failures):
                raise ZeroDivisionError
            return True

        publication.rewind = rewind
        bench.follow(6)
        assert bench.answer("p-1").done

    def test_what_is_to_be_told_waits_for_the_broker(self, bench: Bench) -> None:
        claim = EpochClaim("v", 3, b"12345678", "me", "id", 1, 0)
        bench.control.put_fails = 2
        bench.declarations.tell(claim)
        bench.follow(8)
        assert bench.control.entries["epoch/v"] == claim


class TestClaims:
    def test_wait_until_control_was_read(self, bench: Bench) -> None:
        with pytest.raises(RetryError, match="not read yet"):
            bench.declarations.newest_epoch("v")
        bench.follow()
        assert bench.declarations.newest_epoch("v") == 0

    def test_know_the_newest_epoch(self, bench: Bench) -> None:
        bench.control.put(EpochClaim("v", 7, b"12345678", "you", "id", 1, 0))
        bench.follow()
        assert bench.declarations.newest_epoch("v") == 7
        assert bench.declarations.claimant("v") == "you"
        assert bench.declarations.claimant("unheard-of") == ""

    def test_count_from_their_announcement_on_and_are_nobody_s_until_won(self, bench: Bench) -> None:
        bench.follow()
        bench.declarations.tell(EpochClaim("v", 2, b"12345678", "me", "id", 5, 0))
        bench.declarations.announce(EpochClaim("v", 3, b"12345678", "me", "id", 0, 0))
        bench.follow()
        assert (bench.declarations.newest_epoch("v"), bench.declarations.claimant("v")) == (3, "")
        assert bench.control.entries["epoch/v"].epoch == 3, "an older claim that was not told yet must not cover it"

    @pytest.mark.parametrize(("agent", "state"), [("you", "active"), ("me", "removed")])
    def test_are_not_made_for_a_volume_of_another_agent(self, bench: Bench, agent: str, state: str) -> None:
        """A host that boots with what it last knew must not take back what another host has been given since."""
        bench.declare("v", agent, state=state)
        bench.follow()
        with pytest.raises(ConfigError, match="not declared for agent me"):
            bench.declarations.newest_epoch("v")

    def test_are_not_made_for_a_volume_that_nobody_declares(self, bench: Bench) -> None:
        bench.follow()
        with pytest.raises(ConfigError):
            bench.declarations.newest_epoch("unheard-of")


class TestExchange:
    def test_targets_of_the_declared_replicas(self, bench: Bench) -> None:
        replicas = (Replica("one", "/a"), Replica("two", "/b"), Replica("one", "/c"))
        bench.declare("v", replicas=replicas)
        bench.declare("w", "you", replicas=replicas)
        bench.declare("x")
        assert bench.declarations.targets("v") is None
        bench.follow()
        assert bench.declarations.targets("v") == ("one", "two")
        assert bench.declarations.targets("w") is None
        assert bench.declarations.targets("x") == ()

    def test_a_delayed_replica_is_asked_only_if_there_is_no_other(self, bench: Bench) -> None:
        bench.declare("v", replicas=(Replica("late", "/b", 60.0), Replica("one", "/a")))
        bench.declare("w", replicas=(Replica("late", "/b", 60.0),))
        bench.follow()
        assert bench.declarations.targets("v") == ("one",)
        assert bench.declarations.targets("w") == ("late",)

    def test_what_is_left_over(self, bench: Bench) -> None:
        bench.declare("v-1")
        mine = "digest-v-00000001-0000000000000005-one-ab.0"
        other = "digest-v-1-00000001-0000000000000005-one-ab.0"
        for name, volume in ((mine, "v"), (other, "v-1")):
            bench.ask(name, "digest", volume)
            bench.control.put(Answer(name, True))
        bench.control.put(Answer("digest-v-00000001-0000000000000005-two-cd.0", True))
        bench.ask("r-1", "resync")
        bench.follow()
        expected = {f"request/{mine}", f"answer/{mine}", "answer/digest-v-00000001-0000000000000005-two-cd.0"}
        assert set(bench.declarations.left_over("v")) == expected
        assert set(bench.declarations.left_over("v-1")) == {f"request/{other}", f"answer/{other}"}

    def test_an_answer_is_found(self, bench: Bench) -> None:
        answer = Answer("digest-1", True, {"position": "x"})
        bench.control.put(answer)
        bench.follow()
        assert bench.declarations.answer("digest-1") == answer
        assert bench.declarations.answer("digest-2") is None
