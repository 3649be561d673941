"""What is read off a workload: rates, peaks and bounds, by numbers worked out by hand."""

from __future__ import annotations

import pytest

from hostoffload.capacity.overwrites import BLOCK_BYTES, PAGE_BLOCKS, OverwriteCount
from hostoffload.capacity.workload import Interval, Overwrite, Workload


def seconds(*payloads: int, length_s: float = 1.0) -> Workload:
    """Return a workload of these payloads, one interval each, in writes of 10 bytes."""
    return Workload("test", [Interval(length_s, one, one // 10) for one in payloads])


def test_rates_of_four_seconds() -> None:
    seen = seconds(10, 0, 30, 20)
    assert (seen.seconds, seen.payload_bytes, seen.writes) == (4.0, 60, 6)
    assert seen.bytes_per_s == 15.0 and seen.writes_per_s == 1.5
    assert seen.quantile() == 30.0  # the fourth of four: ceil(0.95 * 4)
    assert seen.busiest(1) == 30.0
    assert seen.busiest(2) == 25.0  # 30 and 20
    assert seen.busiest(4) == 15.0
    assert seen.busiest(10) is None  # nobody looked for that long


def test_the_95th_percentile_leaves_one_in_twenty_above_it() -> None:
    assert seconds(*[10] * 19, 1000).quantile() == 10.0
    assert seconds(*[10] * 18, 500, 1000).quantile() == 500.0
    assert seconds(7).quantile() == 7.0


def test_what_no_stretch_exceeds_counts_both_intervals_that_it_may_cut() -> None:
    seen = seconds(10, 0, 30, 20)
    assert seen.most(1) == (50, 5)  # a second may begin in the middle of one and end in the next
    assert seen.most(2) == (50, 5)  # 0 + 30 + 20
    assert seen.most(4) == (60, 6)
    assert seen.most(5) is None


def test_long_intervals_tell_no_short_peak() -> None:
    seen = seconds(100, 50, 150, length_s=5.0)
    assert seen.busiest(1) is None
    assert seen.busiest(10) == 20.0  # 50 + 150 in 10 s
    assert seen.quantile() == 30.0
    assert seen.most(5) == (200, 20)


def test_a_clock_that_cut_a_little_short_makes_no_longer_window() -> None:
    seen = Workload("test", [Interval(0.97, 194, 1), Interval(1.03, 103, 1), Interval(0.98, 49, 1)])
    assert seen.busiest(1) == pytest.approx(200.0)


@pytest.mark.parametrize("wrong", [(0.0, 1, 1), (-1.0, 1, 1), (1.0, -1, 1), (1.0, 1, -1)])
def test_what_is_no_interval_is_refused(wrong: tuple[float, int, int]) -> None:
    with pytest.raises(ValueError, match="not an interval"):
        Interval(*wrong)


def test_overwrites_of_one_block_and_its_neighbour() -> None:
    count = OverwriteCount([2, 4])
    for second, block in [(0, 5), (0, 5), (1, 5), (2, 5), (3, 6), (4, 5)]:
        count.add(second, block * BLOCK_BYTES, BLOCK_BYTES)
    short, long = count.finish(5)
    # Windows of 2 s: {5} of three writes, {5, 6} of two; the third is not over. One window of 4 s: {5, 6} of five writes.
    assert short == Overwrite(2, 2, 5 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    assert long == Overwrite(4, 1, 5 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert short.unique_bytes_each == 1.5 * BLOCK_BYTES and short.saved_share == pytest.approx(0.4)


def test_windows_without_a_write_are_windows_too() -> None:
    count = OverwriteCount([10])
    count.add(35, 0, BLOCK_BYTES)
    assert count.finish(50) == (Overwrite(10, 5, BLOCK_BYTES, BLOCK_BYTES),)
    assert count.finish(50)[0].unique_bytes_each == BLOCK_BYTES / 5


def test_a_write_over_the_end_of_a_page_counts_each_block_once() -> None:
    count = OverwriteCount([1])
    at = (PAGE_BLOCKS - 1) * BLOCK_BYTES
    count.add(0, at, 3 * BLOCK_BYTES)
    count.add(0, at + BLOCK_BYTES, BLOCK_BYTES)
    assert count.finish(1) == (Overwrite(1, 1, 4 * BLOCK_BYTES, 3 * BLOCK_BYTES),)


def test_small_writes_are_never_more_unique_than_written() -> None:
    count = OverwriteCount([1])
    count.add(0, 100, 512)
    assert count.finish(1) == (Overwrite(1, 1, 512, 512),)


def test_more_of_a_volume_than_is_kept_count_of_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostoffload.capacity.overwrites.PAGES_MAX", 2)
    count = OverwriteCount([1])
    for page in range(3):
        count.add(0, page * PAGE_BLOCKS * BLOCK_BYTES, 1)
    assert count.overrun and count.finish(1) is None
