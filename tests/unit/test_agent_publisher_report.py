"""What the publisher reports stays right when nothing is recorded, when a clock jumps, and when a target is gone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from agent import publisher_report as report_module
from agent import ring as layout
from agent.lag import SIGHTS_MAX, Lag
from agent.modes import Mode
from agent.pool import CHUNK_BYTES, pool_chunks
from agent.publisher_report import LostOrder, Now, PublisherReport, Rate, seconds_until_full
from stream.config import Config
from stream.control import ProcessReport, VolumeReport
from stream.position import ZERO, Position
from tests.publication_parts import Bench, FakeKafka, install

SECOND_NS = 10**9


class FakeDeclarations:
    writer = None

    def __init__(self) -> None:
        self.declared: tuple[str, ...] | None = None

    def targets(self, _: str) -> tuple[str, ...] | None:
        return self.declared


class Clocks:
    """Both clocks of the host; only one of them can jump."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall_ns, self.monotonic_ns = time.time_ns(), time.monotonic_ns()
        patch.setattr(report_module.time, "time_ns", lambda: self.wall_ns)
        patch.setattr(report_module.time, "monotonic_ns", lambda: self.monotonic_ns)

    def jump(self, words: memoryview, seconds: int) -> None:
        """Set the wall clock; the agent's follows forward at once, backward hardly (`agent.clock`)."""
        self.wall_ns += seconds * SECOND_NS
        words[layout.W_CLOCK_OFFSET_NS] += max(0, seconds) * SECOND_NS

    def pass_s(self, seconds: float) -> None:
        self.wall_ns += int(seconds * SECOND_NS)
        self.monotonic_ns += int(seconds * SECOND_NS)


class Reported:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        kafka = FakeKafka()
        install(kafka, patch)
        self.bench = Bench(folder, kafka)
        self.words = self.bench.words
        self.words[layout.W_MODE] = Mode.DATA
        self.clocks = Clocks(patch)
        self.declarations = FakeDeclarations()
        patch.setattr(PublisherReport, "_follow_others", lambda _: None)
        self.folder = folder
        self.report = PublisherReport(Config(), folder, "me", self.declarations, self.bench.in_flight)

    def facts(self) -> dict[str, Any]:
        self.report.tell({"v": self.bench.publication})
        return json.loads((self.folder / "status" / "publisher-me.json").read_text())["volumes"]["v"]

    def cx(self, position: Position, persisted: Position | None = None, worker: str = "w") -> None:
        facts = {} if persisted is None else {"persisted": str(persisted)}
        self.report._hear(ProcessReport("cx", worker, "host", 1, 0, (VolumeReport("v", position, facts),)))

    def publish(self, records: int) -> None:
        """Have so many records captured, each a second after the other, and durable in Kafka."""
        for _ in range(records):
            self.clocks.pass_s(1)
            self.facts()
            self.bench.flushes(1)
            self.facts()
            self.bench.publication.publish()
        self.bench.producer.deliver_all()

    def target(self, name: str, position: Position, delay_s: str = "0") -> None:
        told = VolumeReport("v", position, {"delay_s": delay_s})
        self.report._hear(ProcessReport("target", name, "host", 1, 0, (told,)))


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reported:
    return Reported(tmp_path, monkeypatch)


class TestOutage:
    def test_is_what_is_free_at_the_present_rate(self, reported: Reported) -> None:
        reported.facts()
        reported.clocks.pass_s(1)
        reported.words[layout.W_CAPTURED_BYTES] += 10 << 20
        reported.words[layout.W_ACKED_BYTES] += 10 << 20
        size = pool_chunks(Config().agent.buffer_bytes_max) * CHUNK_BYTES
        assert reported.facts()["outage_s"] == round(size / (10 << 20), 1)

    def test_shrinks_with_what_waits(self, reported: Reported) -> None:
        reported.facts()
        reported.clocks.pass_s(1)
        reported.bench.flushes(1)
        reported.words[layout.W_CAPTURED_BYTES] += 100 << 20
        size = pool_chunks(Config().agent.buffer_bytes_max) * CHUNK_BYTES
        assert reported.facts()["outage_s"] == round((size - (100 << 20) - 64) / ((100 << 20) + 64), 1)

    def test_has_no_end_without_writes(self, reported: Reported) -> None:
        reported.facts()
        reported.clocks.pass_s(1)
        assert reported.facts()["outage_s"] is None

    def test_counts_the_entries_of_small_writes_too(self) -> None:
        assert seconds_until_full(640_000, 64 * 1000) == 10.0

    def test_is_over_in_bitmap(self, reported: Reported) -> None:
        reported.words[layout.W_MODE] = Mode.BITMAP
        assert reported.facts()["outage_s"] == 0.0

    def test_a_ring_made_anew_has_no_rate_below_zero(self, reported: Reported) -> None:
        rate, ring, now = Rate(), reported.bench.parts.ring, Now(0, SECOND_NS)
        reported.words[layout.W_CAPTURED_BYTES] = 1 << 30
        rate.per_s(ring, now)
        reported.words[layout.W_CAPTURED_BYTES] = 0
        assert rate.per_s(ring, Now(0, 2 * SECOND_NS)) == 0.0
        reported.words[layout.W_CAPTURED_BYTES] = 1000
        assert rate.per_s(ring, Now(0, 3 * SECOND_NS)) == 1000.0


class TestBitmap:
    def test_a_pool_made_anew_ends_no_report(self, reported: Reported) -> None:
        """Until the publisher is attached to it, the old one lacks what is recorded."""
        parts = reported.bench.parts
        parts.write(0, b"x" * 1000)
        reported.words[layout.W_MODE] = Mode.BITMAP
        kept = bytes(parts.pool.view)
        parts.pool.view[:] = bytes(len(kept))
        assert reported.facts()["backlog_bytes"] == 1000
        parts.pool.view[:] = kept
        assert reported.facts()["backlog_bytes"] == 1000

    def test_what_is_not_recorded_is_no_backlog(self, reported: Reported) -> None:
        """Capture counts what the application wrote; in BITMAP none of it waits for Kafka."""
        reported.bench.parts.write(0, b"x" * 1000)
        reported.bench.parts.write(0, b"y" * 500)
        assert reported.facts()["backlog_bytes"] == 1500
        reported.words[layout.W_MODE] = Mode.BITMAP
        reported.words[layout.W_CAPTURED_BYTES] += 1 << 30
        assert reported.facts()["backlog_bytes"] == 1500
        reported.words[layout.W_CAPTURED_BYTES] += 1 << 30
        reported.bench.publication.publish()
        reported.bench.publication._count(2, 2, 1000)
        assert reported.facts()["backlog_bytes"] == 500
        reported.words[layout.W_MODE] = Mode.RESYNC
        assert reported.facts()["backlog_bytes"] == 500
        reported.bench.parts.write(0, b"z" * 70)
        assert reported.facts()["backlog_bytes"] == 570

    def test_a_publisher_that_starts_in_bitmap_sums_up_what_waits(self, reported: Reported) -> None:
        reported.bench.parts.write(0, b"x" * 1000)
        reported.words[layout.W_MODE] = Mode.BITMAP
        reported.words[layout.W_CAPTURED_BYTES] += 1 << 30
        reported.bench.renew()
        assert reported.facts()["backlog_bytes"] == 1000

    def test_its_writes_are_no_rate(self, reported: Reported) -> None:
        rate, ring = Rate(), reported.bench.parts.ring
        reported.words[layout.W_MODE] = Mode.BITMAP
        for second in range(1, 5):
            reported.words[layout.W_CAPTURED_BYTES] += 1 << 30
            assert rate.per_s(ring, Now(0, second * SECOND_NS)) == 0.0
        reported.words[layout.W_MODE] = Mode.RESYNC
        reported.words[layout.W_CAPTURED_BYTES] += 1000
        assert rate.per_s(ring, Now(0, 5 * SECOND_NS)) == 1000.0

    def test_the_lag_is_as_old_as_the_loss_of_order(self, reported: Reported) -> None:
        """Nothing waits in the ring, and yet the newest writes are nowhere but on the source."""
        reported.words[layout.W_MODE] = Mode.BITMAP
        reported.words[layout.W_MODE_SINCE_NS] = reported.clocks.wall_ns - 2 * SECOND_NS
        facts = reported.facts()
        assert facts["rpo_stream_ms"] == 2000.0
        assert facts["order_lost_ns"] == reported.words[layout.W_MODE_SINCE_NS]
        reported.clocks.pass_s(3)
        reported.words[layout.W_MODE] = Mode.RESYNC
        reported.words[layout.W_MODE_SINCE_NS] = reported.clocks.wall_ns
        assert reported.facts()["rpo_stream_ms"] == 5000.0
        reported.words[layout.W_MODE] = Mode.DATA
        facts = reported.facts()
        assert (facts["rpo_stream_ms"], facts["order_lost_ns"]) == (0, None)

    def test_a_resync_that_somebody_asked_for_is_no_lag(self, reported: Reported) -> None:
        reported.words[layout.W_MODE] = Mode.RESYNC
        assert reported.facts()["rpo_stream_ms"] == 0

    def test_a_clock_that_jumps_does_not_change_it(self, reported: Reported) -> None:
        lost, ring = LostOrder(), reported.bench.parts.ring
        reported.words[layout.W_MODE] = Mode.BITMAP
        reported.words[layout.W_MODE_SINCE_NS] = 7 * SECOND_NS
        assert lost.age_ns(ring, Now(8 * SECOND_NS, 100 * SECOND_NS)) == SECOND_NS
        assert lost.age_ns(ring, Now(3600 * SECOND_NS, 101 * SECOND_NS)) == 2 * SECOND_NS
        assert lost.age_ns(ring, Now(0, 102 * SECOND_NS)) == 3 * SECOND_NS


class TestClockJumps:
    @pytest.mark.parametrize("jump_s", [-86_400, -3, 3, 86_400])
    def test_a_lag_is_neither_negative_nor_a_day(self, reported: Reported, jump_s: int) -> None:
        reported.facts()
        reported.clocks.pass_s(0.1)
        reported.bench.flushes(1)
        reported.clocks.pass_s(0.1)
        reported.facts()
        reported.clocks.jump(reported.words, jump_s)
        reported.clocks.pass_s(4.8)
        assert 4800 <= reported.facts()["rpo_stream_ms"] <= 5000

    def test_what_a_target_lacks(self, reported: Reported) -> None:
        reported.facts()
        reported.clocks.pass_s(0.1)
        reported.bench.flushes(2)
        reported.bench.publication.publish()
        reported.bench.producer.deliver_all()
        reported.facts()
        reported.target("t", Position(1, 2))
        reported.clocks.jump(reported.words, -3600)
        reported.clocks.pass_s(2)
        facts = reported.facts()
        age_ms = (reported.clocks.wall_ns - facts["oldest_unapplied_capture_ns"]) / 1e6
        assert 2000 <= age_ms <= 2100
        assert facts["oldest_unapplied_position"] == str(Position(1, 3))

    def test_ages_are_those_of_the_capture_times_while_the_clock_is_right(self, reported: Reported) -> None:
        lag = Lag(reported.bench.parts.ring, reported.bench.parts.pool.view)
        lag.look(1000)
        reported.bench.flushes(1)
        lag.look(2000)
        assert lag.age_ns(2, 500_000, 501_300, 3000) == 1300
        assert lag.age_ns(2, 500_000, 500_100, 3000) == 1000
        assert lag.age_ns(2, 500_000, 900_000, 3000) == 2000
        assert lag.age_ns(1, 500_000, 900_000, 3000) == 400_000, "nothing was seen before it"

    def test_what_is_long_ago_is_known_less_well_and_never_wrongly(self, reported: Reported) -> None:
        lag = Lag(reported.bench.parts.ring, reported.bench.parts.pool.view)
        for number in range(3 * SIGHTS_MAX):
            reported.words[layout.W_HEAD] = 1 + number
            lag.look(number * 1000)
        assert len(lag._seen_heads) <= SIGHTS_MAX
        for sequence in (10, 5000, 3 * SIGHTS_MAX):
            true_ns = (3 * SIGHTS_MAX - sequence) * 1000
            low, high = (lag.age_ns(sequence, *wall, 3 * SIGHTS_MAX * 1000) for wall in ((1 << 60, 0), (0, 1 << 60)))
            assert low <= true_ns + 1000
            assert high >= true_ns


class TestTargets:
    def test_the_least_of_those_without_a_delay(self, reported: Reported) -> None:
        reported.target("one", Position(1, 9))
        reported.target("two", Position(1, 4))
        reported.target("late", Position(1, 1), delay_s="60")
        assert reported.facts()["applied"] == str(Position(1, 4))

    def test_one_that_is_no_longer_declared_does_not_count(self, reported: Reported) -> None:
        reported.target("one", Position(1, 9))
        reported.target("gone", Position(1, 2))
        reported.declarations.declared = ("one",)
        assert reported.facts()["applied"] == str(Position(1, 9))

    def test_what_they_told_is_passed_on_for_who_does_not_see_their_reports(self, reported: Reported) -> None:
        reported.target("one", Position(1, 9))
        reported.target("late", Position(1, 1), delay_s="60.0")
        ended = [{"round": "b1", "position": str(Position(1, 9)), "complete": True, "mismatches": 0, "offsets": []}]
        facts = {"delay_s": "0.0", "open_gaps": "1", "error": "planted", "state": "held", "verify_ended": json.dumps(ended)}
        reported.report._hear(ProcessReport("target", "one", "host", 7, 5, (VolumeReport("v", Position(1, 9), facts),)))
        reported.clocks.pass_s(3)
        told = {"delay_s": 0.0, "open_gaps": 1, "error": "planted", "verify_ended": ended, "pid": 7, "heard_age_s": 3.0}
        assert json.loads(reported.facts()["targets"]) == {
            "one": {"position": str(Position(1, 9)), **told},
            "late": {"position": str(Position(1, 1)), "delay_s": 60.0, "pid": 1, "heard_age_s": None},
        }

    def test_a_report_that_may_have_stood_in_the_topic_for_long_tells_no_time(self, reported: Reported) -> None:
        for _ in range(2):
            reported.target("one", Position(1, 9))
        assert json.loads(reported.facts()["targets"])["one"]["heard_age_s"] is None

    def test_facts_that_can_not_be_read_are_not_known(self, reported: Reported) -> None:
        told = VolumeReport("v", Position(1, 9), {"delay_s": "long", "open_gaps": "1", "verify_ended": "[{'round': 1}]"})
        reported.report._hear(ProcessReport("target", "one", "host", 1, 0, (told,)))
        assert json.loads(reported.facts()["targets"])["one"] == {
            "position": str(Position(1, 9)), "open_gaps": 1, "pid": 1, "heard_age_s": None,
        }  # fmt: skip

    def test_none_yet(self, reported: Reported) -> None:
        assert reported.facts()["applied"] is None


class TestStages:
    """Lags of journal, store and replica: three flushes a second apart (positions 2 to 4), the last one just now."""

    @pytest.fixture
    def lagging(self, reported: Reported) -> Reported:
        reported.publish(3)
        return reported

    def rpo_s(self, reported: Reported) -> list[int | None]:
        facts = reported.facts()
        return [None if (ms := facts[f"rpo_{stage}_ms"]) is None else round(ms / 1e3) for stage in ("journal", "store", "replica")]

    def test_nobody_has_told_anything(self, lagging: Reported) -> None:
        assert self.rpo_s(lagging) == [None, None, None]

    def test_each_stage_lacks_something_else(self, lagging: Reported) -> None:
        lagging.cx(Position(1, 4), Position(1, 1))
        lagging.target("t", Position(1, 2))
        assert self.rpo_s(lagging) == [0, 2, 1]
        lagging.clocks.pass_s(5)
        assert self.rpo_s(lagging) == [0, 7, 6]
        assert lagging.facts()["rpo_stream_ms"] == 0

    def test_a_replica_that_is_ahead_of_the_store_hides_no_lag_of_it(self, lagging: Reported) -> None:
        lagging.target("t", Position(1, 4))
        lagging.cx(Position(1, 4), Position(1, 2))
        for _ in range(3):
            assert self.rpo_s(lagging) == [0, 1, 0]

    def test_a_worker_that_takes_over_makes_nothing_unknown(self, lagging: Reported) -> None:
        lagging.cx(Position(1, 3), Position(1, 3))
        lagging.cx(ZERO, None, worker="other")
        assert self.rpo_s(lagging)[:2] == [0, 0]
        lagging.cx(Position(1, 2), Position(1, 1), worker="other")
        assert self.rpo_s(lagging)[:2] == [1, 2], "the one that spoke last knows: the store was lost"

    def test_what_was_told_of_an_earlier_volume_of_the_name_is_unknown(self, lagging: Reported) -> None:
        lagging.cx(Position(1, 900), Position(7, 2))
        assert self.rpo_s(lagging)[:2] == [None, None]

    def test_while_order_is_lost_no_stage_has_less_lag_than_that(self, lagging: Reported) -> None:
        lagging.cx(Position(1, 4), Position(1, 4))
        lagging.target("t", Position(1, 4))
        lagging.words[layout.W_MODE] = Mode.BITMAP
        lagging.words[layout.W_MODE_SINCE_NS] = lagging.clocks.wall_ns - 9 * SECOND_NS
        assert self.rpo_s(lagging) == [9, 9, 9]
