"""Volumes that nobody takes are asked for again; what is on its way to a worker is left alone."""

from __future__ import annotations

import pytest

from cx_consumers.orphans import Orphans
from stream.errors import RetryError
from stream.roles import CX_GROUP
from stream.topics import writes_topic


class Group:
    """What Kafka tells of the group, look by look, and how often it was asked to be assigned anew."""

    def __init__(self, wanted: set[str]) -> None:
        self.tells: set[str] | Exception | None = set()
        self.rejoined = 0
        self.orphans = Orphans(self, lambda: frozenset(wanted), self._rejoin)  # type: ignore[arg-type]

    def taken(self, group: str) -> set[str] | None:
        assert group == CX_GROUP
        if isinstance(self.tells, Exception):
            raise self.tells
        return self.tells

    def look(self, tells: set[str] | Exception | None) -> int:
        """Look once; return how often the group was to be assigned anew so far."""
        self.tells = tells
        self.orphans.look()
        return self.rejoined

    def _rejoin(self) -> None:
        self.rejoined += 1


A, B = writes_topic("a"), writes_topic("b")


def test_a_volume_that_is_nobodys_twice_is_asked_for_again_and_again() -> None:
    group = Group({"a", "b"})
    assert [group.look({B}) for _ in range(6)] == [0, 1, 1, 2, 2, 3]
    assert group.look({A, B}) == 3


def test_a_volume_that_comes_to_a_worker_in_time_is_left_alone() -> None:
    group = Group({"a", "b"})
    assert [group.look(told) for told in ({B}, {A}, {B}, {A, B})] == [0, 0, 0, 0]


@pytest.mark.parametrize("between", [None, RetryError("The broker does not answer")])
def test_a_group_that_moves_or_can_not_be_seen_tells_nothing(between: Exception | None) -> None:
    group = Group({"a"})
    assert [group.look(told) for told in (set(), between, set(), {A})] == [0, 0, 0, 0]


def test_without_volumes_kafka_is_not_asked() -> None:
    assert Group(set()).look(AssertionError("asked")) == 0
