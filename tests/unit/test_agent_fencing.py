"""An agent whose epoch is over counts nothing that order drops, claims nothing by itself, and says why it stopped (design rules 18, 19)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent import claim as claim_module
from agent import publication as publication_module
from agent import ring as layout
from stream.errors import ConfigError, FencedError, IntegrityError, ResyncError, RetryError
from tests.publication_parts import INCARNATION, OTHER, Bench, FakeKafka, FakeProducer, FakeReader, foreign, install


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    install(kafka, monkeypatch)
    return kafka


@pytest.fixture
def bench(tmp_path: Path, kafka: FakeKafka) -> Bench:
    return Bench(tmp_path, kafka)


def unclaimed(bench: Bench, clean: int = layout.CLEAN_NOT) -> None:
    bench.words[layout.W_CLAIMED] = layout.CLAIM_NONE
    bench.words[layout.W_CLEAN] = clean


class TestNothingCounts:
    def test_behind_a_newer_epoch(self, bench: Bench) -> None:
        bench.flushes(2)
        bench.publication.publish()
        bench.producer.deliver()
        foreign(bench.kafka, 2, 3, OTHER, start=True)
        bench.flushes(1)
        bench.publication.publish()
        with pytest.raises(FencedError):
            bench.producer.deliver()
        assert bench.acked == 3

    def test_behind_a_newer_epoch_whose_start_is_deleted_by_age(self, bench: Bench) -> None:
        """This agent slept longer than Kafka keeps; what its successor still has in the log tells."""
        bench.flushes(1)
        bench.publication.publish()
        foreign(bench.kafka, 2, 3, OTHER, start=False)
        with pytest.raises(FencedError):
            bench.producer.deliver()
        assert bench.acked == 1

    def test_behind_a_log_start_that_hides_a_newer_epoch(self, bench: Bench) -> None:
        """Nothing of the successor is left in the log; ho.control knows it."""
        bench.flushes(1)
        bench.publication.publish()
        bench.kafka.start, bench.kafka.messages, bench.known = 50, [], 2
        with pytest.raises(FencedError):
            bench.producer.deliver()
        assert bench.acked == 1

    def test_behind_a_log_start_while_control_is_not_known(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.kafka.start, bench.kafka.messages = 50, []

        def unknown(_: str) -> int:
            raise RetryError("planted: not read yet")

        bench.publication._newest_claim = unknown
        with pytest.raises(RetryError, match="not read yet"):
            bench.open()
        assert bench.words[layout.W_NEXT_OFFSET] == 1

    @pytest.mark.parametrize("lost", [1, 2, 3])
    @pytest.mark.parametrize("regrown", [0, 1, 5])
    def test_behind_a_newer_epoch_in_a_log_that_lost_its_end(self, bench: Bench, lost: int, regrown: int) -> None:
        """A broker lost what it had acknowledged, and the successor's claim stands where our records stood."""
        for _ in range(3):
            bench.flushes(1)
            bench.publication.publish()
        bench.producer.deliver_all()
        assert bench.acked == 4
        del bench.kafka.messages[-lost:]
        foreign(bench.kafka, 2, 5, OTHER, start=True)
        for sequence in range(regrown):
            foreign(bench.kafka, 1, 90 + sequence, b"stranger", start=False)
        bench.flushes(1)
        bench.publication.publish()
        if lost != regrown + 1:  # else the broker misses what came before it from this producer, and refuses it
            with pytest.raises(FencedError):
                bench.producer.deliver()
        with pytest.raises(FencedError):
            bench.open()
        assert bench.acked == 4

    def test_once_it_is_fenced(self, bench: Bench) -> None:
        """Capture heard of it first; what is on its way is not answered any more."""
        bench.flushes(1)
        bench.publication.publish()
        bench.words[layout.W_FENCED] = 1
        bench.producer.deliver()
        assert bench.acked == 1
        bench.flushes(1)
        assert bench.publication.publish() == 0

    def test_wait_durable_is_not_answered(self, bench: Bench) -> None:
        """A flush under `stream` that waits while the newer epoch comes gets an error, not a promise."""
        log = bench.parts.log
        sequence = bench.parts.volume.flush()
        bench.publication.publish()
        foreign(bench.kafka, 2, 2, OTHER, start=True)
        told: list[object] = []

        def flush() -> None:
            try:
                told.append(log.wait_durable(sequence, lambda: True))
            except OSError as error:
                told.append(error)

        waiter = threading.Thread(target=flush)
        waiter.start()
        with pytest.raises(FencedError):
            bench.producer.deliver()
        log.acknowledged()
        assert told == []
        log.failure = OSError(5, "fenced")
        log.acknowledged()
        waiter.join(10)
        assert [str(one) for one in told] == [str(log.failure)]


class TestALogThatLostItsEnd:
    def test_is_gone_on_with_if_nobody_else_wrote(self, bench: Bench) -> None:
        bench.flushes(3)
        bench.publication.publish()
        bench.producer.deliver_all()
        bench.flushes(2)
        del bench.kafka.messages[-1]
        bench.open()
        bench.publication.publish()
        bench.producer.deliver_all()
        assert bench.acked == 6
        assert bench.kafka.sequences()[-1] == (5, 6)
        assert bench.words[layout.W_NEXT_OFFSET] == bench.kafka.end

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_without_our_claim_fences_if_another_claimed_in_its_place(self, bench: Bench, epoch: int) -> None:
        """The first claim of a number in the log wins, and that is theirs by now: order drops all that we write."""
        bench.flushes(1)
        bench.publication.publish()
        bench.producer.deliver()
        bench.kafka.messages.clear()
        foreign(bench.kafka, epoch, 1, OTHER, start=True)
        with pytest.raises(FencedError):
            bench.open()

    def test_without_our_claim_begins_a_new_epoch(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        bench.producer.deliver()
        bench.kafka.messages.clear()
        with pytest.raises(ResyncError):
            bench.open()
        assert bench.words[layout.W_LOST] == 1

    def test_whose_start_is_deleted_too_is_read_whole(self, bench: Bench) -> None:
        bench.flushes(2)
        for _ in range(2):
            bench.publication.publish()
            bench.producer.deliver_all()
        bench.kafka.start, bench.kafka.messages = 1, bench.kafka.messages[1:2]
        bench.words[layout.W_NEXT_OFFSET] = 9
        bench.open()
        assert bench.acked == 3
        assert bench.words[layout.W_NEXT_OFFSET] == 2

    def test_our_claim_is_found_behind_many_messages(self, kafka: FakeKafka) -> None:
        foreign(kafka, 1, 1, INCARNATION, start=True)
        for sequence in range(2, 1000):
            foreign(kafka, 1, sequence, INCARNATION, start=False)
        assert claim_module.find_epoch_start(FakeReader(kafka), INCARNATION, 1) == 0
        assert claim_module.find_epoch_start(FakeReader(kafka), OTHER, 1) is None


class TestClaiming:
    def test_a_fenced_ring_never_claims(self, bench: Bench) -> None:
        unclaimed(bench)
        bench.words[layout.W_FENCED] = 1
        bench.publication._run()
        assert len(bench.kafka.messages) == 1

    def test_fenced_while_it_claims(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        unclaimed(bench)
        real = claim_module._append

        def append(*arguments: object) -> int:
            bench.words[layout.W_FENCED] = 1
            return real(*arguments)

        monkeypatch.setattr(claim_module, "_append", append)
        bench.publication._run()
        assert bench.words[layout.W_CLAIMED] == layout.CLAIM_NONE
        assert "newer epoch" in str(bench.publication.error)

    @pytest.mark.parametrize("gone", ["ring", "publisher"])
    def test_nothing_is_claimed_for_a_ring_made_anew_meanwhile(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
        """The broker was away while capture was restarted; the old publication's claim would fence the new one."""
        unclaimed(bench)
        honest = FakeReader.bounds

        def bounds(reader: FakeReader) -> tuple[int, int]:
            if gone == "ring":
                bench.parts.ring.path.unlink()
            else:
                bench.publication._stop.set()
            return honest(reader)

        monkeypatch.setattr(FakeReader, "bounds", bounds)
        with pytest.raises(RetryError, match="Nobody waits"):
            bench.publication._claim()
        assert len(bench.kafka.messages) == 1

    def test_a_volume_of_another_agent_is_not_claimed(self, bench: Bench) -> None:
        unclaimed(bench)

        def elsewhere(_: str) -> int:
            bench.publication._stop.set()
            raise ConfigError("Volume v is not declared for agent me", hint="Agent you serves it.")

        bench.publication._newest_claim = elsewhere
        bench.publication._run()
        assert len(bench.kafka.messages) == 1
        assert bench.publication.error == "Volume v is not declared for agent me. Agent you serves it."

    def test_waits_until_capture_has_said_what_it_believes(self, bench: Bench) -> None:
        """A ring is there before its clean stop is written into it: claimed in between, everything would be copied for nothing."""
        unclaimed(bench, layout.CLEAN_UNKNOWN)
        bench.parts.ring.set_text("topic_id", "")
        waits: list[float] = []
        stop = bench.publication._stop
        real = stop.wait

        def wait(timeout_s: float) -> bool:
            waits.append(timeout_s)
            if len(waits) == 3:
                bench.parts.ring.set_text("believed", "00000001-0000000000000001")
                bench.parts.ring.set_text("topic_id", "id-1")
                bench.words[layout.W_CLEAN] = layout.CLEAN_SOURCE
            return real(0)

        def poll(_: FakeProducer) -> None:
            stop.set()

        stop.wait, bench.kafka.on_poll = wait, poll
        bench.publication._run()
        assert bench.words[layout.W_CLEAN] == layout.CLEAN_PROVED
        assert bench.words[layout.W_EPOCH] == 2
        assert bench.words[layout.W_PROGRESS_NS] > 0

    def test_a_newer_epoch_in_control_fences(self, bench: Bench) -> None:
        bench.known = 2
        with pytest.raises(FencedError):
            bench.publication._tell_claim()

    def test_one_that_was_announced_alone_fences_nobody_and_keeps_its_number(self, bench: Bench) -> None:
        """The publication of a ring that was made anew announced it, and saw only then that nobody waits for it."""
        bench.known, bench.claimant = 2, ""
        bench.publication._tell_claim()
        assert bench.claims == [], "what is announced must not be covered: its number could be given again"

    def test_fenced_from_outside_stops_the_producer(self, bench: Bench) -> None:
        def poll(_: FakeProducer) -> None:
            bench.words[layout.W_FENCED] = 1

        bench.kafka.on_poll = poll
        bench.publication._run()
        assert bench.producer.closed
        assert "newer epoch" in str(bench.publication.error)

    def test_a_message_that_is_not_ours_at_all_is_named(self, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
        kafka.append(b"rubbish", [])
        with pytest.raises(IntegrityError, match=r"ho\.v\.writes"):
            claim_module.recount(FakeReader(kafka), "v", 1, INCARNATION, 1, 0, 1)


def test_progress_is_the_time_of_the_last_acknowledgement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000, 10_000, 1000))
    monkeypatch.setattr(publication_module.time, "monotonic_ns", lambda: next(now))
    bench.flushes(1)
    assert bench.words[layout.W_PROGRESS_NS] == 0
    bench.publication.publish()
    bench.producer.deliver()
    assert bench.words[layout.W_PROGRESS_NS] == 1000
    bench.open()  # reading the log is no acknowledgement
    assert bench.words[layout.W_PROGRESS_NS] == 1000
    bench.flushes(1)
    bench.publication.publish()
    bench.producer.deliver(report=False)
    bench.open()  # but finding ours in it is
    assert bench.words[layout.W_PROGRESS_NS] == 2000
