"""A writes topic made by hand: an agent captures records into epochs and publishes them, sometimes twice, late, or never.

The list of what an order worker must keep is the oracle; it never goes through the code that orders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stream.codec import encode_writes
from stream.consumer import StoredMessage
from stream.position import Position
from stream.record import FLAG_MORE, Batch, Kind
from stream.topics import writes_topic
from tests.journal_maker import BEGUN_NS, STEP_NS, Told


@dataclass
class WritesMaker:
    """Capture records and publish them; `captured` has `(position, capture_time_ns, told)` of everything, `messages` the log."""

    volume: str = "v1"
    epoch: int = 0
    sequence: int = 0
    incarnation: bytes = b""
    time_ns: int = BEGUN_NS
    low: int = 0
    captured: list[tuple[Position, int, Told]] = field(default_factory=list)
    messages: list[StoredMessage] = field(default_factory=list)

    def begin(self, *, clean: bool = False, first: bool = False, size_bytes: int = 0) -> None:
        """Claim the next epoch and publish its `epoch_start`."""
        self.epoch += 1
        self.incarnation = b"claim%03d" % self.epoch
        told = {"clean": str(clean).lower(), "first": str(first).lower()}
        self.publish(*self.capture(Told(Kind.EPOCH_START, attributes=told | ({"size_bytes": str(size_bytes)} if size_bytes else {}))))

    def capture(self, *told: Told) -> tuple[int, int]:
        """Capture records; return the range of their sequences, half-open."""
        first = self.sequence + 1
        for one in told:
            self.sequence += 1
            if not (self.captured and self.captured[-1][2].more):
                self.time_ns += STEP_NS
            self.captured.append((Position(self.epoch, self.sequence), self.time_ns, one))
        return first, self.sequence + 1

    def publish(self, start: int, stop: int, *, epoch: int | None = None, incarnation: bytes | None = None) -> StoredMessage:
        """Append a message with the records of these sequences."""
        records = self.captured[start - 1 : stop - 1]
        first_ns = records[0][1]
        batch = Batch(
            self.volume,
            epoch or records[0][0].epoch,
            start,
            first_ns,
            bytes(told.kind for _, _, told in records),
            bytes(FLAG_MORE if told.more else 0 for _, _, told in records),
            [told.offset for _, _, told in records],
            [told.length for _, _, told in records],
            [time_ns - first_ns for _, time_ns, _ in records],
            b"".join(told.data for _, _, told in records),
            {index: told.attributes for index, (_, _, told) in enumerate(records) if told.attributes is not None},
        )
        value = encode_writes(batch, incarnation or b"claim%03d" % (epoch or records[0][0].epoch))
        message = StoredMessage(writes_topic(self.volume), self.low + len(self.messages), None, value, {}, 0)
        self.messages.append(message)
        return message

    def put(self, *told: Told) -> StoredMessage:
        """Capture and publish."""
        return self.publish(*self.capture(*told))

    def read(self, kafka_offset: int | None) -> list[StoredMessage]:
        """Read the log as `topic_range.Messages`."""
        return self.messages[0 if kafka_offset is None else kafka_offset - self.low :]
