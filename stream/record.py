"""Records, marks and batches: what is captured, in the shape in which it travels.

A `Batch` holds consecutive records of one volume and one epoch as columns and one payload blob; nothing in the pipeline makes
an object of each record. It is the unit of a Kafka message, of the journal and of an apply. `RecordDigest` chains a digest
over records one by one, so that its value at a position does not depend on how records were joined into batches.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import xxhash

from stream.position import Position


class Kind(IntEnum):
    """Say what a record is; values are the wire's (`schemas/README.md`)."""

    WRITE = 1
    ZERO = 2
    TRIM = 3
    FLUSH = 4
    EPOCH_START = 16
    SYNC_BEGIN = 17
    SYNC_END = 18
    GAP_BEGIN = 19
    GAP_END = 20
    BOOKMARK = 21
    VERIFY = 22
    RESIZE = 23
    HEARTBEAT = 24

    @property
    def is_mark(self) -> bool:
        return self >= Kind.EPOCH_START


FLAG_MORE = 1  # a fragment of a split write: the next record belongs to the same write, and no recovery point stands between them

FRAGMENT_BYTES_MAX = 256 << 10
BATCH_RECORDS_MAX = 4096
BATCH_BYTES_MAX = 1 << 20
CHECKSUM_BYTES = 8
DIGEST_BYTES = 16
DIGEST_START = bytes(DIGEST_BYTES)

_META = struct.Struct("<QQBBQQQ")


@dataclass(frozen=True, slots=True)
class Record:
    """Show one record of a batch; made for tools and tests, not on the way of a write."""

    position: Position
    kind: Kind
    flags: int
    offset_bytes: int
    length_bytes: int
    capture_time_ns: int
    payload: bytes
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """Hold records `first_sequence ..` of one volume and epoch, in order.

    Columns have one entry a record: `kinds` and `flags` one byte each, `offsets`/`lengths` in bytes of the volume, `ages_ns` since
    `capture_time_ns` (ns since 1970 on the agent's clock; never negative, never falling). `payload` joins the bytes of the WRITE records in
    order; other records have none. `marks` maps a record's index to its attributes.
    """

    volume: str
    epoch: int
    first_sequence: int
    capture_time_ns: int
    kinds: bytes
    flags: bytes
    offsets: list[int]
    lengths: list[int]
    ages_ns: list[int]
    payload: bytes | memoryview = b""
    marks: Mapping[int, Mapping[str, str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.kinds)

    @property
    def first(self) -> Position:
        return Position(self.epoch, self.first_sequence)

    @property
    def last(self) -> Position:
        return Position(self.epoch, self.first_sequence + len(self.kinds) - 1)

    @property
    def last_capture_time_ns(self) -> int:
        return self.capture_time_ns + self.ages_ns[-1]

    @property
    def ends_inside_split(self) -> bool:
        """Tell whether the last record is a fragment that the next batch goes on with."""
        return bool(self.flags[-1] & FLAG_MORE)

    def problem(self, payload_bytes: int | None = None) -> str | None:
        """Return what is wrong with the shape of this batch, or None. Called at every border by the codec.

        `payload_bytes` is the payload's size where it is kept elsewhere.
        """
        count = len(self.kinds)
        if count == 0 or count > BATCH_RECORDS_MAX:
            return f"{count} records"
        if not (len(self.flags) == len(self.offsets) == len(self.lengths) == len(self.ages_ns) == count):
            return "columns of different lengths"
        if self.epoch <= 0 or self.first_sequence <= 0 or self.capture_time_ns < 0:
            return "epoch, sequence or capture time out of range"
        if min(self.offsets) < 0 or min(self.lengths) < 0 or min(self.ages_ns) < 0:
            return "a negative offset, length or age"
        if not _KINDS.issuperset(self.kinds):
            return "an unknown kind"
        if any(flag > FLAG_MORE for flag in self.flags):
            return "an unknown flag"
        if any(not 0 <= index < count or self.kinds[index] < Kind.EPOCH_START for index in self.marks):
            return "attributes without a mark"
        wanted = sum(length for kind, length in zip(self.kinds, self.lengths, strict=True) if kind == Kind.WRITE)
        got = len(self.payload) if payload_bytes is None else payload_bytes
        if got != wanted:
            return f"{got} bytes of payload for {wanted} bytes of writes"
        return None

    def payload_slices(self) -> Iterator[memoryview | None]:
        """Yield each record's payload without copying; None for records that carry none."""
        view = memoryview(self.payload)
        at = 0
        for kind, length in zip(self.kinds, self.lengths, strict=True):
            if kind == Kind.WRITE:
                yield view[at : at + length]
                at += length
            else:
                yield None

    def records(self) -> Iterator[Record]:
        """Yield the records as values, for tools and tests."""
        for index, payload in enumerate(self.payload_slices()):
            yield Record(
                Position(self.epoch, self.first_sequence + index),
                Kind(self.kinds[index]),
                self.flags[index],
                self.offsets[index],
                self.lengths[index],
                self.capture_time_ns + self.ages_ns[index],
                b"" if payload is None else bytes(payload),
                self.marks.get(index, {}),
            )

    def slice(self, start: int, stop: int) -> Batch:
        """Return records `[start, stop)` by index, as a batch of their own; payload is not copied."""
        if not 0 <= start < stop <= len(self.kinds):
            raise ValueError(f"no such slice of {len(self.kinds)} records: {start}..{stop}")
        if start == 0 and stop == len(self.kinds):
            return self
        writes = [length if kind == Kind.WRITE else 0 for kind, length in zip(self.kinds, self.lengths, strict=True)]
        begin = sum(writes[:start])
        end = begin + sum(writes[start:stop])
        base = self.ages_ns[start]
        return replace(
            self,
            first_sequence=self.first_sequence + start,
            capture_time_ns=self.capture_time_ns + base,
            kinds=self.kinds[start:stop],
            flags=self.flags[start:stop],
            offsets=self.offsets[start:stop],
            lengths=self.lengths[start:stop],
            ages_ns=[age - base for age in self.ages_ns[start:stop]],
            payload=memoryview(self.payload)[begin:end],
            marks={index - start: attributes for index, attributes in self.marks.items() if start <= index < stop},
        )

    def after(self, sequence: int) -> Batch | None:
        """Return the records above `sequence`, or None if there are none."""
        start = max(0, sequence + 1 - self.first_sequence)
        return self.slice(start, len(self.kinds)) if start < len(self.kinds) else None


_KINDS = frozenset(int(kind) for kind in Kind)


def chain_digest(before: bytes, batch: Batch) -> bytes:
    """Return the running digest after `batch`, given the one before it.

    For each record: `xxh3_128(before ‖ meta ‖ body)`, with meta `<QQBBQQQ` = epoch, sequence, kind, flags, offset, length, capture time in
    ns, and body = `xxh3_128(payload)` of a write, of the sorted `key\\0value\\0` attributes of a mark, else empty. The value
    at a position is therefore the same however records were joined into batches. It finds faults, not forgeries.
    """
    digest = before
    pack = _META.pack
    xxh3 = xxhash.xxh3_128_digest
    epoch, sequence, captured = batch.epoch, batch.first_sequence, batch.capture_time_ns
    columns = zip(batch.kinds, batch.flags, batch.offsets, batch.lengths, batch.ages_ns, batch.payload_slices(), strict=True)
    for index, (kind, flag, offset, length, age, payload) in enumerate(columns):
        meta = pack(epoch, sequence + index, kind, flag, offset, length, captured + age)
        if payload is not None:
            digest = xxh3(digest + meta + xxh3(payload))
        elif index in batch.marks:
            digest = xxh3(digest + meta + xxh3(attribute_bytes(batch.marks[index])))
        else:
            digest = xxh3(digest + meta)
    return digest


def attribute_bytes(attributes: Mapping[str, str]) -> bytes:
    """Return the attributes of a mark in the one form that digests and checksums cover."""
    return b"".join(f"{key}\0{value}\0".encode() for key, value in sorted(attributes.items()))
