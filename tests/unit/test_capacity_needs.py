"""What a workload needs, by sums worked out by hand; and that the constants behind them are those of the code that they describe."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from agent import ring as layout
from agent.claim import headers
from agent.modes import Mode
from agent.pool import pool_chunks
from agent.publisher import LINGER_S
from agent.session import CaptureDevice
from history.builder import RECORD_COST_BYTES
from history.retention_table import parse_table
from hostoffload.capacity import needs
from hostoffload.capacity.plan import make_plan, windows_s
from hostoffload.capacity.workload import Interval, Overwrite, Workload
from stream.codec import encode_journal, encode_writes
from stream.config import AgentConfig, Config, HistoryConfig, KafkaConfig
from stream.journal import JournalBatch, JournalState
from stream.position import Position
from stream.record import BATCH_RECORDS_MAX, Batch
from tests.agent_parts import Parts
from tests.nbd_feed import Feed

DAY_S = 86_400
GIB = 1 << 30
MIB = 1 << 20
# 100 writes of 4096 bytes a second for ten minutes. They are 409,600 / (7/8 of 256 KiB) = 12.5/7 records a second more than writes.
STEADY = Workload("test", [Interval(1.0, 409_600, 100)] * 600, (Overwrite(300, 2, 245_760_000, 81_920_000),), ratio=2.0, fold_ratio=4.0)
OVERHEAD = (100 + 12.5 / 7) * (20 + 576)  # each record is a message, at most: 60,664.29 bytes a second


def test_kafka_by_hand() -> None:
    config = Config(kafka=KafkaConfig(replication_factor=3))
    told = needs.kafka(STEADY, config)
    assert pytest.approx(60_664.2857) == OVERHEAD
    assert told.writes_bytes_per_day == pytest.approx((409_600 + OVERHEAD) * DAY_S)
    assert told.journal_bytes_per_day == pytest.approx((204_800 + OVERHEAD) * DAY_S)  # compressed twice
    assert told.kept_s == DAY_S
    assert told.writes_bytes == pytest.approx((409_600 + OVERHEAD) * DAY_S + GIB)
    assert told.disk_bytes == pytest.approx(3 * ((614_400 + 2 * OVERHEAD) * DAY_S + 2 * GIB))


def test_kafka_keeps_by_age_or_by_size_whichever_ends_sooner() -> None:
    by_size = needs.kafka(STEADY, Config(kafka=KafkaConfig(retention_bytes=10**9)))
    assert by_size.writes_bytes == by_size.journal_bytes == 10**9 + GIB
    for_ever = needs.kafka(STEADY, Config(kafka=KafkaConfig(retention_ms=-1)))
    assert (for_ever.kept_s, for_ever.writes_bytes, for_ever.disk_bytes) == (None, None, None)
    both = needs.kafka(STEADY, Config(kafka=KafkaConfig(retention_ms=-1, retention_bytes=10**9)))
    assert both.disk_bytes == 2 * (10**9 + GIB)


def test_at_a_high_rate_writes_share_messages() -> None:
    busy = Workload("test", [Interval(1.0, 26_214_400, 6400)] * 10)
    records = 6400 + 26_214_400 / 229_376
    messages = 1000 + 100  # a thousand rounds, and 25 MiB in full ones of 256 KiB
    assert needs.kafka(busy, Config()).writes_bytes_per_day == pytest.approx((26_214_400 + records * 20 + messages * 576) * DAY_S)


def test_the_store_by_hand() -> None:
    table = parse_table("any write 24 h, 5 min for 7 d, 1 h for 30 d")
    told = needs.store(STEADY, Config(), table)
    as_written = 204_800 + OVERHEAD + 16 * (100 + 12.5 / 7)
    assert told.as_written_bytes_per_day == pytest.approx(as_written * DAY_S)
    written, minutes, hours, snapshot = told.levels
    assert written.bytes == pytest.approx(as_written * (DAY_S + 300))  # gone with the fold that holds it
    # 81,920,000 unique bytes in two windows: 10,000 blocks each, a quarter of their bytes, 16 bytes of index a block.
    assert minutes.each_bytes == pytest.approx(10_240_000 + 160_000) and not minutes.at_most
    assert minutes.bytes == pytest.approx(10_400_000 * (7 * DAY_S + 3600) / 300)
    # No hour was seen: at most twelve windows of five minutes.
    assert hours.each_bytes == pytest.approx(12 * 10_400_000) and hours.at_most
    assert hours.bytes == pytest.approx(12 * 10_400_000 * (30 * DAY_S + 8 * 3600) / 3600)
    assert snapshot.bytes is None and told.full_bytes is None  # nobody told the volume's size
    assert told.growth_bytes_per_day == pytest.approx(as_written * DAY_S + 10_400_000 * 288 + 12 * 10_400_000 * 24)
    assert told.scratch_bytes == 301 * 409_600


def test_nothing_is_larger_than_the_volume() -> None:
    table = parse_table("any write 24 h, 5 min for 7 d, 1 h for 30 d")
    told = needs.store(replace(STEADY, size_bytes=40_960_000), Config(), table)
    _, minutes, hours, snapshot = told.levels
    assert minutes.each_bytes == hours.each_bytes == pytest.approx(10_400_000)
    assert snapshot.bytes == pytest.approx(2 * 10_400_000)
    assert told.full_bytes == pytest.approx(sum(one.bytes or 0 for one in told.levels))


def test_without_extents_and_a_ratio_all_is_a_bound() -> None:
    blind = Workload("test", [Interval(1.0, 409_600, 100)] * 600)
    told = needs.store(blind, Config(), parse_table("any write 1 h, 10 min for 1 d"))
    assert told.at_most and told.levels[1].each_bytes == pytest.approx(409_600 * 600 * (1 + 16 / 4096))
    assert told.levels[1].why == "overwrites are not known: as if there were none"


def test_a_span_that_was_not_counted_is_bounded_by_shorter_windows_alone() -> None:
    seen = replace(STEADY, overwrites=(Overwrite(60, 10, 10**8, 10 * 40_960), Overwrite(600, 1, 10**8, 10**8)), fold_ratio=1.0)
    told = needs.store(seen, Config(), parse_table("any write 1 h, 5 min for 1 d"))
    assert told.levels[1].each_bytes == pytest.approx(5 * (40_960 + 160)) and told.levels[1].at_most


def test_a_level_that_is_kept_for_ever_has_no_sum() -> None:
    told = needs.store(replace(STEADY, size_bytes=GIB), Config(), parse_table("any write 1 h, 5 min for ever"))
    assert told.levels[1].bytes is None and told.full_bytes is None and told.growth_bytes_per_day is not None


def test_the_buffer_by_hand() -> None:
    told = needs.buffer(STEADY, Config(), 60.0)
    assert (told.payload_bytes, told.writes) == (61 * 409_600, 6100)
    # 24,985,600 / (7/8) + 6100 * 28 + (6100 + 24,985,600/229,376) * 64 = 29,123,371 bytes: 112 chunks, and 10 beside them.
    assert needs.buffer_bytes(61 * 409_600, 6100) == 35 * MIB  # its pool has 122 chunks, that of 34 MiB has 119
    assert told.needed_bytes == 96 * MIB  # the least that a buffer may be
    # 256 MiB: 960 chunks less ten, 249,036,800 bytes, at 477,428.57 a second last 521 s; one second more than the outage is counted.
    assert told.bridged_s == 520 and not told.bridged_all
    assert needs.buffer(STEADY, Config(), 601.0).needed_bytes is None


@pytest.mark.parametrize("length", [512, 4096, 20_000, 32_700, 40_000, 65_536, 300_000])
def test_what_is_planned_for_does_fit_the_agent_s_own_buffer(tmp_path: Path, length: int) -> None:
    size = 12 * MIB
    writes = 1
    while needs.buffer_bytes((writes + 1) * length, writes + 1) <= size and writes < 2500:
        writes += 1
    parts = Parts(tmp_path, chunks=pool_chunks(size), overflow="bitmap")
    feed = Feed(CaptureDevice(parts.volume, "local").open_session())
    for number in range(writes):  # nobody delivers: Kafka is away
        feed.write(number * 4096 % MIB, bytes([number % 251]) * length)
    assert parts.volume.mode is Mode.DATA, f"{writes} writes of {length} bytes were planned for"


def test_the_constants_are_those_of_the_agent_and_the_history() -> None:
    assert needs.ENTRY_BYTES == layout.ENTRY_BYTES
    assert needs.INDEX_BYTES == RECORD_COST_BYTES
    assert 1 / LINGER_S == needs.ROUNDS_PER_S


@pytest.mark.parametrize("records", [1, 2, 64, 2048])
def test_a_message_is_no_longer_than_it_is_taken_for(records: int) -> None:
    maker = random.Random(records)
    volume, length = "v" * 63, 128
    sequence = (1 << 40) + maker.randrange(1 << 30)
    ages = sorted(maker.randrange(60 * 10**9) for _ in range(records))
    offsets = [maker.randrange(1 << 45) for _ in range(records)]
    batch = Batch(volume, 9999, sequence, 1_900_000_000 * 10**9, b"\1" * records, bytes(records), offsets, [length] * records, ages)
    assert records <= BATCH_RECORDS_MAX
    batch = replace(batch, payload=bytes(records * length))
    told = headers(volume, 9999, sequence, sequence + records, b"i" * 8)
    framed = sum(len(name) + len(value) + 4 for name, value in told) + len(volume) + 61 + 24  # key; batch and record header of Kafka
    state = JournalState("t" * 22, 1 << 40, batch.last, b"i" * 8, b"d" * 16)
    entry = JournalBatch(batch, b"i" * 8, "none", records * length, 7, Position(9999, sequence - 1), b"d" * 16, state, batch.payload)
    bound = records * (length + needs.RECORD_BYTES) + needs.MESSAGE_BYTES
    assert len(encode_writes(batch, b"i" * 8)) + framed <= bound
    assert len(encode_journal(entry)) + framed <= bound


def test_a_plan_says_what_it_does_not_know() -> None:
    blind = make_plan(Workload("test", [Interval(5.0, 0, 0)] * 3, None, "counters tell no extents"), Config())
    told = " ".join(blind.unknown)
    for part in ("busiest second", "compresses", "counters tell no extents", "size", "whole day"):
        assert part in told
    assert blind.suffices
    full = make_plan(
        Workload("test", [Interval(1.0, 1, 1)] * 7200, (Overwrite(60, 120, 7200, 7200),), "", 1.5, 2.0, GIB),
        Config(history=HistoryConfig(retention="any write 1 h, 1 min for 1 d")),
    )
    assert full.unknown == () and not full.store.levels[1].at_most


def test_overwrites_are_counted_in_the_spans_of_the_retention_table() -> None:
    assert windows_s(Config(history=HistoryConfig(retention="any write 1 h, 7 min for 1 d"))) == (10, 60, 300, 420, 3600, 86_400)


BUSY = Workload("test", [Interval(1.0, 20_000_000, 5000)] * 120, (), "", 2.0, 2.0, 100 * GIB)


def verdict(config: Config, key: str, outage_s: float | None = 60.0, workload: Workload = BUSY) -> tuple[bool | None, str, int | None]:
    (found,) = [one for one in make_plan(workload, config, outage_s).config if one.key == key]
    return found.suffices, found.sentence, found.wanted


def test_a_buffer_that_is_too_small_is_told_the_size_that_would_do() -> None:
    suffices, sentence, wanted = verdict(Config(), "agent.buffer_bytes_max")
    assert suffices is False and wanted is not None
    assert "last at least 9 s" in sentence and f"needs {wanted >> 20} MiB" in sentence and sentence.endswith(f": {wanted}.")
    enough = Config(agent=AgentConfig(buffer_bytes_max=wanted))
    assert verdict(enough, "agent.buffer_bytes_max")[0] is True
    assert make_plan(BUSY, enough, 60.0).suffices and not make_plan(BUSY, Config(), 60.0).suffices
    assert verdict(Config(), "agent.buffer_bytes_max", None)[0] is None
    assert verdict(Config(), "agent.buffer_bytes_max", 500.0)[0] is None


def test_kafka_must_keep_the_outage_and_what_it_promises() -> None:
    assert verdict(Config(kafka=KafkaConfig(retention_ms=30_000)), "kafka.retention_ms")[::2] == (False, 60_000)
    assert verdict(Config(kafka=KafkaConfig(retention_ms=-1)), "kafka.retention_ms")[0] is True
    suffices, sentence, wanted = verdict(Config(kafka=KafkaConfig(retention_bytes=10**10)), "kafka.retention_bytes")
    assert suffices is False and wanted is not None and "less than 1 d" in sentence
    assert verdict(Config(kafka=KafkaConfig(retention_bytes=wanted)), "kafka.retention_bytes")[0] is True
    assert verdict(Config(), "kafka.retention_bytes")[0] is True


def test_a_limit_of_the_history_that_only_a_bound_exceeds_may_do() -> None:
    suffices, sentence, wanted = verdict(Config(history=HistoryConfig(bytes_max=10**12)), "history.bytes_max")
    assert suffices is None and wanted is not None and "may not hold" in sentence
    assert verdict(Config(history=HistoryConfig(bytes_max=wanted)), "history.bytes_max")[0] is True


def test_what_goes_over_the_whole_volume_is_told_its_time() -> None:
    config = Config(agent=AgentConfig(sync_bytes_per_s_max=100 * MIB, verify_bytes_per_s=10 * MIB))
    assert "takes 17 min" in verdict(config, "agent.sync_bytes_per_s_max")[1]
    assert "takes 171 min" in verdict(config, "agent.verify_bytes_per_s")[1]
