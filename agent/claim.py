"""Claiming an epoch, and finding one's own place in the log again (design rules 18 and 20).

Used by a publication's Kafka thread. A claim appends an `epoch_start` with a random incarnation and reads back what lies
before it: the first `epoch_start` of a number in log order wins. What is claimed is announced in `ho.control` first, so that no number
is given twice, whatever becomes of the log. `recount` reads the log after the last counted
acknowledgement, counts what is ours, and learns of a newer epoch. `is_counted` and `find_epoch_start` see to it that this is still the
same log: one that lost its end and was written to since may hide a newer epoch below the place where reading would go on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent import ring as layout
from agent.pool import PUBLISHER_BYTES_MAX
from agent.ring import VolumeRing
from stream.codec import decode_writes, encode_writes
from stream.config import KafkaConfig
from stream.consumer import PartitionReader, StoredMessage
from stream.control import EpochClaim
from stream.errors import ConfigError, FencedError, IntegrityError, RetryError
from stream.position import ZERO, Position
from stream.producer import QUEUE_MESSAGES_MAX, OrderedProducer
from stream.record import Batch, Kind
from stream.topics import Topics, writes_topic

CLAIM_TIMEOUT_S = 20.0
CLAIM_QUEUE_BYTES = 1 << 20
TAIL_MESSAGES = 64


@dataclass(frozen=True, slots=True)
class Claim:
    """A won epoch: its `epoch_start` stands at `position`, in the log at `kafka_offset`."""

    topic_id: str
    position: Position
    incarnation: bytes
    kafka_offset: int
    claimed_as: str
    clean: bool
    captured_ns: int

    def enter(self, ring: VolumeRing) -> None:
        """Write the claim into its ring, whose head it is; killed in between, another one is made."""
        words = ring.words
        words[layout.W_EPOCH], words[layout.W_EPOCH_FIRST] = self.position.epoch, self.position.sequence
        words[layout.W_INCARNATION] = int.from_bytes(self.incarnation, "little")
        words[layout.W_CAPTURE_NS] = self.captured_ns
        words[layout.W_HEAD] = words[layout.W_ACKED] = words[layout.W_SENT] = self.position.sequence
        words[layout.W_NEXT_OFFSET] = self.kafka_offset + 1
        words[layout.W_CLEAN] = layout.CLEAN_PROVED if self.clean else layout.CLEAN_NOT
        ring.set_text("topic_id", self.topic_id)
        ring.set_text("claimed_as", self.claimed_as)
        words[layout.W_PROGRESS_NS] = time.monotonic_ns()
        words[layout.W_CLAIMED] = layout.CLAIM_DONE


def headers(volume: str, epoch: int, first: int, last: int, incarnation: bytes) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of a message of the writes topic (`schemas/README.md`)."""
    return [
        ("volume", volume.encode()),
        ("epoch", b"%d" % epoch),
        ("first", b"%d" % first),
        ("last", b"%d" % last),
        ("kind", b"writes"),
        ("incarnation", incarnation),
    ]


def last_position(reader: PartitionReader) -> tuple[Position, int, int]:
    """Return the highest position in the log, the log's end, and the last capture time. `ZERO` and 0 for a log without messages.

    Only its tail is read: behind the newest claim stand at most the messages that an older agent had on the way.
    """
    start, end = reader.bounds()
    window = TAIL_MESSAGES
    while True:
        highest, newest, size, begin = ZERO, None, 0, max(start, end - window)
        for message in reader.read_range(begin, end):
            position = Position(_number(message, "epoch"), _number(message, "last"))
            if position >= highest:
                highest, newest = position, message
            size += len(message.value)
        if begin == start or size >= PUBLISHER_BYTES_MAX or window >= QUEUE_MESSAGES_MAX:
            return highest, end, _capture_time_ns(newest) if newest is not None else 0
        window *= 8


def claim(
    config: KafkaConfig,
    volume: str,
    agent: str,
    size_bytes: int,
    believed_stop: Position | None,
    stop_topic_id: str,
    claimed: int,
    claimant: str,
    announce: Callable[[EpochClaim], None],
    wanted: Callable[[], bool] = lambda: True,
) -> Claim:
    """Claim the next epoch of a volume and read it back.

    `believed_stop` is the last position of a clean stop whose source is unchanged (None: no such stop); `claimed` is the
    highest epoch that `ho.control` knows, and `claimant` whose it is: if not this agent's, or if the log has a newer one, another agent may
    have written to the source, of which the activity log at hand knows nothing; nobody's after a claim that was announced and may never
    have been made. `announce` makes the claim known durably before it is made. Nothing is claimed unless it is still `wanted` after the
    log was read: the claim of a ring made anew meanwhile would fence the new one's. Raises FencedError when somebody else's claim came
    first, RetryError, ConfigError when the topic is missing.
    """
    topic = writes_topic(volume)
    topic_id = Topics(config).topic_id(topic)
    if topic_id is None:
        raise ConfigError(f"Topic {topic} does not exist", hint="Declare the volume with `hostoffload volume add`.", volume=volume)
    with PartitionReader(config, topic) as reader:
        position, end, last_ns = last_position(reader)
        first = end == 0 and (claimed == 0 or (claimed == 1 and not claimant))
        clean = believed_stop is not None and believed_stop == position and stop_topic_id == topic_id
        epoch = max(position.epoch, claimed) + 1
        start = Position(epoch, position.sequence + 1)
        ours = claimant == agent and claimed >= position.epoch
        claimed_as = "clean start" if clean else "first copy" if first else "unclean stop" if ours else layout.CLAIMED_ELSEWHERE
        incarnation = secrets.token_bytes(8)
        attributes = {
            "clean": "true" if clean else "false",
            "first": "true" if first else "false",
            "believed": str(position),
            "size_bytes": str(size_bytes),
            "agent": agent,
            "topic_id": topic_id,
        }
        captured_ns = max(time.time_ns(), last_ns)  # never backward, whatever became of the clock (design rule 9)
        announce(EpochClaim(volume, epoch, incarnation, agent, topic_id, 0, time.time_ns()))
        if not wanted():
            raise RetryError(f"Nobody waits for a claim on volume {volume} any more", volume=volume)
        kafka_offset = _append(config, volume, start, incarnation, captured_ns, attributes)
        for message in reader.read_range(end, kafka_offset):
            _check_claim(message, volume, agent, epoch)
    return Claim(topic_id, start, incarnation, kafka_offset, claimed_as, clean, captured_ns)


def _check_claim(message: StoredMessage, volume: str, agent: str, epoch: int) -> None:
    """Raise FencedError if this is another agent's claim of `epoch` or a newer one, RetryError if it is a late one of our own."""
    if _number(message, "epoch") < epoch:
        return
    batch, _ = decode_writes(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
    if Kind.EPOCH_START not in batch.kinds:
        return
    if batch.marks.get(0, {}).get("agent") == agent:
        raise RetryError(f"A claim of volume {volume} from before a restart arrived late", volume=volume, epoch=epoch)
    raise FencedError(
        f"Another agent claimed epoch {epoch} of volume {volume} first",
        hint="Two agents claim the same volume: stop one of them.",
        volume=volume,
        kafka_offset=message.kafka_offset,
    )


@dataclass(frozen=True, slots=True)
class Recount:
    """What the log says after the last counted acknowledgement: the last sequence of ours in order, and the kafka_offset behind it."""

    acked: int
    next_kafka_offset: int


def recount(reader: PartitionReader, volume: str, epoch: int, incarnation: bytes, acked: int, start: int, end: int) -> Recount:
    """Read `[start, end)` of the writes topic and count what is ours.

    Another claim of our own epoch lost to ours, which stands before it in the log (design rule 18). Raises FencedError when anything of a
    newer epoch stands there, its `epoch_start` or what came after one that is deleted by now; IntegrityError for a damaged message;
    ResyncError when the log no longer has that range.
    """
    next_kafka_offset = start
    for message in reader.read_range(start, end):
        if _number(message, "epoch") > epoch:
            batch, _ = decode_writes(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
            if batch.epoch > epoch:
                raise fenced(volume, batch.epoch, message.kafka_offset)
        if message.headers.get("incarnation") == incarnation:
            first, last = _number(message, "first"), _number(message, "last")
            if first <= acked + 1 <= last:
                decode_writes(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
                acked = last
            if last <= acked:
                next_kafka_offset = message.kafka_offset + 1
    return Recount(acked, next_kafka_offset)


def is_counted(reader: PartitionReader, incarnation: bytes, acked: int, kafka_offset: int) -> bool:
    """Tell whether the message there is one of ours that was counted: if not, this is not the log that it was when it was counted."""
    (message,) = reader.read_range(kafka_offset, kafka_offset + 1)
    return message.headers.get("incarnation") == incarnation and _number(message, "last") <= acked


def find_epoch_start(reader: PartitionReader, incarnation: bytes, first_sequence: int) -> int | None:
    """Return the kafka_offset of our own epoch_start, the log's start if that was deleted by age; None if the log lost it.

    Read from its end backward: a log that lost its end may have been written to by anybody since, but never before our claim.
    """
    start, end = reader.bounds()
    window = TAIL_MESSAGES
    while True:
        begin = max(start, end - window)
        for message in reader.read_range(begin, end):
            if message.headers.get("incarnation") == incarnation and _number(message, "first") == first_sequence:
                return message.kafka_offset
        if begin == start:
            return start if start > 0 else None
        window *= 8


def check_untaken(reader: PartitionReader, volume: str, epoch: int, incarnation: bytes) -> None:
    """Raise FencedError if another agent wrote under our epoch or a newer one into a log that has lost our claim: theirs is the first."""
    for message in reader.read_range(*reader.bounds()):
        if _number(message, "epoch") >= epoch and message.headers.get("incarnation") != incarnation:
            raise fenced(volume, _number(message, "epoch"), message.kafka_offset)


def fenced(volume: str, epoch: int, kafka_offset: int | None = None) -> FencedError:
    """Return the error of an agent whose epoch is over."""
    return FencedError(
        f"A newer epoch of volume {volume} exists",
        hint="Another agent took the volume over; this one stops serving it.",
        volume=volume,
        epoch=epoch,
        kafka_offset=kafka_offset,
    )


def _number(message: StoredMessage, name: str) -> int:
    """Return a header that is a number. Raises IntegrityError for a message that nobody of us wrote."""
    try:
        return int(message.headers[name])
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"A message without the header {name!r} stands in {message.topic}",
            hint="Only hostoffload may write to its topics: find out who else does.",
            topic=message.topic,
            kafka_offset=message.kafka_offset,
        ) from error


def _capture_time_ns(message: StoredMessage) -> int:
    batch, _ = decode_writes(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
    return batch.last_capture_time_ns


def _append(
    config: KafkaConfig, volume: str, start: Position, incarnation: bytes, captured_ns: int, attributes: dict[str, str]
) -> int:
    """Publish the epoch_start and return its kafka_offset."""
    batch = Batch(
        volume, start.epoch, start.sequence, captured_ns, bytes([Kind.EPOCH_START]), b"\0", [0], [0], [0], b"", {0: attributes}
    )
    told: list[int | None] = []
    producer = OrderedProducer(
        config, writes_topic(volume), lambda _, kafka_offset: told.append(kafka_offset), queue_bytes_max=CLAIM_QUEUE_BYTES
    )
    try:
        producer.produce(
            encode_writes(batch, incarnation), headers(volume, start.epoch, start.sequence, start.sequence, incarnation), None, key=volume
        )
        producer.flush(CLAIM_TIMEOUT_S)
    finally:
        producer.close()
    if not told or told[0] is None:
        raise RetryError(f"The claim on volume {volume} was not acknowledged in time", volume=volume)
    return told[0]
