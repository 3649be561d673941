"""The candidates of a bisection are what the planner offers, and the unfinished fragments of split writes, which open as none."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from recovery.candidates import Candidates
from recovery.planner import Planner
from stream.position import ZERO
from tests.property.test_recovery_planner import offered
from tests.recovery_story import HeldFacts, stored, stories


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_candidates_are_what_is_offered(data: st.DataObject) -> None:
    story = data.draw(stories())
    held = data.draw(stored(story))
    positions = story.positions()
    low, high = sorted(data.draw(st.sampled_from([ZERO, *positions])) for _ in range(2))
    found = Candidates(Planner(HeldFacts(held)), low, high)
    told = [found[index].position for index in range(len(found))]
    assert told == sorted(set(told))
    whole = [position for position in told if not story.maker.records[positions.index(position)][2].more]
    assert whole == [positions[at] for at in offered(story, held) if low < positions[at] <= high]
