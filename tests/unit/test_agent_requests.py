"""Requests for capture: checked before they reach it, handed over no faster than it can tell back, in a file that it never overlooks."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from agent import declared as declared_file
from agent.declared import Declared, Resync
from agent.extent_list import EXTENTS_MAX, extents_text, parse_extents
from agent.requests import HANDED_BYTES_MAX, hand_over
from history.chain import JOURNAL_RECREATED, closing_name
from stream.control import Replica, Request, VolumeDeclaration
from stream.errors import ConfigError
from stream.journal import OpenGap
from stream.position import Position

SIZE = 10 << 20


def resync(name: str = "r1", at_ns: int = 0, **told: str) -> Request:
    return Request(name, "resync", "v", told, "test", at_ns)


class TestExtents:
    def test_there_and_back(self) -> None:
        extents = ((0, 65536), (131072, 131073), (SIZE - 1, SIZE))
        assert parse_extents(extents_text(extents), SIZE) == extents
        assert parse_extents("", SIZE) == parse_extents("  ", SIZE) == ()

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("0", "no extent"),
            ("a-b", "no extent"),
            ("0-", "no extent"),
            ("-5", "no extent"),
            ("0-65536,", "no extent"),
            ("0-65536;65536-131072", "no extent"),
            ("-1-5", "no extent"),
            ("1.5-3", "no extent"),
            ("99999999999999999999-999999999999999999999", "no extent"),
            ("\u0660-\u0665", "no extent"),
            ("5-5", "is empty"),
            ("6-5", "is empty"),
            (f"0-{SIZE + 1}", "ends behind the volume"),
            (",".join(["0-1"] * (EXTENTS_MAX + 1)), "are the most"),
        ],
    )
    def test_anything_else_is_a_sentence(self, text: str, told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            parse_extents(text, SIZE)

    def test_as_many_as_may_be(self) -> None:
        assert len(parse_extents(",".join(["0-1"] * EXTENTS_MAX), SIZE)) == EXTENTS_MAX


class TestHandOver:
    def test_a_resync_of_some_extents(self) -> None:
        asked = resync(reason="verify", gap="00000001-0000000000000007", extents="0-65536,131072-196608")
        found = hand_over([asked], {"v": SIZE})
        assert found.resyncs == {"v": (Resync("r1", "verify", "00000001-0000000000000007", ((0, 65536), (131072, 196608))),)}
        assert (found.verifies, found.wrong) == ({}, {})

    def test_a_hole_of_the_history_is_named_as_persist_names_it(self) -> None:
        name = closing_name(OpenGap(Position(1, 192), JOURNAL_RECREATED, time.time_ns()))
        assert hand_over([resync(gap=name)], {"v": SIZE}).resyncs == {"v": (Resync("r1", "requested", name),)}

    def test_a_resync_of_everything(self) -> None:
        assert hand_over([resync()], {"v": SIZE}).resyncs == {"v": (Resync("r1", "requested", ""),)}

    def test_a_verify(self) -> None:
        assert hand_over([Request("check-1", "verify", "v")], {"v": SIZE}).verifies == {"v": ("check-1",)}

    @pytest.mark.parametrize(
        "wrong",
        [
            resync(extents="0-9999999999"),
            resync(extents="what"),
            resync(gap="yesterday"),
            resync(gap="1,2"),
            resync(gap="00000001-0000000000000007/"),
            resync(gap="00000001-0000000000000007/1,00000001-0000000000000009"),
            resync(name="a,b"),
            resync(name=""),
            resync(name="x" * 256),
            resync(name="ä"),
            Request("a,b", "verify", "v"),
        ],
    )
    def test_what_is_wrong_is_said_and_not_handed_over(self, wrong: Request) -> None:
        found = hand_over([wrong, resync("good", 1)], {"v": SIZE})
        assert list(found.wrong) == [wrong.id]
        assert found.wrong[wrong.id].endswith((".", "bytes"))
        assert [one.id for one in found.resyncs["v"]] == ["good"]
        assert found.verifies == {}

    def test_other_volumes_and_kinds_are_left_alone(self) -> None:
        others = [Request("1", "resync", "w", {"extents": "what"}), Request("2", "republish", "v"), Request("3", "digest", "v")]
        found = hand_over(others, {"v": SIZE})
        assert (found.resyncs, found.verifies, found.wrong) == ({}, {}, {})

    def test_extents_of_a_volume_whose_size_is_not_known_wait(self) -> None:
        asked = [resync(extents="0-9999999999"), resync("all", 1), resync("bad", 2, extents="what")]
        found = hand_over(asked, {"v": None})
        assert [one.id for one in found.resyncs["v"]] == ["all"]
        assert list(found.wrong) == ["bad"]

    def test_no_more_at_once_than_the_ring_can_tell_back(self) -> None:
        """Else the ring forgets the first of them while the last is taken, and everything is copied over and over."""
        asked = [resync(f"{number:03d}" + "x" * 87, 1000 - number) for number in range(40)]
        asked += [Request(f"{number:03d}" + "y" * 87, "verify", "v", {}, "", number) for number in range(40)]
        found = hand_over(asked, {"v": SIZE})
        handed = [one.id for one in found.resyncs.get("v", ())] + list(found.verifies["v"])
        assert len(handed) > 5
        assert sum(len(one) + 1 for one in handed) <= HANDED_BYTES_MAX
        assert found.verifies["v"] == tuple(one.id for one in asked[40 : 40 + len(found.verifies["v"])]), "the oldest come first"

    def test_a_reason_is_cut(self) -> None:
        assert len(hand_over([resync(reason="x" * 5000)], {"v": SIZE}).resyncs["v"][0].reason) == 200


class TestFile:
    DECLARATION = VolumeDeclaration("v", "me", "/source", SIZE, replicas=(Replica("t", "/replica"),))

    def test_there_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "volumes.json"
        asked = (Resync("1", "x", "", ((0, 5), (7, 9))), Resync("2", "y", "00000001-0000000000000007"))
        told = Declared((self.DECLARATION,), {"v": asked}, {"v": ("3",)})
        declared_file.write(path, "me", told)
        assert declared_file.read(path) == told
        raw = json.loads(path.read_text())
        assert raw["resyncs"]["v"][0]["extents"] == [[0, 5], [7, 9]]
        assert raw["verifies"] == {"v": ["3"]}

    def test_one_of_an_older_version(self, tmp_path: Path) -> None:
        path = tmp_path / "volumes.json"
        path.write_text(json.dumps({"agent": "me", "volumes": [], "resyncs": {"v": [{"id": "1", "reason": "x", "gap": ""}]}}))
        assert declared_file.read(path) == Declared((), {"v": (Resync("1", "x", ""),)})

    def test_its_time_always_rises(self, tmp_path: Path) -> None:
        """Capture looks at the modification time: two changes within a tick, or a clock that went back, must not look like none."""
        path = tmp_path / "volumes.json"
        times = []
        for number in range(20):
            declared_file.write(path, "me", Declared((), {}, {"v": (str(number),)}))
            if number == 10:
                os.utime(path, ns=(0, path.stat().st_mtime_ns + 3600 * 10**9))
            times.append(path.stat().st_mtime_ns)
        assert times == sorted(set(times))
