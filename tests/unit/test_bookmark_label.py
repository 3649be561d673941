"""What a label may be: nothing that reads like another kind of point, nothing that a terminal or a file can't show."""

from __future__ import annotations

import pytest

from stream.bookmark import LABEL_CHARACTERS_MAX, check_group_name, check_label
from stream.errors import ConfigError


@pytest.mark.parametrize("label", ["before-upgrade", "vor dem Umbau: ü", "nightly 2026-11-26", "v1.2", "#7", "y" * LABEL_CHARACTERS_MAX])
def test_a_label_may_be_any_text_that_shows(label: str) -> None:
    assert check_label(label) == label


@pytest.mark.parametrize("label", ["", " x", "x ", "a\nb", "a\x00b", "a\x1b[0m", "y" * (LABEL_CHARACTERS_MAX + 1)])
def test_what_does_not_show_is_no_label(label: str) -> None:
    with pytest.raises(ConfigError, match="is not a label"):
        check_label(label)


@pytest.mark.parametrize(
    "label", ["latest", "LATEST", "-3s", "00000001-0000000000000042", "2026-11-26", "2026-11-26T01:02:03.5", "2026-11-26 01:02", "20261126"]
)
def test_a_label_is_no_other_kind_of_point(label: str) -> None:
    with pytest.raises(ConfigError, match="reads like another kind of point"):
        check_label(label)


def test_a_group_is_named_as_a_volume_is() -> None:
    assert check_group_name("shop-1") == "shop-1"
    with pytest.raises(ConfigError, match="is not a group name"):
        check_group_name("Shop")
