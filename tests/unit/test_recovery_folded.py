"""Points of a history that was folded by the real thing: ends of folds and what stands behind them, byte for byte; nothing between them."""

from __future__ import annotations

import pytest

from history.catalog import Catalog
from history.fold import FoldTask, fold
from history.levels import DAY, FIVE_MINUTES, HOUR, SNAPSHOT
from history.reader import list_segments
from history.segment import SegmentName
from recovery.point import AtPosition, AtTime
from stream.errors import RecoveryError
from tests.recovery_bench import RecoveryBench, busy_history
from tests.unit.test_recovery_opening import content


class Folded(RecoveryBench):
    """Six segments of level 0, the first four folded two by two, the folds folded again, and what was folded deleted."""

    def __init__(self) -> None:
        maker = busy_history(21, 60)
        super().__init__(maker, len(maker.messages), seals=6)
        self.written = list_segments(self.store, "v1")
        first = self.fold(FIVE_MINUTES, self.written[:2])
        self.folds = [first, self.fold(FIVE_MINUTES, self.written[2:4], after=first)]
        for name in self.written[:4]:
            self.store.delete(str(name))

    def fold(self, level: int, sources: list[SegmentName], after: SegmentName | None = None) -> SegmentName:
        task = FoldTask("v1", level, tuple(sources), sources[-1].last, after)
        return fold(Catalog(self.store, "v1"), task, codec="snappy")


@pytest.fixture
def bench() -> Folded:
    return Folded()


def test_ends_of_folds_and_all_behind_them(bench: Folded) -> None:
    behind = [(position, told) for position, _, told in bench.maker.records if position > bench.folds[1].last]
    wanted = [bench.folds[0].last, bench.folds[1].last, *[position for position, told in behind if not told.more][::17]]
    with bench.opener() as opener:
        for position in wanted:
            with opener.open(AtPosition(position)) as point:
                assert content(point) == bench.oracle(position)
                assert len(point.plan.parts) <= 5, "two folds, two segments, the tail"
        found = opener.timeline()
    assert [(one.moment.position, one.level) for one in found.fold_ends] == [(one.last, FIVE_MINUTES) for one in bench.folds]
    (stretch,) = found.stretches
    assert stretch.first.position == next(position for position, told in behind if not told.more)
    assert stretch.last.position == bench.maker.records[-1][0]
    assert [gap.reason for gap in found.gaps] == ["first_copy"]
    told = {one.label: one.offered for one in found.bookmarks}
    assert told["b55"] and not told["b0"]


def test_inside_a_fold_there_is_nothing_to_go_back_to(bench: Folded) -> None:
    inside = bench.written[1].first
    with bench.opener() as opener:
        with pytest.raises(RecoveryError, match="only the end of a fold is kept") as caught:
            opener.open(AtPosition(inside))
        before, after = caught.value.facts["before"], caught.value.facts["after"]
        assert before is None and after.position == bench.folds[0].last
        later = next(time_ns for position, time_ns, _ in bench.maker.records if position == bench.written[2].last)
        with opener.open(AtTime(later)) as point:
            assert point.position == bench.folds[0].last
            assert content(point) == bench.oracle(point.position)


@pytest.mark.parametrize("levels", [(HOUR,), (HOUR, DAY), (HOUR, DAY, SNAPSHOT)])
def test_folds_of_folds(bench: Folded, levels: tuple[int, ...]) -> None:
    sources = bench.folds
    for level in levels:
        made = bench.fold(level, sources)
        for name in sources:
            bench.store.delete(str(name))
        sources = [made]
    with bench.opener() as opener:
        for position in (sources[0].last, bench.maker.records[-1][0]):
            with opener.open(AtPosition(position)) as point:
                assert point.plan.parts[0].name == sources[0]
                assert content(point) == bench.oracle(position)
        assert opener.timeline().first == opener.plan(AtPosition(sources[0].last)).moment
