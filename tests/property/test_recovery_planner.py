"""The planner against a count by hand: which points are offered, which segments they take, what a conflict names."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history.doubts import Doubt
from recovery.plan import Plan
from recovery.planner import Planner
from recovery.point import Ago, AtBookmark, AtPosition, AtTime, Latest
from recovery.timeline import END
from stream.errors import IntegrityError, RecoveryError
from stream.position import ZERO, Position
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.recovery_story import SIZE_BYTES, Held, HeldFacts, Story, hold, stored, stories


def reachable(held: list[Held]) -> set[int]:
    """Return which records (by place) some chain of segments ends at, by trying all; -1 stands before the first."""
    found = {-1}
    while True:
        more = set(found)
        for one in held:
            for at in found:
                if one.low - 1 <= at < one.high - 1:
                    more |= set(range(at, one.high)) if one.name.level == 0 else {one.high - 1}
        if more == found:
            return found - {-1}
        found = more


def offered(story: Story, held: list[Held], doubts: list[Doubt] | None = None) -> list[int]:
    """Return the places of the recovery points that these segments can restore, and that nothing is in doubt at."""
    positions = story.positions()
    doubtful = {at for one in doubts or () for at, position in enumerate(positions) if one.after < position < (one.until or END)}
    return sorted(at for at in reachable(held) if story.good[at] and at not in doubtful)


@st.composite
def doubted(draw, story: Story) -> list[Doubt]:
    """Up to two stretches between positions of a story in doubt, the end of them perhaps not known."""
    found = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        ends = st.lists(st.sampled_from([ZERO, *story.positions()]), min_size=2, max_size=2, unique=True)
        after, until = sorted(draw(ends))
        found.append(Doubt(after, until, draw(st.sampled_from([until, None]))))
    return found


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_good_point_is_offered_and_no_other(data) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    facts = HeldFacts(held)
    facts.doubtful = data.draw(doubted(story))
    positions, times = story.positions(), story.times()
    points = offered(story, held, facts.doubtful)
    if not held:
        with pytest.raises(RecoveryError, match="Nothing is stored"):
            Planner(facts).plan(Latest())
        return
    planner = Planner(facts)
    for at, position in enumerate(positions):
        if at in points:
            check(planner.plan(AtPosition(position)), story, held, at)
        else:
            with pytest.raises(RecoveryError) as caught:
                planner.plan(AtPosition(position))
            near = [one.position if one else None for one in (caught.value.facts["before"], caught.value.facts["after"])]
            assert near == [
                next((positions[one] for one in reversed(points) if one < at), None),
                next((positions[one] for one in points if one > at), None),
            ]
    for time_ns in {data.draw(st.sampled_from(times)) + data.draw(st.integers(-1, 1)) for _ in range(5)}:
        until = [one for one in points if times[one] <= time_ns]
        if until:
            check(planner.plan(AtTime(time_ns)), story, held, until[-1])
            check(planner.plan(Ago(7), now_ns=time_ns + 7), story, held, until[-1])
        else:
            with pytest.raises(RecoveryError):
                planner.plan(AtTime(time_ns))
    if points:
        check(planner.plan(Latest()), story, held, points[-1])


def check(plan: Plan, story: Story, held: list[Held], at: int) -> None:
    """Check that a plan's segments lead to record `at` without a hole, and are as few as can be."""
    by_name = {one.name: one for one in held}
    assert (plan.position, plan.moment.capture_time_ns) == story.maker.records[at][:2]
    assert plan.size_bytes == SIZE_BYTES
    reached = -1
    for part in plan.parts:
        one = by_name[part.name]
        assert one.low - 1 <= reached < one.high - 1, "a part does not join on"
        reached = min(one.high - 1, at)
        assert part.name.level == 0 or part.name.last <= plan.position, "a fold beyond the point"
        assert part.through == story.positions()[reached]
    assert reached == at
    positions = story.positions()[: at + 1]
    jumps = sum(before.next() != after for before, after in pairwise(positions))
    assert fewest(held, at) <= len(plan.parts) <= fewest(held, at) + jumps, "names don't tell what joins over a jump"


def fewest(held: list[Held], at: int) -> int:
    """Return the least number of segments that lead to record `at`, by trying all in breadth."""
    count, found = 0, {-1}
    while at not in found:
        count += 1
        more = set(found)
        for one in held:
            for start in found:
                if one.low - 1 <= start < one.high - 1:
                    more |= set(range(start, min(one.high, at + 1))) if one.name.level == 0 else {one.high - 1}
        assert more != found
        found = {one for one in more if one <= at}
    return count


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_bookmark_is_its_newest_position(data) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    written = [one for one in held if one.name.level == 0]
    if not held:
        return
    planner = Planner(HeldFacts(held))
    points = offered(story, held)
    for label in "abc":
        told = [at for at, (_, _, one) in enumerate(story.maker.records) if one.kind == Kind.BOOKMARK and one.attributes["label"] == label]
        seen = [at for at in told if any(one.low <= at < one.high for one in written)]
        seen = seen or [at for at in told if any(one.low <= at < one.high for one in held)]
        if not seen:
            with pytest.raises(RecoveryError, match="has no bookmark"):
                planner.plan(AtBookmark(label))
        elif seen[-1] in points:
            check(planner.plan(AtBookmark(label)), story, held, seen[-1])
        else:
            with pytest.raises(RecoveryError, match="bookmark"):
                planner.plan(AtBookmark(label))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_told_and_never_passed_over(data) -> None:
    """A damaged segment takes away exactly the points that need it; what is newest is never replaced by something older in silence."""
    story = data.draw(stories())
    held = data.draw(stored(story))
    if not held:
        return
    facts = HeldFacts(held)
    facts.damaged = data.draw(st.sets(st.sampled_from([one.name for one in held]), min_size=1, max_size=2))
    left = [one for one in held if one.name not in facts.damaged]
    positions, all_points, points = story.positions(), offered(story, held), offered(story, left)
    for at in all_points:
        if at in points:
            check(Planner(facts).plan(AtPosition(positions[at])), story, left, at)
        else:
            with pytest.raises(IntegrityError) as caught:
                Planner(facts).plan(AtPosition(positions[at]))
            assert caught.value.facts["path"] in {str(name) for name in facts.damaged}
    times = story.times()
    for at in all_points:
        try:
            found = Planner(facts).plan(AtTime(times[at]))
        except IntegrityError as error:
            assert error.facts["path"] in {str(name) for name in facts.damaged}
        else:
            assert found.position == positions[max(one for one in all_points if times[one] <= times[at])]
    if all_points:
        newest = all_points[-1]
        try:
            found = Planner(facts).plan(Latest())
        except IntegrityError as error:
            assert error.facts["path"] in {str(name) for name in facts.damaged}
        else:
            assert newest in points
            check(found, story, left, newest)


def test_a_gap_of_the_journal_is_passed_once_it_is_closed() -> None:
    """Whichever segment the gap is noted in: what follows it stands elsewhere."""
    story = Story()
    story.tell(mark(Kind.EPOCH_START, first="true", size_bytes=str(SIZE_BYTES)))
    story.tell(mark(Kind.SYNC_END, closes=story.closes()))
    story.lose(5)
    story.tell(write(0, b"x"))
    story.tell(mark(Kind.SYNC_END, closes=story.closes()))
    count = len(story.maker.messages)
    for cut in range(1, count):
        planner = Planner(HeldFacts([one for one in (hold(story, 0, cut), hold(story, cut, count)) if one is not None]))
        assert planner.plan(Latest()).position == Position(1, 9)
        assert planner.before(Position(1, 8)) == Position(1, 2)
