"""A journal made by hand: records are told one by one, joined into messages as an order worker joins them, and kept as the list that they
are.

Used by the tests of segments, chain and persist. The list is the oracle: it never goes through batch, codec or store.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stream.codec import encode_journal
from stream.compression import compress
from stream.consumer import StoredMessage
from stream.journal import JournalBatch, JournalEntry, JournalFence, JournalGap, JournalState, OpenGap
from stream.position import ZERO, Position
from stream.record import DIGEST_START, FLAG_MORE, Batch, Kind, chain_digest
from stream.topics import journal_topic

BEGUN_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000
INCARNATION = b"claim001"


@dataclass(frozen=True)
class Told:
    """One record as the test tells it."""

    kind: Kind
    offset: int = 0
    length: int = 0
    data: bytes = b""
    more: bool = False
    attributes: dict[str, str] | None = None


def write(offset: int, data: bytes, *, more: bool = False) -> Told:
    return Told(Kind.WRITE, offset, len(data), data, more)


def zero(offset: int, length: int) -> Told:
    return Told(Kind.ZERO, offset, length)


def flush() -> Told:
    return Told(Kind.FLUSH)


def mark(kind: Kind, **attributes: str) -> Told:
    return Told(kind, attributes=attributes)


@dataclass
class JournalMaker:
    """Write messages; `records` holds `(position, capture_time_ns, told)` of everything in order, `messages` the journal."""

    volume: str = "v1"
    codec: str = "snappy"
    epoch: int = 1
    sequence: int = 0
    digest: bytes = DIGEST_START
    last: Position = ZERO
    writer: int = -1
    open_gaps: tuple[OpenGap, ...] = ()
    time_ns: int = BEGUN_NS
    messages: list[StoredMessage] = field(default_factory=list)
    records: list[tuple[Position, int, Told]] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)

    def fence(self, worker: str = "w1") -> StoredMessage:
        self.writer = len(self.messages)
        return self._put(JournalFence(self.volume, worker, self.time_ns))

    def batch(self, *told: Told) -> StoredMessage:
        """Append one JournalBatch with these records."""
        if self.writer < 0:
            self.fence()
        return self._put(self.make(*told))

    def make(self, *told: Told) -> JournalBatch:
        """Move the journal by these records and return the entry, not written."""
        first_ns, ages, marks = self.time_ns + STEP_NS, [], {}
        first = self.sequence + 1
        for index, one in enumerate(told):
            self.sequence += 1
            if not (self.records and self.records[-1][2].more):
                self.time_ns += STEP_NS
            ages.append(max(0, self.time_ns - first_ns))
            if one.attributes is not None:
                marks[index] = one.attributes
            self.records.append((Position(self.epoch, self.sequence), first_ns + ages[-1], one))
        payload = b"".join(one.data for one in told)
        records = Batch(
            self.volume,
            self.epoch,
            first,
            first_ns,
            bytes(one.kind for one in told),
            bytes(FLAG_MORE if one.more else 0 for one in told),
            [one.offset for one in told],
            [one.length for one in told],
            ages,
            payload,
            marks,
        )
        codec, packed = compress(self.codec, payload)
        before, follows = self.digest, self.last
        self.digest = chain_digest(before, records)
        self.last = Position(self.epoch, self.sequence)
        return JournalBatch(
            replace(records, payload=b""), INCARNATION, codec, len(payload), self.writer, follows, before, self.state(), packed
        )

    def gap(self, reason: str = "retention", *, open_it: bool = True) -> StoredMessage:
        if self.writer < 0:
            self.fence()
        if open_it:
            self.open_gaps = (*self.open_gaps, OpenGap(self.last, reason, self.time_ns))
        return self._put(JournalGap(self.volume, self.writer, reason, "messages 7 to 9", self.time_ns, self.state()))

    def state(self) -> JournalState:
        return JournalState("writes-id", len(self.messages) + 1, self.last, INCARNATION, self.digest, self.open_gaps)

    def repeat(self, entry: JournalEntry) -> StoredMessage:
        """Append an entry as it is: a second copy, or something that should not be there."""
        return self._put(entry)

    def _put(self, entry: JournalEntry) -> StoredMessage:
        message = StoredMessage(journal_topic(self.volume), len(self.messages), None, encode_journal(entry), {}, 0)
        self.messages.append(message)
        self.entries.append(entry)
        return message


def seen(batch: Batch) -> list[tuple[Position, int, Told]]:
    """Return the records of a batch in the form of `JournalMaker.records`."""
    found = []
    for one in batch.records():
        attributes = dict(one.attributes) if one.kind.is_mark else None
        told = Told(one.kind, one.offset_bytes, one.length_bytes, one.payload, bool(one.flags & FLAG_MORE), attributes)
        found.append((one.position, one.capture_time_ns, told))
    return found


def image(records: list[tuple[Position, int, Told]], size: int) -> bytearray:
    """Apply records one by one to zeroes; a split write that was given up is not applied, and marks that tell a size give it that size."""
    held: list[Told] = []
    out = bytearray(size)
    for _, _, told in records:
        if told.kind == Kind.WRITE:
            held.append(told)
            if not told.more:
                for one in held:
                    out[one.offset : one.offset + one.length] = one.data
                held = []
        else:
            held = []
            if told.kind in (Kind.RESIZE, Kind.EPOCH_START) and "size_bytes" in (told.attributes or {}):
                size = int(told.attributes["size_bytes"])
                out = out[:size] + bytes(size - len(out[:size]))
            if told.kind in (Kind.ZERO, Kind.TRIM):
                out[told.offset : told.offset + told.length] = bytes(told.length)
    return out
