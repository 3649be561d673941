"""The retention table: what is read from it, and what is said about one that is wrong."""

from __future__ import annotations

import pytest

from history.retention_table import DEFAULT, FOR_EVER, RetentionTable, Step, parse_table
from stream.config import HistoryConfig
from stream.errors import ConfigError

S = 10**9


def test_the_default_is_the_design_s() -> None:
    assert HistoryConfig().retention == DEFAULT
    table = parse_table(DEFAULT)
    assert table.any_write_ns == 24 * 3600 * S
    assert table.steps == (Step(300 * S, 7 * 86_400 * S), Step(3600 * S, 30 * 86_400 * S), Step(86_400 * S, 365 * 86_400 * S))
    assert table.levels == (0, 1, 2, 3, 4)


def test_units_and_for_ever() -> None:
    table = parse_table("any write for 90 s, 10s for 2min, 1 h for ever")
    assert table == RetentionTable(90 * S, (Step(10 * S, 120 * S), Step(3600 * S, FOR_EVER)))
    assert table.levels == (0, 1, 2, 4)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "how long any write"),
        ("5 min for 7 d", "how long any write"),
        ("any write 24 h", "0 steps"),
        ("any write 24 h, 5 minutes for 7 d", "no step"),
        ("any write 24 h, 5 min for 7 d, 5 min for 30 d", "no longer than the step before"),
        ("any write 24 h, 5 min for 1 h", "for less than what is finer"),
        ("any write 1 h, 1 s for 1 d, 1 min for 1 d, 1 h for 1 d, 1 d for 2 d", "4 steps"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        parse_table(text)
    assert DEFAULT in caught.value.hint
