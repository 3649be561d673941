"""Compress: pieces that order let through become one journal batch, its payload under the volume's codec. Pure.

Called by the volume's worker. Small pieces that waited together are joined first: a message, its checksum, its state and a compression
cost the same for one record as for a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cx_consumers.order import Piece
from stream.compression import compress
from stream.journal import JournalBatch
from stream.record import BATCH_RECORDS_MAX, Batch, attribute_bytes
from stream.schema import MESSAGE_BYTES_MAX

JOIN_BYTES_MAX = 256 << 10  # above it joining costs a copy and saves nothing
PIECE_BYTES_MAX = MESSAGE_BYTES_MAX - (768 << 10)  # incompressible, with its columns and a state full of gaps, it is a message still


class Joint:
    """Consecutive pieces that go into one journal batch."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._records = 0
        self._bytes = 0

    def fits(self, piece: Piece) -> bool:
        """Tell whether `piece` may be added: it follows the last one in the same claim, and the batch stays within its limits."""
        if not self.pieces:
            return True
        first, last, batch = self.pieces[0].batch, self.pieces[-1].batch, piece.batch
        if batch.epoch != last.epoch or piece.incarnation != self.pieces[-1].incarnation:
            return False
        if batch.first_sequence != last.first_sequence + last.count or batch.capture_time_ns < first.capture_time_ns:
            return False
        return self._records + batch.count <= BATCH_RECORDS_MAX and self._bytes + content_bytes(batch) <= JOIN_BYTES_MAX

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._records += piece.batch.count
        self._bytes += content_bytes(piece.batch)


def content_bytes(batch: Batch) -> int:
    """Return the bytes of payload and attributes: all of a batch that has no limit by its number of records."""
    return len(batch.payload) + sum(len(attribute_bytes(told)) for told in batch.marks.values())


def parts(batch: Batch) -> list[Batch]:
    """Return a batch in parts that each make one journal message whatever their codec gains; nearly always the batch itself."""
    if content_bytes(batch) <= PIECE_BYTES_MAX or batch.count == 1:
        return [batch]
    half = batch.count // 2
    return [*parts(batch.slice(0, half)), *parts(batch.slice(half, batch.count))]


def pack(pieces: Sequence[Piece], codec: str, writer: int) -> JournalBatch:
    """Return the journal batch of consecutive pieces, written by the worker whose incarnation is `writer`."""
    batch = join([piece.batch for piece in pieces])
    used, packed = compress(codec, batch.payload)
    return JournalBatch(
        records=replace(batch, payload=b""),
        incarnation=pieces[0].incarnation,
        codec=used,
        payload_bytes=len(batch.payload),
        writer=writer,
        follows=pieces[0].before.position,
        digest_before=pieces[0].before.digest,
        state=pieces[-1].after,
        packed=packed,
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Return consecutive batches of one epoch as one; their order and every record's capture time stay."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    ages_ns: list[int] = []
    marks = {}
    for batch in batches:
        later_ns = batch.capture_time_ns - first.capture_time_ns
        ages_ns.extend(age + later_ns for age in batch.ages_ns)
        start = batch.first_sequence - first.first_sequence
        marks |= {index + start: told for index, told in batch.marks.items()}
    return replace(
        first,
        kinds=b"".join(batch.kinds for batch in batches),
        flags=b"".join(batch.flags for batch in batches),
        offsets=[offset for batch in batches for offset in batch.offsets],
        lengths=[length for batch in batches for length in batch.lengths],
        ages_ns=ages_ns,
        payload=b"".join(batch.payload for batch in batches),
        marks=marks,
    )
