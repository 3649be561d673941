"""Ordering over a broker in memory that does what Kafka may do: stand still, fail, forget, begin anew. No hole, and a word about it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cx_consumers.asks import Asks
from cx_consumers.intake import Arrival
from cx_consumers.journal_tail import last_valid
from cx_consumers.journal_writer import DisplacedError
from cx_consumers.ordering import Ordering, Progress, Shared
from stream.codec import decode_journal, encode_writes, unpack
from stream.errors import FencedError, IntegrityError, RetryError
from stream.journal import JournalBatch, JournalFence, JournalGap, OpenGap
from stream.position import Position
from stream.record import Batch, Kind
from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import journal_topic, writes_topic
from tests.cx_fake_broker import FakeBroker

VOLUME = "v"
CLAIM = b"claim--1"
WRITES, JOURNAL = writes_topic(VOLUME), journal_topic(VOLUME)
QUIET_TURNS = 40


class Prompt(random.Random):
    """Chance for a broker that lands and acknowledges at the next call."""

    def random(self) -> float:
        return 0.1


class Asked:
    """Take the requests that order makes."""

    def __init__(self) -> None:
        self.resyncs: list[OpenGap] = []
        self.ids: list[str] = []
        self._asks = Asks(lambda request: None, "worker")
        self.republished: list[Position] = []

    def resync(self, volume: str, gap: OpenGap, newest: OpenGap) -> None:
        self.resyncs.append(gap)
        self._asks.resync(volume, gap, newest)
        self.ids.append(self._asks._queue.get_nowait().id)

    def republish(self, volume: str, position: Position) -> None:
        self.republished.append(position)


class Stage:
    """One volume: an agent that publishes by hand, and a worker that holds it for some turns at a time."""

    def __init__(self) -> None:
        self.broker = FakeBroker(Prompt(), VOLUME)
        self.asked = Asked()
        self.progress = Progress()
        self.done: list[int] = []
        self.sequence = 0
        self.epoch = 1
        self.shared = Shared(self.broker, "worker", self.asked, self, self.broker.clock)  # type: ignore[arg-type]

    def add(self, done: list[Callable[[], object]]) -> None:
        for one in done:
            one()

    def publish(self, *records: tuple[Kind, bytes, dict[str, str]]) -> None:
        first, kinds = self.sequence + 1, [kind for kind, _, _ in records]
        self.sequence += len(records)
        batch = Batch(
            VOLUME, self.epoch, first, 1_000 + first, bytes(kinds), bytes(len(kinds)), [0] * len(kinds),
            [len(body) for _, body, _ in records], [0] * len(kinds), b"".join(body for _, body, _ in records),
            {index: told for index, (_, _, told) in enumerate(records) if told},
        )  # fmt: skip
        self.broker.append(WRITES, encode_writes(batch, CLAIM), [])

    def start_epoch(self) -> None:
        self.publish((Kind.EPOCH_START, b"", {"clean": "true"}))

    def write(self, body: bytes = b"x") -> None:
        self.publish((Kind.WRITE, body, {}))

    def mark(self, kind: Kind, **told: str) -> None:
        self.publish((kind, b"", told))

    def hold(self, *turns: Callable[[], object]) -> None:
        """Take the volume, and let these things happen one after the other, each followed by some quiet turns."""
        inbox = _Inbox(self, [step for turn in turns for step in (turn, *[_nothing] * QUIET_TURNS)] or [_nothing] * QUIET_TURNS)
        Ordering(VOLUME, "none", inbox, self.shared, self.progress, inbox.stopped).hold()  # type: ignore[arg-type]

    def journaled(self) -> tuple[list[tuple[Position, Kind, bytes, dict[str, str]]], list[str]]:
        """Return the records and the gaps' reasons as a reader from the journal's start believes them: by fences alone."""
        fence, records, gaps = -1, [], []
        for message in self.broker.logs[JOURNAL]:
            entry = decode_journal(message.value)
            if isinstance(entry, JournalFence):
                fence = message.kafka_offset
            elif entry.writer == fence and isinstance(entry, JournalGap):
                gaps.append(entry.reason)
            elif entry.writer == fence:
                records += [(one.position, one.kind, one.payload, dict(one.attributes)) for one in unpack(entry).records()]
        return records, gaps


class _Inbox:
    """Bring everything that is published, a turn at a time."""

    held_bytes = 0

    def __init__(self, stage: Stage, turns: list[Callable[[], object]]) -> None:
        self._stage = stage
        self._turns = turns
        self._next = len(stage.broker.logs[WRITES])

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def give_back(self, size_bytes: int) -> None:
        pass

    def take(self, timeout_s: float) -> list[Arrival]:
        if self._turns:
            self._turns.pop(0)()
        log = self._stage.broker.logs[WRITES]
        found = [Arrival(at, log[at].value, lambda at=at: self._stage.done.append(at)) for at in range(self._next, len(log))]
        self._next = len(log)
        return found

    def stopped(self) -> bool:
        return not self._turns


def _nothing() -> None:
    """Let a turn pass."""


@pytest.fixture
def stage() -> Stage:
    one = Stage()
    one.start_epoch()
    one.write()
    one.hold()
    return one


def test_a_journal_that_takes_nothing_is_told_and_waited_for(stage: Stage) -> None:
    """No leader, too few brokers in sync, a full disk: the producer tries for ever, so nothing else would say so."""
    told: list[RetryError | None] = []

    def stuck() -> None:
        stage.broker.stuck = True
        stage.write()

    def look() -> None:
        told.append(stage.progress.error)

    def again() -> None:
        stage.broker.stuck = False

    done = len(stage.done)
    stage.hold(stuck, look, again, look)
    assert isinstance(told[0], RetryError)
    assert "taken nothing for" in told[0].sentence
    assert told[0].hint
    assert told[1] is None
    assert len(stage.done) == done + 1
    assert [position.sequence for position, *_ in stage.journaled()[0]] == [1, 2, 3]


def test_a_journal_that_takes_nothing_for_long_gets_another_producer(stage: Stage) -> None:
    """One that lost all brokers tries for ever too, and in vain."""

    def stuck() -> None:
        stage.broker.stuck = True
        stage.write()

    with pytest.raises(RetryError, match="taken nothing for"):
        stage.hold(stuck, *[_nothing] * 20)
    with pytest.raises(RetryError, match="does not take a fence"):
        stage.hold()
    stage.broker.stuck = False
    done = len(stage.done)
    stage.hold()
    assert len(stage.done) == done, "what the journal lacked was read from the log"
    assert [position.sequence for position, *_ in stage.journaled()[0]] == [1, 2, 3]


@pytest.mark.parametrize("failure", [RetryError("leader gone"), FencedError("producer fenced")])
def test_a_producer_that_failed_leaves_no_hole(stage: Stage, failure: Exception) -> None:
    def fail() -> None:
        stage.write()
        stage.broker.failure = failure

    with pytest.raises(type(failure)):
        stage.hold(fail)
    stage.broker.failure = None
    stage.write()
    stage.hold()
    records, gaps = stage.journaled()
    assert ([position.sequence for position, *_ in records], gaps) == ([1, 2, 3, 4], [])


def test_writes_deleted_unread_are_a_gap_until_the_resync_that_was_asked_for(stage: Stage) -> None:
    stage.write()
    stage.broker.expire(WRITES, 3)
    stage.write()
    stage.hold()
    (gap,) = stage.asked.resyncs
    assert (gap.position, gap.reason) == (Position(1, 2), "retention")
    assert stage.progress.durable.open_gaps == (gap,)
    stage.mark(Kind.SYNC_BEGIN)
    stage.write(b"copied")
    stage.mark(Kind.SYNC_END, closes=str(gap.position))
    stage.hold()
    records, gaps = stage.journaled()
    assert gaps == ["retention"]
    assert [position.sequence for position, *_ in records] == [1, 2, 5, 6, 7]
    assert stage.progress.durable.open_gaps == ()


def test_a_copy_whose_beginning_the_broker_lost_is_asked_for_again(stage: Stage) -> None:
    """Its end names the gap, and would close it over what was copied first: a replica that differs, and is said to be consistent."""
    stage.write()
    stage.broker.expire(WRITES, 3)
    stage.write()
    stage.hold()
    (gap,) = stage.asked.resyncs
    stage.write(b"the second half")
    stage.mark(Kind.SYNC_END, closes=str(gap.position))
    stage.hold()
    assert [one.reason for one in stage.progress.durable.open_gaps] == ["retention", "broker_lost_data"]
    assert stage.asked.resyncs[1:], "nobody would copy it again"
    stage.mark(Kind.SYNC_BEGIN)
    stage.mark(Kind.SYNC_END, closes=str(gap.position))
    stage.hold()
    assert stage.progress.durable.open_gaps == ()
    assert [position.sequence for position, *_ in stage.journaled()[0]] == [1, 2, 7, 8]


def test_a_copy_for_the_agent_s_own_gap_closes_none_that_begins_at_the_same_position(stage: Stage) -> None:
    """Order lost something right behind a `gap_begin`: the copy that is under way, its beginning among what is lost, names both."""
    stage.mark(Kind.GAP_BEGIN, reason="overflow")
    own = Position(1, stage.sequence)
    stage.hold()
    stage.mark(Kind.SYNC_BEGIN)
    stage.write(b"the first half")
    stage.broker.expire(WRITES, len(stage.broker.logs[WRITES]))
    stage.write(b"the second half")
    stage.mark(Kind.SYNC_END, closes=str(own))
    stage.hold()
    assert {(one.position, one.reason) for one in stage.progress.durable.open_gaps} > {(own, "overflow"), (own, "retention")}
    assert [gap.reason for gap in stage.asked.resyncs][-1] == "broker_lost_data"


def test_a_journal_made_anew_under_its_worker_is_written_again_from_the_writes(stage: Stage) -> None:
    """The producer's next message lands in the new topic under the old fence: nobody may believe it."""

    def anew() -> None:
        stage.broker.make_anew(JOURNAL)
        stage.write()

    with pytest.raises(RetryError):
        stage.hold(anew)
    stage.hold()
    records, gaps = stage.journaled()
    assert ([position.sequence for position, *_ in records], gaps) == ([1, 2, 3], [])
    assert stage.asked.resyncs == []


def test_a_late_message_of_the_old_journal_in_the_new_one_outdates_the_claim_before_it(stage: Stage) -> None:
    """Every reader drops what claims before it wrote, so a worker that went on would write for nobody, for ever."""
    stage.write()
    stage.hold()
    late = stage.broker.logs[JOURNAL][-1]
    assert decode_journal(late.value).writer > 1
    stage.broker.make_anew(JOURNAL)

    def comes_late() -> None:
        stage.broker.append(JOURNAL, late.value, list(late.headers.items()))
        stage.write()

    with pytest.raises(DisplacedError, match="made anew"):
        stage.hold(comes_late)
    stage.hold()
    log = stage.broker.logs[JOURNAL]
    tail, _ = last_valid(log, 0)
    assert tail is log[-1], "what is written now is believed"
    assert decode_journal(tail.value).state.position.sequence == 4


@pytest.mark.parametrize("same_worker", [True, False])
def test_a_tail_whose_fence_is_deleted_is_believed_by_whom_it_was_acknowledged_to(stage: Stage, same_worker: bool) -> None:
    """Retention took all but the last message: nobody else can tell whether a worker wrote it that had lost the volume already."""
    stage.hold(stage.write, stage.write)
    stage.broker.expire(JOURNAL, len(stage.broker.logs[JOURNAL]) - 1)
    stage.progress.durable = stage.progress.durable if same_worker else None
    stage.write()
    stage.hold()
    assert [gap.reason for gap in stage.asked.resyncs] == ([] if same_worker else ["journal_lost"])


def test_a_journal_made_anew_whose_writes_are_gone_is_a_gap(stage: Stage) -> None:
    stage.broker.expire(WRITES, 2)
    stage.broker.make_anew(JOURNAL)
    stage.mark(Kind.SYNC_BEGIN)
    stage.hold()
    records, gaps = stage.journaled()
    assert ([position.sequence for position, *_ in records], gaps) == ([3], ["retention"])
    assert [gap.reason for gap in stage.asked.resyncs] == ["retention"]


@pytest.mark.parametrize("both", [False, True])
def test_writes_made_anew_are_a_gap_that_the_next_epoch_s_resync_closes(stage: Stage, both: bool) -> None:
    def anew() -> None:
        stage.broker.make_anew(WRITES)
        if both:
            stage.broker.make_anew(JOURNAL)
        stage.progress.topic_id = stage.broker.topic_ids[WRITES]  # as the thread that looks after topics tells it

    with pytest.raises(RetryError):
        stage.hold(anew)
    stage.epoch, stage.sequence = 2, 0
    stage.publish((Kind.EPOCH_START, b"", {"clean": "false"}))
    stage.write(b"copied")
    stage.hold()
    closes = [str(gap.position) for gap in stage.progress.durable.open_gaps]
    assert len(closes) == (1 if both else 2)
    stage.mark(Kind.SYNC_END, closes=",".join(closes))
    stage.hold()
    assert stage.journaled()[1] == ([] if both else ["topic_recreated"])
    assert stage.progress.durable.open_gaps == ()


@pytest.mark.parametrize("clean", ["true", "false"])
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_an_epoch_that_begins_behind_what_a_broker_lost_is_a_gap(stage: Stage, clean: str, lost: int) -> None:
    """Its agent had counted the records, so nothing of its own copies them: the host was stopped in order, or Kafka had them for long."""
    stage.hold()
    stage.sequence += lost
    stage.epoch = 2
    stage.publish((Kind.EPOCH_START, b"", {"clean": clean}))
    stage.write()
    stage.hold()
    stage.hold()
    assert [gap.reason for gap in stage.asked.resyncs] == (["broker_lost_data"] * 2 if lost else [])
    assert stage.journaled()[1] == (["broker_lost_data"] if lost else [])
    assert [position for position, *_ in stage.journaled()[0]][-2:] == [Position(2, 3 + lost), Position(2, 4 + lost)]
    assert len(stage.progress.durable.open_gaps) == bool(lost) + (clean == "false")


def test_a_gap_at_the_same_position_is_asked_for_anew(stage: Stage) -> None:
    """Each journal that lost everything begins with a gap at position zero; the first one's request was answered long ago."""
    for _ in range(2):
        stage.broker.expire(JOURNAL, len(stage.broker.logs[JOURNAL]))
        stage.hold()
    first, second = stage.asked.resyncs
    assert (first.reason, first.position) == (second.reason, second.position)
    assert first.begun_at_ns != second.begun_at_ns


def test_a_gap_still_open_when_another_begins_is_asked_for_anew(stage: Stage) -> None:
    """What closed it may be what was lost, after the agent was done with the first request."""
    for _ in range(2):
        stage.write()
        stage.broker.expire(WRITES, len(stage.broker.logs[WRITES]))
        stage.mark(Kind.SYNC_BEGIN)
        stage.hold()
        stage.hold()
    assert [gap.position.sequence for gap in stage.asked.resyncs] == [2, 2, 2, 4, 2, 4]
    first, again, anew, other, *taken_again = stage.asked.ids
    assert first == again
    assert len({first, anew, other}) == 3
    assert taken_again == [anew, other]


def test_marks_pass_order_unchanged(stage: Stage) -> None:
    told = [
        (Kind.VERIFY, {"offset": "1048576", "length": "1048576", "digest": "ab" * 16, "round": "b17", "last": "true"}),
        (Kind.RESIZE, {"size_bytes": str(1 << 40)}),
        (Kind.HEARTBEAT, {"clock_jump_ms": "-3600000"}),
        (Kind.HEARTBEAT, {}),
        (Kind.BOOKMARK, {"label": "vor dem Umbau \N{SNOWMAN}", "group": ""}),
        (Kind.SYNC_BEGIN, {"reason": "verify", "owed_bytes": "65536"}),
        (Kind.GAP_BEGIN, {"reason": "overflow"}),
    ]
    for kind, attributes in told:
        stage.mark(kind, **attributes)
    stage.hold()
    found = [(kind, attributes) for _, kind, _, attributes in stage.journaled()[0]]
    assert found[2:] == told


def test_a_batch_of_the_largest_size_fits_the_journal(stage: Stage) -> None:
    """Incompressible, and a little more than a journal message can be: it is cut, and a worker that dies in between goes on behind the
    cut."""
    records = [(Kind.WRITE, stage.broker.rng.randbytes(200_000), {}) for _ in range(20)]
    stage.publish(*records)
    stage.publish(*[(Kind.BOOKMARK, b"", {"label": "x" * 4000}) for _ in range(900)])
    assert all(len(message.value) < MESSAGE_BYTES_MAX for message in stage.broker.logs[WRITES])
    stage.hold()
    found = stage.journaled()[0][2:]
    assert [body for _, _, body, _ in found[:20]] == [body for _, body, _ in records]
    assert [position.sequence for position, *_ in found] == list(range(3, 3 + 920))
    assert all(len(message.value) <= MESSAGE_BYTES_MAX for message in stage.broker.logs[JOURNAL])
    batches = [one for message in stage.broker.logs[JOURNAL] if isinstance(one := decode_journal(message.value), JournalBatch)]
    cut = next(index for index, one in enumerate(batches) if one.records.first_sequence <= 3 <= one.records.last.sequence)
    assert batches[cut].records.last.sequence < 22
    keep = next(at for at, message in enumerate(stage.broker.logs[JOURNAL]) if decode_journal(message.value) == batches[cut]) + 1
    del stage.broker.logs[JOURNAL][keep:]
    stage.hold()
    again = stage.journaled()[0]
    assert [position.sequence for position, *_ in again] == list(range(1, 923))
    assert [body for _, _, body, _ in again[2:22]] == [body for _, body, _ in records]


def test_a_record_that_no_message_can_carry_parks_the_volume(stage: Stage) -> None:
    stage.publish((Kind.WRITE, bytes(MESSAGE_BYTES_MAX - 100), {}))
    with pytest.raises(IntegrityError, match="larger than a message"):
        stage.hold()


def test_small_messages_that_wait_together_are_joined(stage: Stage) -> None:
    for _ in range(100):
        stage.write(b"y" * 1000)
    before = len(stage.broker.logs[JOURNAL])
    stage.hold()
    assert len(stage.broker.logs[JOURNAL]) == before + 2, "a fence, and one batch"
