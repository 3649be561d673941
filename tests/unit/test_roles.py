"""The rights of roles as data: names filled in, nothing that reaches over a volume's border."""

from __future__ import annotations

import pytest

from stream.errors import ConfigError
from stream.roles import ROLES, Right, rights, rights_to_take


def test_rights_name_each_volume_once() -> None:
    told = rights("agent", ["b", "a", "a"])
    assert [one.name for one in told if one.operation == "Write"] == ["ho.a.writes", "ho.b.writes", "ho.control", "ho.status"]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("role", ["agent", "cx", "target"])
def test_no_service_has_a_prefix_of_topics(role: str) -> None:
    assert [one for one in rights(role, ["a"]) if one.prefix and one.resource == "topic"] == []


@pytest.mark.parametrize("role", ["agent", "target", "operator"])
def test_only_the_cx_writes_a_journal(role: str) -> None:
    told = rights(role, [] if role == "operator" else ["a"])
    assert [one for one in told if one.operation == "Write" and (one.prefix or one.name.endswith(".journal"))] == []


@pytest.mark.parametrize(
    ("role", "volumes", "sentence"),
    [
        ("agent", [], "The role agent has rights on volumes, and none is named"),
        ("operator", ["a"], "The role operator has rights on all volumes"),
        ("cx", ["UP"], "'UP' is not a volume name"),
        ("king", [], "There is no role 'king'"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(role: str, volumes: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rights(role, volumes)
    assert caught.value.sentence == sentence and caught.value.hint


@pytest.mark.parametrize("role", ROLES)
def test_what_is_taken_for_volumes_and_without_them_is_all_that_was_given(role: str) -> None:
    volumes = [] if role == "operator" else ["a", "b"]
    taken = rights_to_take(role, [])
    if volumes:
        of_volumes = rights_to_take(role, volumes)
        assert {one.name for one in of_volumes} <= {"ho.a.writes", "ho.b.writes", "ho.a.journal", "ho.b.journal"}
        taken += of_volumes
    assert sorted(taken, key=_order) == sorted(rights(role, volumes), key=_order)


def _order(right: Right) -> tuple[str, str, str]:
    return right.resource, right.name, right.operation
