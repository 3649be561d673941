"""What a publication does with a Kafka that refuses: smaller messages, a stated error, and going on when it is put right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import publication as publication_module
from agent import refusals as refusals_module
from agent import ring as layout
from agent.messages import PUBLISH_BYTES_MAX, PUBLISH_RECORDS_MAX, MessageLimit
from stream.codec import decode_writes
from stream.errors import ConfigError, ResyncError, RetryError, TooLargeError
from stream.record import Kind
from stream.schema import MESSAGE_BYTES_MAX
from tests.agent_parts import CHUNK
from tests.publication_parts import Bench, FakeKafka, FakeProducer, install


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    install(kafka, monkeypatch)
    for name in ("WAIT_S", "WAIT_S_MAX"):
        monkeypatch.setattr(refusals_module, name, 0.001)
    for name in ("BACKOFF_S", "BACKOFF_S_MAX"):
        monkeypatch.setattr(publication_module, name, 0.001)
    return kafka


@pytest.fixture
def bench(tmp_path: Path, kafka: FakeKafka) -> Bench:
    return Bench(tmp_path, kafka)


def run(bench: Bench, over: Callable[[], bool], rounds_max: int = 500) -> list[str | None]:
    """Run the Kafka thread here until `over`, publishing in every poll and delivering what it gave; return the errors stated meanwhile."""
    stated: list[str | None] = []
    rounds = iter(range(rounds_max))

    def poll(producer: FakeProducer) -> None:
        next(rounds)
        stated.append(bench.publication.error)
        if over():
            bench.publication._stop.set()
            return
        bench.publication.publish()
        producer.deliver_all()

    bench.kafka.on_poll = poll
    bench.publication._run()
    assert over(), "it never happened"
    return stated


def on_wait(bench: Bench, hook: Callable[[float], None]) -> None:
    """Let the Kafka thread wait for no time, and call `hook` instead."""
    stop = bench.publication._stop
    real = stop.wait

    def wait(timeout_s: float) -> bool:
        hook(timeout_s)
        return real(0)

    stop.wait = wait


def payloads(kafka: FakeKafka) -> bytes:
    return b"".join(bytes(decode_writes(message.value)[0].payload) for message in kafka.messages)


class TestTooLarge:
    def test_a_refused_message_is_split(self, bench: Bench) -> None:
        written = [bytes([number]) * 20_000 for number in range(1, 31)]
        for payload in written:
            bench.parts.write(0, payload)
        bench.kafka.message_bytes_max = 70_000
        run(bench, lambda: bench.publication.drained)
        assert payloads(bench.kafka) == b"".join(written)
        sequences = bench.kafka.sequences()
        assert [first for first, _ in sequences] == [1, *(last + 1 for _, last in sequences[:-1])]
        assert bench.acked == 31
        assert bench.publication.error is None

    def test_refused_bytes_are_never_sent_again(self, bench: Bench) -> None:
        for number in range(40):
            bench.parts.write(0, bytes([number]) * 10_000)
        bench.kafka.message_bytes_max = 25_000
        sent: list[bytes] = []
        real = FakeProducer.deliver

        def deliver(producer: FakeProducer, **told: bool) -> int:
            value = producer.queue[0][0]
            if len(value) > bench.kafka.message_bytes_max:
                sent.append(value)
            return real(producer, **told)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeProducer, "deliver", deliver)
            run(bench, lambda: bench.publication.drained)
        assert sent
        assert len(set(sent)) == len(sent)

    def test_records_without_payload_are_split_too(self, bench: Bench) -> None:
        bench.flushes(2000)
        bench.kafka.message_bytes_max = 700
        run(bench, lambda: bench.publication.drained)
        assert bench.acked == 2001

    def test_smaller_messages_travel_alone(self, bench: Bench) -> None:
        """What the topic's limit measures is a batch, and librdkafka joins messages into one."""
        assert bench.open().messages_joined_max > 1
        bench.publication._refusals.take(TooLargeError("planted"), (2, 5, 9000, 8000))
        assert bench.open().messages_joined_max == 1

    def test_a_single_record_is_stated_and_waits_for_the_setting(self, bench: Bench) -> None:
        """It is looked at by asking for the setting; the bytes are not sent again before that allows them."""
        bench.parts.write(0, b"x" * 100_000)
        bench.kafka.message_bytes_max = 50_000
        stated: list[str | None] = []

        def wait(_: float) -> None:
            stated.append(bench.publication.error)
            if bench.kafka.asked > 5:
                bench.kafka.message_bytes_max = MESSAGE_BYTES_MAX

        producers = len(bench.kafka.producers)
        on_wait(bench, wait)
        run(bench, lambda: bench.publication.drained)
        assert bench.acked == 2
        assert len(bench.kafka.producers) == producers + 2
        assert bench.kafka.asked > 5
        assert all("ho.v.writes takes no message of" in str(told) and "max.message.bytes" in str(told) for told in stated[:5])
        assert bench.publication.error is None

    def test_whole_messages_come_back_with_the_setting(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusals_module, "RESTORE_S", 0.0)
        for _ in range(8):
            bench.parts.write(0, b"x" * 50_000)
        bench.kafka.message_bytes_max = 120_000
        run(bench, lambda: bench.publication.drained)
        limit = bench.publication._refusals.limit
        assert limit.lowered
        bench.kafka.message_bytes_max = MESSAGE_BYTES_MAX
        bench.publication._refusals.restore()
        assert not limit.lowered

    def test_a_refused_claim_is_stated(self, bench: Bench) -> None:
        bench.words[layout.W_CLAIMED] = layout.CLAIM_NONE
        bench.words[layout.W_CLEAN] = layout.CLEAN_NOT
        bench.kafka.message_bytes_max = 10
        stated: list[str | None] = []

        def wait(_: float) -> None:
            stated.append(bench.publication.error)
            bench.publication._stop.set()

        on_wait(bench, wait)
        bench.publication._run()
        assert "takes no message of" in str(stated[0])


class TestLimit:
    def test_halves_what_was_refused(self) -> None:
        limit = MessageLimit()
        assert limit.lower(10, 100_000)
        assert (limit.records_max, limit.bytes_max) == (5, 50_000)
        assert not limit.lower(1, 40_000)
        limit.restore()
        assert (limit.records_max, limit.bytes_max) == (PUBLISH_RECORDS_MAX, PUBLISH_BYTES_MAX)

    def test_ends_at_one_record(self) -> None:
        limit, count = MessageLimit(), PUBLISH_RECORDS_MAX
        while limit.lower(count, 0):
            count = limit.records_max
        assert (count, limit.bytes_max) == (1, PUBLISH_BYTES_MAX)


class TestOtherFaults:
    def test_an_error_stands_until_something_is_acknowledged(self, bench: Bench) -> None:
        """Opening a producer proves nothing: Kafka refuses the first message as it did the last one."""
        bench.flushes(1)
        bench.kafka.refusal = ConfigError("Topic authorization failed", hint="Give this client the right to write.")
        producers = len(bench.kafka.producers)

        def over() -> bool:
            if len(bench.kafka.producers) - producers > 4:
                bench.kafka.refusal = None
            return bench.publication.drained

        stated = run(bench, over)
        assert set(stated[1:5]) == {"Topic authorization failed. Give this client the right to write."}
        assert bench.publication.error is None
        assert bench.kafka.sequences() == [(1, 1), (2, 2)]

    def test_it_waits_longer_each_time(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publication_module, "BACKOFF_S_MAX", 0.016)
        bench.flushes(1)
        bench.kafka.refusal = ConfigError("no")
        waits: list[float] = []

        def wait(timeout_s: float) -> None:
            waits.append(timeout_s)
            if len(waits) == 8:
                bench.kafka.refusal = None

        on_wait(bench, wait)
        bench.publication._backoff_s = 0.001
        run(bench, lambda: bench.publication.drained)
        assert waits[:8] == [0.001, 0.002, 0.004, 0.008, 0.016, 0.016, 0.016, 0.016]

    @pytest.mark.parametrize(
        "refusal", [RetryError("not enough replicas"), RetryError("storage"), ResyncError("unknown topic"), OSError("our bug")]
    )
    def test_no_refusal_makes_a_hole(self, bench: Bench, refusal: Exception) -> None:
        written = [bytes([number]) * CHUNK for number in range(1, 7)]
        for payload in written:
            bench.parts.write(0, payload)
        calls = iter(range(1000))

        def over() -> bool:
            bench.kafka.refusal = refusal if next(calls) % 2 else None
            return bench.publication.drained

        run(bench, over)
        assert payloads(bench.kafka) == b"".join(written)

    def test_a_topic_that_is_gone_is_stated_and_one_made_anew_begins_an_epoch(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.kafka.topic_id = None
        with pytest.raises(ConfigError, match="does not exist"):
            bench.open()
        bench.kafka.topic_id = "id-2"
        with pytest.raises(ResyncError, match="made anew"):
            bench.open()
        assert bench.words[layout.W_LOST] == 1
        assert bench.acked == 1

    def test_some_volumes_that_are_refused_do_not_hold_up_the_others(self, tmp_path: Path, kafka: FakeKafka) -> None:
        bench = Bench(tmp_path, kafka, limit_bytes=CHUNK)
        bench.in_flight.add(CHUNK)  # of other volumes
        bench.parts.write(0, b"x" * 1000)
        bench.parts.write(0, b"y" * 1000)
        assert bench.publication.publish() > 0
        assert bench.publication.held_back

    def test_marks_that_can_not_be_read_stop_this_volume_alone(self, bench: Bench) -> None:
        bench.parts.volume.marks.append(Kind.SYNC_BEGIN, {"reason": "x"})
        chunk = bench.parts.entry(2)[4]
        bench.parts.pool.chunk(chunk)[:4] = b"\0\0\0\0"
        assert bench.publication.publish() == 0
        assert "can't be read" in bench.publication.error
