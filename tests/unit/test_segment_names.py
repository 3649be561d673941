"""Names of segments: what they say, how they sort, which of them contribute."""

from __future__ import annotations

import pytest

from history.segment import SegmentName, in_order
from stream.position import Position


def name(first: tuple[int, int], last: tuple[int, int]) -> SegmentName:
    return SegmentName("v1", 0, Position(*first), Position(*last))


def test_the_name_is_the_positions() -> None:
    one = name((1, 1), (2, 77))
    assert str(one) == "v1/L0/00000001-0000000000000001_00000002-0000000000000077.avro"
    assert SegmentName.parse(str(one)) == one


@pytest.mark.parametrize(
    "path",
    [
        "v1/L0/00000001-0000000000000001_00000001-0000000000000077.avro.tmp",
        "v1/L0/00000001-0000000000000001.avro",
        "v1/L0/00000001-0000000000000009_00000001-0000000000000001.avro",
        "v1/L0/00000000-0000000000000000_00000001-0000000000000001.avro",
        "v1/x/00000001-0000000000000001_00000001-0000000000000077.avro",
        "V1/L0/00000001-0000000000000001_00000001-0000000000000077.avro",
        "lost+found",
    ],
)
def test_other_files_are_no_segments(path: str) -> None:
    assert SegmentName.parse(path) is None


def test_names_sort_as_the_history_does() -> None:
    names = [name((1, 1), (1, 9)), name((1, 10), (1, 99)), name((1, 100), (2, 3)), name((2, 4), (10, 5)), name((10, 6), (10, 7))]
    assert sorted(map(str, names)) == [str(one) for one in names]


def test_a_covered_segment_does_not_contribute() -> None:
    long, inside, overlapping = name((1, 1), (1, 50)), name((1, 10), (1, 40)), name((1, 30), (1, 80))
    assert in_order([overlapping, inside, long]) == [long, overlapping]


def test_the_longer_of_two_with_one_beginning_contributes() -> None:
    short, long = name((1, 1), (1, 5)), name((1, 1), (1, 9))
    assert in_order([long, short]) == [long]
