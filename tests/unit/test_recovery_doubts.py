"""History that is in doubt (design rule 26): no point of it is offered, by position, time, name or as the latest, and it is told why."""

from __future__ import annotations

import random

import pytest

from history.doubts import Doubt, doubt, in_doubt
from recovery.point import AtPosition, AtTime
from recovery.timeline import IN_DOUBT
from stream.errors import RecoveryError
from stream.extent import Extent
from stream.position import ZERO
from tests.recovery_bench import RecoveryBench, busy_history

CHUNK = Extent(4096, 65536)


@pytest.fixture
def bench() -> RecoveryBench:
    maker = busy_history(11, 24)
    return RecoveryBench(maker, len(maker.messages) * 3 // 4, seals=5)


@pytest.mark.parametrize("seed", range(8))
def test_no_point_in_doubt_is_offered_and_every_other(bench: RecoveryBench, seed: int) -> None:
    rng = random.Random(seed)
    positions = [position for position, _, _ in bench.maker.records]
    with bench.opener() as opener:
        offered = [position for position in positions if opener.planner().offers(position)]
    assert len(offered) > 100
    known = []
    for _ in range(rng.randrange(1, 4)):
        after, found, until = sorted(rng.sample(positions, 3))
        known.append(Doubt(after, found, until if rng.random() < 0.8 else None, CHUNK))
        doubt(bench.store, "v1", known[-1])
    expected = [position for position in offered if in_doubt(known, position) is None]
    with bench.opener() as opener:
        planner = opener.planner()
        assert [position for position in positions if planner.offers(position)] == expected
        for bound in rng.sample(positions, 20):
            assert planner.before(bound) == max((one for one in expected if one <= bound), default=None)
            assert planner.after(bound) == min((one for one in expected if one > bound), default=None)
        if expected:
            with opener.open("latest") as point:
                assert point.position == expected[-1]
        timeline = opener.timeline()
        assert [(gap.after, gap.until) for gap in timeline.gaps if gap.reason == IN_DOUBT] == sorted(
            (one.after, one.until) for one in known
        ) or len({one.after for one in known}) < len(known)
        inside = [one for one in offered if any(each.first.position <= one <= each.last.position for each in timeline.stretches)]
        assert set(expected) <= set(inside)
        for each in timeline.stretches:
            assert {each.first.position, each.last.position} <= set(expected)


def test_it_is_told_why_and_where_the_good_points_are(bench: RecoveryBench) -> None:
    records = bench.maker.records
    whole = [(position, time_ns) for position, time_ns, told in records if not told.more]
    (after, after_ns), (inside, inside_ns), (found, _), (until, _) = whole[20], whole[30], whole[40], whole[50]
    doubt(bench.store, "v1", Doubt(after, found, until, CHUNK))
    with bench.opener() as opener:
        with pytest.raises(RecoveryError, match="verification found") as caught:
            opener.open(AtPosition(inside))
        assert (caught.value.facts["before"].position, caught.value.facts["after"].position) == (after, until)
        with opener.open(AtTime(inside_ns)) as point:
            assert (point.position, point.capture_time_ns) == (after, after_ns)
        (gap,) = [gap for gap in opener.timeline().gaps if gap.reason == IN_DOUBT]
        assert (gap.begun_at_ns, "4096 to 69632" in gap.missing) == (after_ns, True)


def test_everything_in_doubt_offers_nothing(bench: RecoveryBench) -> None:
    doubt(bench.store, "v1", Doubt(ZERO, bench.maker.records[30][0], None, CHUNK))
    with bench.opener() as opener, pytest.raises(RecoveryError):
        opener.open("latest")
