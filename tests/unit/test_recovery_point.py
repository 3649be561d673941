"""Points as people write them, and times as they are printed."""

from __future__ import annotations

import time

import pytest

from recovery.point import Ago, AtBookmark, AtPosition, AtTime, Latest, format_time, parse_point
from stream.errors import ConfigError
from stream.position import Position

S = 10**9


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("latest", Latest()),
        ("00000002-0000000000000042", AtPosition(Position(2, 42))),
        ("1970-01-01T00:00:01Z", AtTime(S)),
        ("1970-01-02 00:00:00.5+00:00", AtTime(86_400 * S + S // 2)),
        ("1970-01-01T01:00:00.000000001+01:00", AtTime(1)),
        ("2023-11-14T22:13:20,25Z", AtTime(1_700_000_000 * S + S // 4)),
        ("2023-11-14T22:13Z", AtTime(1_699_999_980 * S)),
        ("2023-11-14Z", AtTime(1_699_920_000 * S)),
        ("-30s", Ago(30 * S)),
        ("-1.5h", Ago(5400 * S)),
        ("-250ms", Ago(S // 4)),
        ("-2d", Ago(172_800 * S)),
        ("before upgrade", AtBookmark("before upgrade")),
        ("00000002-42", AtBookmark("00000002-42")),
    ],
)
def test_each_form_of_a_point(text: str, wanted: object) -> None:
    assert parse_point(text) == wanted


@pytest.mark.parametrize("text", ["", "-", "-30", "--at", "2023-13-01", "2023-11-14T25:00Z", "1969-12-31T23:59:59Z", "x" * 256])
def test_what_is_no_point_is_told_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_point(text)
    assert "latest" in caught.value.hint or "1970" in caught.value.sentence


def test_a_time_without_an_offset_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-3")
    time.tzset()
    try:
        assert parse_point("1970-01-01T03:00:00") == AtTime(0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("time_ns", [0, 1, 1_700_000_000_123_456_789, 253_402_300_799_999_999_999])
def test_a_printed_time_is_read_back(time_ns: int) -> None:
    assert parse_point(format_time(time_ns)) == AtTime(time_ns)
