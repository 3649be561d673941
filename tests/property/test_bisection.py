"""Bisection as a pure function: right whatever the points are, few questions, and honest about what nobody could judge."""

from __future__ import annotations

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from recovery.bisection import UNKNOWN_MAX, Bisected, Verdict, bisect_points


def bisected(verdicts: list[Verdict]) -> Bisected:
    asked: list[int] = []

    def judge(index: int) -> Verdict:
        assert index not in asked, "asked twice"
        asked.append(index)
        return verdicts[index]

    found = bisect_points(len(verdicts), judge)
    assert [index for index, _ in found.trials] == asked
    assert all(verdicts[index] is verdict for index, verdict in found.trials)
    return found


@given(good=st.integers(0, 3000), bad=st.integers(0, 3000))
def test_the_last_good_point_is_found_with_few_questions(good: int, bad: int) -> None:
    found = bisected([Verdict.GOOD] * good + [Verdict.BAD] * bad)
    assert found.good == (good - 1 if good else None)
    assert found.bad == (good if bad else None)
    assert found.exact
    assert len(found.trials) <= 3 + ceil(log2(good + bad + 1))


@given(st.lists(st.sampled_from(list(Verdict)), max_size=60))
def test_what_it_says_was_seen(verdicts: list[Verdict]) -> None:
    """Whatever the verdicts are, monotonic or not, good was good, bad was bad, and an exact answer has nothing between."""
    found = bisected(verdicts)
    if found.good is not None:
        assert verdicts[found.good] is Verdict.GOOD
    if found.bad is not None:
        assert verdicts[found.bad] is Verdict.BAD
    if found.good is not None and found.bad is not None:
        assert found.good < found.bad
        between = set(range(found.good + 1, found.bad))
        assert found.exact == (not between)
        assert between <= {index for index, verdict in found.trials if verdict is Verdict.UNKNOWN}


@given(st.integers(0, 40), st.integers(1, 40), st.data())
def test_points_that_nobody_can_judge_widen_the_answer_by_themselves_alone(good: int, bad: int, data: st.DataObject) -> None:
    real = [Verdict.GOOD] * good + [Verdict.BAD] * bad
    hidden = data.draw(st.sets(st.integers(0, good + bad - 1)))
    found = bisected([Verdict.UNKNOWN if index in hidden else verdict for index, verdict in enumerate(real)])
    known_good = [index for index in range(good) if index not in hidden]
    known_bad = [index for index in range(good, good + bad) if index not in hidden]
    assert found.good == (max(known_good) if known_good else None)
    assert found.bad == (min(known_bad) if known_bad else None)


@given(st.sampled_from(["all", "the middle"]), st.integers(1000, 5000))
def test_what_nobody_can_judge_is_not_asked_for_ever(hidden: str, count: int) -> None:
    """It is the machine then, not the points."""
    ends = [] if hidden == "all" else [Verdict.GOOD]
    found = bisected([*ends, *[Verdict.UNKNOWN] * count, *([Verdict.BAD] if ends else [])])
    assert len(found.trials) <= UNKNOWN_MAX + 2
    assert not found.exact
