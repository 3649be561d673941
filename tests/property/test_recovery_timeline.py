"""The timeline against a count by hand: stretches and fold ends are exactly what is offered, gaps what the marks say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.planner import Planner
from recovery.point import AtPosition
from recovery.timeline import END, IN_DOUBT, NOT_STORED, flushes, timeline
from stream.position import ZERO, Position
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.property.test_recovery_planner import doubted, offered
from tests.recovery_story import Held, HeldFacts, Story, hold, stored, stories


def written(story: Story, held: list[Held]) -> list[int]:
    """Return the places of what is offered and stands in a segment of level 0."""
    inside = {at for one in held if one.name.level == 0 for at in range(one.low, one.high)}
    return [at for at in offered(story, held) if at in inside]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_stretches_and_fold_ends_are_what_is_offered(data) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    facts = HeldFacts(held)
    facts.doubtful = data.draw(doubted(story))
    planner = Planner(facts)
    found = timeline(planner)
    assert [(gap.after, gap.until) for gap in found.gaps if gap.reason == IN_DOUBT] == [
        (one.after, one.until) for one in sorted(facts.doubtful, key=lambda one: one.after)
    ]
    points = offered(story, held, facts.doubtful)
    positions, times = story.positions(), story.times()
    inside: list[int] = []
    for stretch in found.stretches:
        low, high = positions.index(stretch.first.position), positions.index(stretch.last.position)
        assert (stretch.first.capture_time_ns, stretch.last.capture_time_ns) == (times[low], times[high])
        assert not inside or inside[-1] < low
        inside += [at for at in range(low, high + 1) if not story.maker.records[at][2].more]
        for at in (low, high):
            planner.plan(AtPosition(positions[at]))
    ends = [positions.index(end.moment.position) for end in found.fold_ends]
    assert set(inside) <= set(points) & set(written(story, held)) <= {*inside, *ends}
    assert sorted({*inside, *ends}) == points
    assert not set(inside) & set(ends)
    if points:
        assert found.first is not None and found.latest is not None
        assert positions.index(found.latest.position) == points[-1]
        assert positions.index(found.first.position) == points[0]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_nothing_that_needs_a_damaged_segment_is_shown(data) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    if not held:
        return
    facts = HeldFacts(held)
    facts.damaged = data.draw(st.sets(st.sampled_from([one.name for one in held]), min_size=1, max_size=2))
    found = timeline(Planner(facts))
    positions = story.positions()
    inside = {
        at
        for stretch in found.stretches
        for at in range(positions.index(stretch.first.position), positions.index(stretch.last.position) + 1)
        if not story.maker.records[at][2].more
    }
    shown = inside | {positions.index(end.moment.position) for end in found.fold_ends}
    assert sorted(shown) == offered(story, [one for one in held if one.name not in facts.damaged])
    assert set(found.damaged) <= {str(name) for name in facts.damaged}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_window_of_it_is_a_part_of_it(data) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    planner = Planner(HeldFacts(held))
    positions = story.positions()
    low, high = sorted(data.draw(st.sampled_from([ZERO, *positions])) for _ in range(2))
    found = timeline(planner, low, high)
    inside = [
        at
        for stretch in found.stretches
        for at in range(positions.index(stretch.first.position), positions.index(stretch.last.position) + 1)
        if not story.maker.records[at][2].more
    ]
    ends = [positions.index(end.moment.position) for end in found.fold_ends]
    assert sorted({*inside, *ends}) == [at for at in offered(story, held) if low < positions[at] <= high]
    told = [at for at in inside if story.maker.records[at][2].kind == Kind.FLUSH and low < positions[at] <= high]
    assert [one for one in flushes(planner, low, high) if positions.index(one) not in ends] == [positions[at] for at in told]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_gaps_bookmarks_and_their_ends(data) -> None:
    """With all of the history stored, in whatever segments, each gap stands where it was begun and ends where it was closed."""
    story = data.draw(stories())
    count = len(story.maker.messages)
    cuts = sorted(data.draw(st.sets(st.integers(1, count), max_size=5)) | {count})
    held = [one for low, high in zip([0, *cuts], cuts, strict=False) if low < high and (one := hold(story, low, high)) is not None]
    end = max((one.high for one in held), default=0)
    if end < len(story.maker.records) or not held:
        return  # the end of it is a split write that is not over
    planner = Planner(HeldFacts(held))
    found = timeline(planner)
    open_still = {gap.after for gap in found.gaps if gap.until is None}
    ended = {gap.after: gap.until for gap in sorted(found.gaps, key=lambda one: one.until or END) if gap.after not in open_still}
    assert ended == dict(sorted(story.closed))
    noted = {gap.position for one in held for gap in one.header.gaps}
    assert open_still <= set(story.gaps) and set(story.gaps) - open_still <= {story.positions()[-1]} - noted
    for gap in found.gaps:
        until = gap.until or END
        assert not any(story.good[at] for at, position in enumerate(story.positions()) if gap.after < position < until)
    good = offered(story, held)
    told = [(one.moment.position, one.label, one.offered) for one in found.bookmarks]
    assert told == [
        (position, one.attributes["label"], at in good)
        for at, (position, _, one) in enumerate(story.maker.records)
        if one.kind == Kind.BOOKMARK
    ]


def test_what_nothing_leads_to_is_a_gap_of_its_own() -> None:
    story = Story()
    story.tell(mark(Kind.EPOCH_START, first="true", size_bytes="4096"))
    story.tell(mark(Kind.SYNC_END, closes=story.closes()))
    for number in range(4):
        story.tell(write(number, b"x"))
    held = [one for one in (hold(story, 0, 4), hold(story, 5, 6), hold(story, 6, 7)) if one is not None]
    found = timeline(Planner(HeldFacts(held)))
    assert [(gap.reason, gap.after, gap.until) for gap in found.gaps] == [
        ("first_copy", Position(1, 1), Position(1, 2)),
        (NOT_STORED, Position(1, 4), None),
    ]
    assert found.latest is not None and found.latest.position == Position(1, 3)
