"""What the journal says: ordered batches, gaps and fences, and the state that each message carries.

An order worker resumes from the state in the last valid message alone. `JournalFence` is appended when a worker takes a volume, and its
kafka_offset is that worker's incarnation (`writer`) in every message it writes; a reader drops messages whose `writer` is below the highest
fence seen before them.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream.position import ZERO, Position
from stream.record import DIGEST_START, Batch

NO_INCARNATION = bytes(8)
FIRST_COPY = "first_copy"


@dataclass(frozen=True, slots=True)
class OpenGap:
    """A stretch in which order was lost, beginning after `position`, not yet closed by a `sync_end`."""

    position: Position
    reason: str
    begun_at_ns: int


@dataclass(frozen=True, slots=True)
class JournalState:
    """Everything that an order worker resumes from, as it stands after a message.

    `position` is the last one in the journal, `incarnation` the agent's claim that owns its epoch, `next_kafka_offset` the first of the
    writes topic not yet in the journal, `digest` the running digest after `position` (`stream.record.chain_digest`).
    """

    topic_id: str = ""
    next_kafka_offset: int = 0
    position: Position = ZERO
    incarnation: bytes = NO_INCARNATION
    digest: bytes = DIGEST_START
    open_gaps: tuple[OpenGap, ...] = ()


@dataclass(frozen=True, slots=True)
class JournalBatch:
    """Ordered records, their payload still under `codec` (`stream.compression`); `state` stands after them.

    `records.payload` holds the blob under the codec as long as `packed` is true.
    """

    records: Batch
    incarnation: bytes
    codec: str
    payload_bytes: int
    writer: int
    follows: Position
    digest_before: bytes
    state: JournalState
    packed: bytes

    @property
    def volume(self) -> str:
        return self.records.volume


@dataclass(frozen=True, slots=True)
class JournalGap:
    """The place in the journal where something is missing; it carries no records."""

    volume: str
    writer: int
    reason: str
    missing: str
    at_ns: int
    state: JournalState


@dataclass(frozen=True, slots=True)
class JournalFence:
    """An order worker took the volume; the message's kafka_offset is its incarnation."""

    volume: str
    worker: str
    at_ns: int


JournalEntry = JournalBatch | JournalGap | JournalFence
