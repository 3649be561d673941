"""Every label that may be given is found again: no reader of points takes it for anything but a bookmark."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from recovery.point import AtBookmark, parse_point
from stream.bookmark import check_label
from stream.errors import ConfigError

TIMES = ("2026-11-26", "2026-13-45", "T", " ", "01:02", ":03", ".5", ",123456789", "Z", "z", "+01:00")
PIECES = ("latest", "-", "30s", "00000001-0000000000000042", "x", *TIMES)


@settings(max_examples=500)
@given(st.text(max_size=140) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@example("2026-11-26 01:02 Z")
@example("2026-13-45")
@example("2026-11-26T25:61")
def test_a_label_reads_as_a_bookmark_and_as_nothing_else(text: str) -> None:
    try:
        label = check_label(text)
    except ConfigError:
        return
    assert parse_point(label) == AtBookmark(label)
