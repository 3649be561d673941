"""The benchmark's arithmetic: ratios of pairs, goals, percentiles, lags."""

from __future__ import annotations

import json

import pytest

from bench.load import Load, parse
from bench.replication import lags_ms
from bench.results import Comparison, Lag, Results, Round, Throughput, percentile


def rounds(*rates: float) -> list[Round]:
    return [Round(rate, rate / 100, 100 + rate, 200 + rate, rate / 200, 1.0) for rate in rates]


def saturated(load: str, ratio: float) -> Comparison:
    return Comparison(load, {"nbdkit file": rounds(100, 100, 100), "agent, discarding": rounds(*[100 * ratio] * 3)})


def test_a_ratio_is_that_of_the_pairs_even_when_the_machine_slows_down_between_the_rounds():
    # Medians alone would say 500 / 100 = 5: the yardstick was slow in two rounds, the other server in one.
    comparison = Comparison("x", {"nbdkit file": rounds(1000, 100, 100), "agent": rounds(900, 50, 500)})
    assert comparison.ratio("agent") == pytest.approx(0.9)


def test_added_latency_is_that_of_the_pairs():
    comparison = Comparison("x", {"nbdkit file": rounds(10, 20, 30), "agent": rounds(15, 26, 37)})
    assert comparison.added_us("agent", "p50_us") == pytest.approx(6)
    assert comparison.added_us("agent", "p99_us") == pytest.approx(6)


@pytest.mark.parametrize(("ratio", "missed"), [(0.9, 0), (0.89, 1)])
def test_a_ratio_below_the_goal_is_a_miss(ratio: float, missed: int):
    results = Results({}, saturated=[saturated("4k QD32", ratio), saturated("64k QD8", 1.0)])
    assert len(results.misses()) == missed


def test_a_load_without_a_goal_is_never_a_miss():
    assert Results({}, saturated=[saturated("4k QD1", 0.1)]).misses() == []


@pytest.mark.parametrize(("seconds", "missed"), [(10.0, 0), (10.2, 1)])
def test_end_to_end_counts_until_the_replica_has_everything(seconds: float, missed: int):
    results = Results({}, throughput=Throughput(600_000_000 + 1_000_000, 1.0, 2.0, seconds))
    assert len(results.misses()) == missed


@pytest.mark.parametrize(("p50", "p99", "missed"), [(25.0, 250.0, 0), (25.1, 250.0, 1), (25.0, 250.1, 1)])
def test_a_lag_above_the_goal_is_a_miss_at_the_first_rate_only(p50: float, p99: float, missed: int):
    other = Lag("4k at 5,000/s", 1, 20.0, 999.0, 999.0, 999.0, 1)
    assert len(Results({}, lags=[Lag("64k at 20 MB/s", 1, 20.0, p50, p99, p99, 1), other]).misses()) == missed


def test_the_json_has_the_derived_figures_and_can_be_written():
    results = Results({"cpus": 2}, saturated=[saturated("1M QD4", 0.5)], throughput=Throughput(10**9, 1.0, 2.0, 5.0))
    told = json.loads(json.dumps(results.as_json()))
    assert told["ratios"] == {"1M QD4": {"agent, discarding": 0.5}}
    assert told["end_to_end_mb_per_s"] == 200
    assert len(told["missed"]) == 1
    assert told["machine"] == {"cpus": 2}


@pytest.mark.parametrize(("load", "busy"), [(0.9, False), (1.1, True)])
def test_a_run_says_that_the_machine_was_busy(load: float, busy: bool):
    assert Results({"cpus": 2, "load_before": (load, 9.0, 9.0)}).busy is busy


def test_the_key_figure_tells_ratios_throughput_and_lag():
    results = Results({}, saturated=[saturated("4k QD1", 0.7), saturated("4k QD32", 0.95)], throughput=Throughput(10**9, 1.0, 2.0, 5.0))
    results.lags.append(Lag("64k at 20 MB/s", 1, 20.0, 4.25, 31.0, 40.0, 1))
    assert results.key_figure() == "agent ÷ nbdkit: 4k QD32 0.95 | end to end 200 MB/s | RPO lag p50 4.2 ms, p99 31 ms"


def test_percentiles_are_values_that_were_measured():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 99) == 7.0


def test_a_record_is_as_old_as_the_first_checkpoint_that_has_it_makes_it():
    captured = [(1, 1_000_000), (2, 2_000_000), (3, 3_000_000), (4, 10_000_000)]
    seen = [(2, 5_000_000), (3, 6_000_000), (9, 11_000_000)]
    assert list(lags_ms(captured, seen)) == [4.0, 3.0, 3.0, 1.0]


def test_a_record_that_was_never_applied_is_an_error_and_not_left_out():
    with pytest.raises(IndexError):
        list(lags_ms([(5, 0)], [(4, 1)]))


def test_fio_is_told_a_time_or_an_amount_but_not_both():
    timed = Load("t", 4096, 32, seconds=1.5, writes_per_s=5000).arguments("nbd://x", 1 << 20)
    assert {"--runtime=1500ms", "--time_based", "--rate_iops=5000", "--iodepth=32", "--bs=4096", "--norandommap"} <= set(timed)
    amount = Load("a", 65536, 8, total_bytes=1 << 20, compressible_percent=50).arguments("nbd://x", 1 << 20)
    assert "--io_size=1048576" in amount
    assert "--time_based" not in amount
    assert "--buffer_compress_percentage=50" in amount
    for wrong in ({}, {"seconds": 1.0, "total_bytes": 1}):
        with pytest.raises(ValueError, match="not a load"):
            Load("x", 4096, 1, **wrong)


def test_fios_json_is_read_behind_whatever_it_prints_first():
    percentiles = {"50.000000": 64_000, "99.000000": 250_000}
    write = {"total_ios": 500, "io_bytes": 2_048_000, "runtime": 2000, "clat_ns": {"percentile": percentiles}}
    measured = parse("fio: a warning\n" + json.dumps({"jobs": [{"write": write}]}))
    assert (measured.writes_per_s, measured.mb_per_s, measured.p50_us, measured.p99_us) == (250.0, 1.024, 64.0, 250.0)
