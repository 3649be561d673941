"""`Publication` over a fake log: what is counted as durable is a prefix, whatever the broker does."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import ring as layout
from agent.messages import PUBLISH_BYTES_MAX
from stream.codec import decode_writes
from stream.errors import FencedError, ResyncError, RetryError
from stream.position import Position
from stream.record import Kind
from tests.agent_parts import CHUNK, MIB
from tests.publication_parts import INCARNATION, OTHER, Bench, FakeKafka, foreign, install


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    kafka = FakeKafka()
    install(kafka, monkeypatch)
    return kafka


@pytest.fixture
def bench(tmp_path: Path, kafka: FakeKafka) -> Bench:
    return Bench(tmp_path, kafka)


class TestCollect:
    def test_says_what_was_recorded(self, bench: Bench) -> None:
        bench.parts.write(4096, b"a" * 100)
        bench.parts.volume.zero(bench.parts.slot, 0, 8192, punch=True, fast=False, durable=False)
        bench.parts.volume.marks.append(Kind.SYNC_BEGIN, {"reason": "x"})
        bench.parts.volume.flush()
        bench.publication.publish()
        batch, incarnation = decode_writes(bench.producer.queue[0][0])
        assert incarnation == INCARNATION
        assert list(batch.kinds) == [1, 2, 17, 4]
        assert batch.offsets == [4096, 0, 0, 0]
        assert batch.lengths == [100, 8192, 0, 0]
        assert bytes(batch.payload) == b"a" * 100
        assert batch.marks == {2: {"reason": "x"}}
        assert batch.first == Position(1, 2)

    def test_cuts_by_bytes_and_never_inside_a_record(self, bench: Bench) -> None:
        for _ in range(10):
            bench.parts.write(0, b"x" * 100_000)
        bench.publication.publish()
        sizes = [len(decode_writes(value)[0].payload) for value, _, _ in bench.producer.queue]
        assert sizes == [200_000] * 5
        assert max(sizes) <= PUBLISH_BYTES_MAX

    def test_a_long_write_travels_in_fragments(self, bench: Bench) -> None:
        bench.parts.write(0, b"x" * (2 * CHUNK + 5))
        bench.publication.publish()
        batches = [decode_writes(value)[0] for value, _, _ in bench.producer.queue]
        assert b"".join(batch.flags for batch in batches) == b"\1\1\0"
        assert [batch.ends_inside_split for batch in batches] == [True, True, False]

    def test_cuts_by_records(self, bench: Bench) -> None:
        bench.flushes(2500)
        bench.publication.publish()
        assert [batch.count for batch in (decode_writes(value)[0] for value, _, _ in bench.producer.queue)] == [2048, 452]


class TestCounting:
    def test_a_prefix_in_order(self, bench: Bench) -> None:
        for number in range(3):
            bench.parts.write(number * MIB, b"x" * CHUNK)
        bench.publication.publish()
        for expected in (2, 3, 4):
            bench.producer.deliver()
            assert bench.acked == expected
        assert bench.words[layout.W_NEXT_OFFSET] == 4
        assert bench.words[layout.W_ACKED_BYTES] == 3 * CHUNK
        assert bench.in_flight.bytes == 0
        assert bench.publication.backlog_bytes() == 0

    def test_a_report_without_an_offset_is_looked_up(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        bench.producer.deliver(told_offset=False)
        assert bench.acked == 2
        assert bench.words[layout.W_NEXT_OFFSET] == 2

    def test_a_report_without_an_offset_whose_message_is_not_there_counts_nothing(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        _, _, tag = bench.producer.queue.pop(0)
        with pytest.raises(RetryError):
            bench.publication._delivered(tag, None)
        assert bench.acked == 1

    def test_a_foreign_message_in_between_is_read_before_it_counts(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        foreign(bench.kafka, 1, 9, OTHER, start=False)
        bench.producer.deliver()
        assert bench.acked == 2
        assert bench.words[layout.W_NEXT_OFFSET] == 3

    def test_a_newer_epoch_in_between_fences_before_anything_counts(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        foreign(bench.kafka, 2, 2, OTHER, start=True)
        with pytest.raises(FencedError):
            bench.producer.deliver()
        assert bench.acked == 1

    def test_a_later_claim_of_the_same_epoch_lost(self, bench: Bench) -> None:
        """The first epoch_start of a number wins: ours stands before it."""
        bench.flushes(1)
        bench.publication.publish()
        foreign(bench.kafka, 1, 1, OTHER, start=True)
        bench.producer.deliver()
        assert bench.acked == 2

    def test_a_message_published_twice_counts_once(self, bench: Bench) -> None:
        bench.parts.write(0, b"x" * 1000)
        bench.publication.publish()
        value, told, tag = bench.producer.queue[0]
        bench.producer.deliver()
        bench.producer.queue.append((value, told, tag))
        bench.publication._in_flight.add(len(value))
        bench.producer.deliver()
        assert bench.acked == 2
        assert bench.words[layout.W_ACKED_BYTES] == 1000

    def test_a_batch_that_overlaps_what_is_counted_counts_its_rest(self, bench: Bench) -> None:
        """The failed producer's last message arrived after all; the new one joined more records behind it."""
        bench.parts.write(0, b"x" * 1000)
        bench.publication.publish()
        late = bench.producer.queue[0]
        bench.parts.write(0, b"y" * 500)
        bench.open()
        bench.kafka.append(late[0], late[1])
        bench.publication.publish()
        assert bench.producer.queue[0][2][:2] == (2, 3)
        bench.producer.deliver()
        assert bench.acked == 3
        assert bench.words[layout.W_ACKED_BYTES] == 1500
        assert bench.publication.drained


def test_a_count_never_goes_back(bench: Bench) -> None:
    bench.flushes(3)
    bench.publication._count(3, 3)
    bench.publication._count(2, 3)
    assert bench.acked == 3


class TestRestart:
    @pytest.mark.parametrize("reported", [0, 1, 2, 3])
    @pytest.mark.parametrize("written", [0, 1, 2, 3])
    def test_publishes_what_the_log_lacks_and_nothing_else(self, bench: Bench, reported: int, written: int) -> None:
        for number in range(3):
            bench.parts.write(number * MIB, bytes([number + 1]) * CHUNK)
        bench.publication.publish()
        for number in range(max(written, reported)):
            bench.producer.deliver(report=number < reported)
        bench.renew()
        assert bench.acked == 1 + max(written, reported)
        bench.publication.publish()
        bench.producer.deliver_all()
        assert bench.acked == 4
        assert bench.kafka.sequences() == [(1, 1), (2, 2), (3, 3), (4, 4)]
        assert bench.publication.backlog_bytes() == 0

    def test_killed_between_the_words_of_a_count(self, bench: Bench) -> None:
        """W_ACKED is stored, the offset after it is not: the message is read again and counts nothing."""
        bench.parts.write(0, b"x" * 1000)
        bench.publication.publish()
        bench.producer.deliver()
        bench.words[layout.W_NEXT_OFFSET] = 1
        bench.renew()
        assert bench.acked == 2
        assert bench.words[layout.W_NEXT_OFFSET] == 2

    def test_a_log_whose_start_went_past_is_gone_on_with(self, bench: Bench) -> None:
        bench.flushes(2)
        bench.publication.publish()
        bench.kafka.start, bench.kafka.messages = 50, []
        bench.renew()
        bench.publication.publish()
        bench.producer.deliver_all()
        assert bench.acked == 3
        assert bench.words[layout.W_NEXT_OFFSET] == 51

    def test_a_log_whose_end_went_back_is_gone_on_with(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        bench.producer.deliver()
        bench.kafka.messages.pop()
        bench.renew()
        bench.flushes(1)
        bench.publication.publish()
        bench.producer.deliver()
        assert bench.acked == 3
        assert bench.words[layout.W_NEXT_OFFSET] == 2

    def test_a_topic_made_anew_stops_the_volume(self, bench: Bench) -> None:
        bench.kafka.topic_id = "id-2"
        with pytest.raises(ResyncError, match="made anew"):
            bench.open()
        assert bench.words[layout.W_LOST] == 1

    def test_a_topic_made_anew_while_it_is_written_to_is_seen(self, bench: Bench) -> None:
        bench.flushes(1)
        bench.publication.publish()
        bench.kafka.topic_id, bench.kafka.messages = "id-2", []
        with pytest.raises(ResyncError, match="made anew"):
            bench.producer.deliver()
        assert bench.acked == 1

    def test_a_fenced_ring_is_not_published(self, bench: Bench) -> None:
        bench.words[layout.W_FENCED] = 1
        publication = bench.renew()
        producers = len(bench.kafka.producers)
        publication._producer = None
        publication.start()
        publication._thread.join(5)
        assert not publication._thread.is_alive()
        assert len(bench.kafka.producers) == producers
