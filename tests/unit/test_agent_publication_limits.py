"""Publishing again, its limits, its numbers, and claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import claim as claim_module
from agent import ring as layout
from agent.claim import headers
from stream.codec import decode_writes, encode_writes
from stream.config import KafkaConfig
from stream.control import EpochClaim
from stream.errors import FencedError, RetryError
from stream.position import ZERO, Position
from stream.record import Batch, Kind
from tests.agent_parts import CHUNK, MIB
from tests.publication_parts import INCARNATION, OTHER, Bench, FakeKafka, FakeReader, foreign, install


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    install(kafka, monkeypatch)
    return kafka


@pytest.fixture
def bench(tmp_path: Path, kafka: FakeKafka) -> Bench:
    return Bench(tmp_path, kafka)


class TestTelling:
    def test_an_epoch_that_control_does_not_know_is_told(self, bench: Bench) -> None:
        bench.words[layout.W_EPOCH_FIRST] = 1
        bench.publication._tell_claim()
        assert [(claim.epoch, claim.first_sequence, claim.incarnation) for claim in bench.claims] == [(1, 1, INCARNATION)]
        bench.known = 1
        bench.publication._tell_claim()
        assert len(bench.claims) == 1

    def test_nothing_waits_for_it(self, bench: Bench) -> None:
        def unknown(_: str) -> int:
            raise RetryError("planted")

        bench.publication._newest_claim = unknown
        bench.publication._tell_claim()
        assert bench.claims == []


class TestRewind:
    def test_publishes_again_from_there(self, bench: Bench) -> None:
        bench.flushes(3)
        bench.publication.publish()
        assert bench.publication.rewind(3)
        bench.publication.publish()
        assert bench.producer.queue[-1][2][:2] == (3, 4)
        bench.producer.deliver_all()
        assert bench.acked == 4

    @pytest.mark.parametrize("sequence", [0, 1, 2, 5, 99])
    def test_only_what_the_ring_has(self, bench: Bench, sequence: int) -> None:
        bench.flushes(3)
        bench.publication.publish()
        bench.publication._count(2, 2)
        assert bench.publication.rewind(sequence) is False

    def test_never_reads_what_was_acknowledged_meanwhile(self, bench: Bench) -> None:
        """Rewound, then acknowledged: that memory is somebody else's by now."""
        bench.parts.write(0, b"x" * 1000)
        bench.parts.write(0, b"y" * 1000)
        bench.publication.publish()
        assert bench.publication.rewind(2)
        bench.producer.deliver_all()
        bench.parts.log.reclaim()
        for number in bench.parts.allocator.take(bench.parts.allocator.free_count - 2):
            bench.parts.pool.chunk(number)[:] = b"\x55" * CHUNK
        bench.flushes(1)
        bench.publication.publish()
        assert [tag[:2] for _, _, tag in bench.producer.queue] == [(4, 4)]


class TestLimits:
    def test_no_more_is_in_flight_than_allowed(self, tmp_path: Path, kafka: FakeKafka) -> None:
        bench = Bench(tmp_path, kafka, limit_bytes=MIB)
        for number in range(12):
            bench.parts.write(number * CHUNK, b"x" * CHUNK)
        bench.publication.publish()
        assert MIB <= bench.in_flight.bytes < MIB + CHUNK + 4096
        while bench.producer.queue:
            bench.producer.deliver()
            bench.publication.publish()
        assert bench.acked == 13
        assert bench.in_flight.bytes == 0

    def test_a_full_queue_is_tried_again(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.producer.full = True
        assert bench.publication.publish() == 0
        bench.producer.full = False
        assert bench.publication.publish() > 0

    def test_a_thrown_away_producer_leaves_no_bytes_behind(self, bench: Bench) -> None:
        bench.parts.write(0, b"x" * CHUNK)
        bench.publication.publish()
        assert bench.in_flight.bytes > 0
        bench.open()
        assert bench.in_flight.bytes == 0
        assert bench.kafka.producers[0].closed

    def test_a_ring_that_can_not_be_read_stops_this_volume_alone(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.words[layout.W_HEAD] += 1
        assert bench.publication.publish() == 0
        assert "not the expected one" in bench.publication.error


class TestNumbers:
    def test_the_oldest_not_applied_is_never_younger_than_it_is(self, bench: Bench) -> None:
        for _ in range(3):
            bench.flushes(1)
            bench.publication.publish()
        times = [entry[1] for entry in bench.parts.pending()]
        bench.producer.deliver_all()
        assert bench.publication.lag.oldest_after(Position(1, 1)) == (Position(1, 2), times[0])
        assert bench.publication.lag.oldest_after(Position(1, 3)) == (Position(1, 4), times[2])
        assert bench.publication.lag.oldest_after(Position(1, 4)) is None
        assert bench.publication.lag.oldest_after(Position(2, 0)) is None

    def test_a_restart_does_not_make_the_lag_vanish(self, bench: Bench) -> None:
        bench.flushes(3)
        bench.publication.publish()
        bench.producer.deliver_all()
        newest = bench.words[layout.W_CAPTURE_NS]
        publication = bench.renew()
        found = publication.lag.oldest_after(Position(1, 2))
        assert found is not None, "the target lacks two records, and no lag is told"
        assert found[1] <= newest
        assert publication.lag.oldest_after(ZERO) is not None
        assert publication.lag.oldest_after(Position(1, 4)) is None

    def test_the_backlog_is_put_right_when_nothing_is_left(self, bench: Bench) -> None:
        bench.words[layout.W_CAPTURED_BYTES] += 12345  # a kill between the count and the record
        assert bench.publication.backlog_bytes() == 0
        bench.parts.write(0, b"x" * 1000)
        assert bench.publication.backlog_bytes() == 1000


class TestClaim:
    def claim(
        self, kafka: FakeKafka, *, stop: Position | None = None, topic_id: str = "", known: int = 0, claimant: str = "me"
    ) -> claim_module.Claim:
        self.announced: list[tuple[EpochClaim, int]] = []

        def announce(claim: EpochClaim) -> None:
            self.announced.append((claim, len(kafka.messages)))

        return claim_module.claim(KafkaConfig(), "v", "me", 1 << 20, stop, topic_id, known, claimant, announce)

    def test_an_empty_log_begins_with_epoch_one(self, kafka: FakeKafka) -> None:
        won = self.claim(kafka)
        assert (won.position, won.claimed_as, won.clean) == (Position(1, 1), "first copy", False)
        batch, incarnation = decode_writes(kafka.messages[0].value)
        assert incarnation == won.incarnation
        assert batch.marks[0]["first"] == "true"

    def test_is_announced_before_it_is_in_the_log(self, kafka: FakeKafka) -> None:
        """Else its number is given again when the log is deleted before anybody else knows of it, and order drops what follows."""
        foreign(kafka, 3, 41, OTHER, start=True)
        won = self.claim(kafka)
        ((announced, messages),) = self.announced
        assert (announced.epoch, announced.incarnation, announced.agent, announced.is_won) == (4, won.incarnation, "me", False)
        assert messages == 1 and len(kafka.messages) == 2

    def test_is_not_made_if_it_can_t_be_announced(self, kafka: FakeKafka) -> None:
        def announce(_: EpochClaim) -> None:
            raise RetryError("ho.control can't be written")

        with pytest.raises(RetryError):
            claim_module.claim(KafkaConfig(), "v", "me", 1 << 20, None, "", 0, "", announce)
        assert kafka.messages == []

    def test_a_first_claim_that_was_announced_and_never_made_is_a_first_copy_still(self, kafka: FakeKafka) -> None:
        won = self.claim(kafka, known=1, claimant="")
        assert (won.position, won.claimed_as) == (Position(2, 1), "first copy")

    def test_after_a_claim_that_was_announced_and_never_made_the_activity_log_is_not_believed(self, kafka: FakeKafka) -> None:
        """It may be another agent's who won, and whose entry the announcement of one who lost has covered."""
        foreign(kafka, 3, 41, OTHER, start=True)
        won = self.claim(kafka, known=4, claimant="")
        assert (won.position, won.claimed_as) == (Position(5, 42), layout.CLAIMED_ELSEWHERE)

    def test_goes_on_after_the_last_position(self, kafka: FakeKafka) -> None:
        foreign(kafka, 3, 41, OTHER, start=True)
        foreign(kafka, 3, 42, OTHER, start=False)
        won = self.claim(kafka, known=3)
        assert (won.position, won.claimed_as) == (Position(4, 43), "unclean stop")

    @pytest.mark.parametrize(("known", "claimant"), [(3, "you"), (2, "me"), (0, "")])
    def test_after_another_agent_the_activity_log_at_hand_is_not_believed(self, kafka: FakeKafka, known: int, claimant: str) -> None:
        """Nor after one that could not tell of its claim before it died."""
        foreign(kafka, 3, 41, OTHER, start=True)
        won = self.claim(kafka, known=known, claimant=claimant)
        assert (won.position, won.claimed_as) == (Position(4, 42), layout.CLAIMED_ELSEWHERE)

    def test_a_clean_stop_that_the_log_proves(self, kafka: FakeKafka) -> None:
        foreign(kafka, 3, 42, OTHER, start=False)
        assert self.claim(kafka, stop=Position(3, 42), topic_id="id-1").clean

    @pytest.mark.parametrize(("stop", "topic_id"), [(Position(3, 41), "id-1"), (Position(3, 42), "id-0"), (Position(2, 42), "id-1")])
    def test_a_clean_stop_that_the_log_does_not_prove(self, kafka: FakeKafka, stop: Position, topic_id: str) -> None:
        foreign(kafka, 3, 42, OTHER, start=False)
        won = self.claim(kafka, stop=stop, topic_id=topic_id)
        assert not won.clean
        assert decode_writes(kafka.messages[-1].value)[0].marks[0]["clean"] == "false"

    def test_an_emptied_log_of_a_known_epoch_is_no_first_copy(self, kafka: FakeKafka) -> None:
        won = self.claim(kafka, known=5)
        assert (won.position.epoch, won.claimed_as) == (6, "unclean stop")

    def test_a_newer_claim_behind_which_many_late_messages_stand_is_seen(self, kafka: FakeKafka) -> None:
        """Its number is taken: order would drop a second claim of it, and all that follows."""
        foreign(kafka, 6, 42, OTHER, start=True)
        for sequence in range(42, 242):
            foreign(kafka, 5, sequence, OTHER, start=False)
        assert self.claim(kafka).position.epoch == 7

    def test_its_time_is_never_before_the_log_s(self, kafka: FakeKafka) -> None:
        """The clock went back while the host was down."""
        future = 1 << 62
        batch = Batch("v", 3, 42, future, bytes([Kind.FLUSH]), b"\0", [0], [0], [0])
        kafka.append(encode_writes(batch, OTHER), headers("v", 3, 42, 42, OTHER))
        won = self.claim(kafka)
        assert won.captured_ns == future
        assert decode_writes(kafka.messages[-1].value)[0].capture_time_ns == future

    def test_loses_to_a_claim_that_stands_before_it(self, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interpose(kafka, monkeypatch, lambda: foreign(kafka, 1, 1, OTHER, start=True))
        with pytest.raises(FencedError):
            self.claim(kafka)

    def test_wins_against_one_that_stands_behind_it(self, kafka: FakeKafka) -> None:
        won = self.claim(kafka)
        foreign(kafka, 1, 1, OTHER, start=True)
        found = claim_module.recount(FakeReader(kafka), "v", 1, won.incarnation, 1, 1, 2)
        assert found.acked == 1

    def test_a_late_claim_of_its_own_from_before_a_restart_is_no_rival(self, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed while its claim was on the way to a broker that hung: the new one must not be fenced by the old one."""

        def late() -> None:
            batch = Batch("v", 1, 1, 5, bytes([Kind.EPOCH_START]), b"\0", [0], [0], [0], b"", {0: {"agent": "me"}})
            kafka.append(encode_writes(batch, OTHER), headers("v", 1, 1, 1, OTHER))

        self.interpose(kafka, monkeypatch, late)
        with pytest.raises(RetryError):
            self.claim(kafka)
        assert self.claim(kafka).position.epoch == 2

    def interpose(self, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
        """Let something reach the log between the look at its end and the claim, once."""
        real = claim_module._append

        def append(*arguments: object) -> int:
            monkeypatch.setattr(claim_module, "_append", real)
            act()
            return real(*arguments)

        monkeypatch.setattr(claim_module, "_append", append)
