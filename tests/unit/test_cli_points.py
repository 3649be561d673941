"""The timeline as `points` shows it: the drawing, short and over days, the table, and the facts as JSON."""

from __future__ import annotations

import io
import json

from rich.console import Console

from hostoffload.cli.points import facts
from hostoffload.cli.points_view import DAY_NS, drawn, view
from recovery.plan import Moment
from recovery.point import AtPosition, AtTime, parse_point
from recovery.timeline import Bookmark, FoldEnd, Gap, Round, Stretch, Timeline
from stream.position import Position

S = 10**9
T0 = 1_700_000_000 * S


def at(second: float) -> Moment:
    return Moment(Position(1, int(second * 10) + 1), T0 + int(second * S))


def timeline(**changed) -> Timeline:
    told = {
        "volume": "db1",
        "stretches": (Stretch(at(50), at(79.9), 300, 7), Stretch(at(90), at(100), 100, 2)),
        "fold_ends": (FoldEnd(at(10), 2), FoldEnd(at(30), 1), FoldEnd(at(40), 1)),
        "gaps": (Gap("overflow", "", at(80).position, T0 + 80 * S, at(90).position, T0 + 90 * S),),
        "bookmarks": (Bookmark("before upgrade", "shop", at(60), True), Bookmark("old", "", at(20), False)),
        "rounds": (Round("r1", at(55), at(70), 4, True), Round("r2", at(95), at(99), 2, False)),
    }
    return Timeline(**(told | changed))


def text(found: Timeline) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(view(found, 113))
    return out.getvalue()


def test_a_short_history_is_one_line_with_its_marks() -> None:
    line, marks, axis = drawn(timeline(), 90)
    assert line[13:].count("░") == 9
    assert [line[13:][(second - 10) * 90 // 91] for second in (10, 30, 40, 60, 85, 95)] == ["•", "•", "•", "█", "░", "█"]
    assert [index for index, mark in enumerate(marks[13:]) if mark == "▲"] == [9, 49]
    assert marks[13:].count("✓") == 1
    assert axis.split() == ["2023-11-14T22:13:30", "2023-11-14T22:15:00"]


def test_a_history_of_days_has_a_line_for_each() -> None:
    ends = tuple(FoldEnd(Moment(Position(1, day + 1), T0 + day * DAY_NS), 3) for day in range(40))
    newest = Stretch(Moment(Position(1, 50), T0 + 39 * DAY_NS), Moment(Position(1, 99), T0 + 40 * DAY_NS), 50, 0)
    lines = list(drawn(timeline(stretches=(newest,), fold_ends=ends, gaps=(), bookmarks=(), rounds=()), 96))
    assert lines[0] == "(before 2023-11-24: see --to and --json)"
    assert len(lines) == 32
    assert lines[1].startswith("2023-11-24   ") and lines[1].count("•") == 1
    assert lines[-1].startswith("2023-12-24   █") and lines[-1].count("█") == 89


def test_the_table_tells_what_where_and_why() -> None:
    shown = text(timeline())
    for told in (
        "every write",
        "300 records, 7 flushes, 29.9 s",
        "points each 1 h",
        "2 points",
        "overflow, 10.0 s",
        "before upgrade of shop",
        "old (can not be restored any more)",
        "4 chunks",
        "2 chunks, not complete",
        str(at(50).position),
    ):
        assert told in shown, told


def test_many_verifications_do_not_hide_the_rest() -> None:
    rounds = tuple(Round(f"r{number}", at(50 + number / 10), at(50 + number / 10 + 0.05), 4, number % 2 == 0) for number in range(100))
    shown = text(timeline(rounds=rounds))
    assert shown.count("verification") == 4
    assert "97 rounds, 49 of them complete" in shown
    assert "before upgrade of shop" in shown


def test_damage_and_open_gaps_are_told() -> None:
    gap = Gap("journal_expired", "3 messages", at(80).position, T0 + 80 * S)
    shown = text(timeline(gaps=(gap,), damaged={"db1/L0/a.avro": "A block does not match its checksum"}))
    assert "journal_expired: 3 messages" in shown and "open" in shown
    assert "damaged: db1/L0/a.avro: A block does not match its checksum" in shown


def test_nothing_to_go_back_to() -> None:
    shown = text(timeline(stretches=(), fold_ends=(), bookmarks=(), rounds=()))
    assert shown.startswith("db1 has no recovery point here")
    assert facts(timeline(stretches=(), fold_ends=()), None)["latest"] is None


def test_every_position_and_time_of_the_facts_is_a_point() -> None:
    told = json.loads(json.dumps(facts(timeline(), "a note")))
    assert told["note"] == "a note"
    assert parse_point(told["latest"]["position"]) == AtPosition(at(100).position)
    assert parse_point(told["stretches"][0]["first"]["time"]) == AtTime(at(50).capture_time_ns)
    assert parse_point(told["gaps"][0]["until"]) == AtPosition(at(90).position)
    assert told["bookmarks"][0] == {
        "position": str(at(60).position),
        "time": "2023-11-14T22:14:20.000000000Z",
        "label": "before upgrade",
        "group": "shop",
        "offered": True,
    }
