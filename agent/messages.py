"""Messages: what the ring holds, joined into batches no larger than Kafka takes.

Used by a publication. A topic whose size limit was lowered under the agent refuses a message for good: the same bytes are never sent
again, but the same records in ever smaller messages, down to one record (design rule 23).
"""

from __future__ import annotations

import json

from agent.pool import CHUNK_BYTES
from agent.ring import GAP_REASONS, W_EPOCH, VolumeRing
from stream.errors import IntegrityError
from stream.record import Batch, Kind

PUBLISH_BYTES_MAX = 256 << 10
PUBLISH_RECORDS_MAX = 2048


class MessageLimit:
    """How much one message takes: payload bytes and records, lowered by refusals."""

    def __init__(self) -> None:
        self.bytes_max = PUBLISH_BYTES_MAX
        self.records_max = PUBLISH_RECORDS_MAX

    @property
    def lowered(self) -> bool:
        return (self.bytes_max, self.records_max) != (PUBLISH_BYTES_MAX, PUBLISH_RECORDS_MAX)

    def lower(self, records: int, payload_bytes: int) -> bool:
        """Take half of a refused message from now on; False if it was a single record already, which nothing makes smaller."""
        self.records_max = max(1, min(self.records_max, records) // 2)
        if payload_bytes:
            self.bytes_max = max(1, min(self.bytes_max, payload_bytes) // 2)
        return records > 1

    def restore(self) -> None:
        """Take whole messages again."""
        self.bytes_max, self.records_max = PUBLISH_BYTES_MAX, PUBLISH_RECORDS_MAX


def collect(ring: VolumeRing, pool: memoryview, first: int, head: int, limit: MessageLimit) -> tuple[Batch, list[memoryview]]:
    """Return the records from `first` on, up to `head` at most, as a batch within the limit, and its payload where it lies; one record
    always fits.

    What they point to must not be freed meanwhile. Raises IntegrityError for a ring that can't be read.
    """
    kinds, flags = bytearray(), bytearray()
    offsets: list[int] = []
    lengths: list[int] = []
    times: list[int] = []
    payload: list[memoryview] = []
    marks: dict[int, dict[str, str]] = {}
    size, bytes_max = 0, limit.bytes_max
    for _, captured_ns, offset, length, chunk, start, kind, flag in ring.entries(pool, first, min(head, first + limit.records_max - 1)):
        if kind == Kind.WRITE:
            size += length
            if size > bytes_max and kinds:
                break
            at = chunk * CHUNK_BYTES + start
            payload.append(pool[at : at + length])
        elif kind >= Kind.EPOCH_START:
            if length:
                at = chunk * CHUNK_BYTES + start
                marks[len(kinds)] = _attributes(ring, bytes(pool[at : at + length]))
            elif start:
                marks[len(kinds)] = {"reason": GAP_REASONS[start]}
            offset = length = 0
        kinds.append(kind)
        flags.append(flag)
        offsets.append(offset)
        lengths.append(length)
        times.append(captured_ns)
    base = times[0]
    ages = [one - base for one in times]
    volume, epoch = ring.text("volume"), ring.words[W_EPOCH]
    return Batch(volume, epoch, first, base, bytes(kinds), bytes(flags), offsets, lengths, ages, b"", marks), payload


def _attributes(ring: VolumeRing, raw: bytes) -> dict[str, str]:
    """Return the attributes of a mark. Raises IntegrityError."""
    try:
        return json.loads(raw)
    except ValueError as error:
        raise IntegrityError("The attributes of a mark in a ring can't be read", path=ring.path, bytes=len(raw)) from error
