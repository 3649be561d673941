"""Messages to bytes and back: `WriteBatch` of the writes topic and the entries of the journal.

Called by publisher, order, target, persist and replay. Both directions check the whole shape; a decoder raises IntegrityError that names
topic and kafka_offset for any byte that is not what was written. Byte tables: `schemas/README.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stream.compression import decompress
from stream.errors import IntegrityError
from stream.journal import JournalBatch, JournalEntry, JournalFence, JournalGap, JournalState, OpenGap
from stream.position import Position
from stream.record import Batch, chain_digest
from stream.schema import decode, schema


def encode_writes(batch: Batch, incarnation: bytes, pieces: Sequence[memoryview] | None = None) -> bytes:
    """Return the WriteBatch message of `batch`; a wrongly shaped batch is our bug.

    With `pieces` the payload is theirs, one behind the other, and `batch` has none: each byte is copied once.
    """
    given = [memoryview(batch.payload)] if pieces is None else pieces
    size_bytes = sum(map(len, given))
    problem = batch.problem(size_bytes)
    assert problem is None, problem
    return schema("WriteBatch").encode_around(_columns(batch, incarnation), given, size_bytes)


def decode_writes(value: bytes, *, topic: str = "", kafka_offset: int | None = None) -> tuple[Batch, bytes]:
    """Return the batch and the incarnation of its agent. Raises IntegrityError."""
    name, body = decode(value, topic=topic, kafka_offset=kafka_offset)
    if name != "WriteBatch":
        raise IntegrityError(f"A {name} stands where a WriteBatch is expected", topic=topic, kafka_offset=kafka_offset)
    return _batch(body, body["payload"], topic, kafka_offset), body["incarnation"]


def encode_journal(entry: JournalEntry) -> bytes:
    """Return the journal message of `entry`."""
    if isinstance(entry, JournalFence):
        return schema("JournalFence").encode({"volume": entry.volume, "worker": entry.worker, "at_ns": entry.at_ns})
    if isinstance(entry, JournalGap):
        body = {name: getattr(entry, name) for name in ("volume", "writer", "reason", "missing", "at_ns")}
        body["state"] = _state_body(entry.state)
        return schema("JournalGap").encode(body)
    return schema("JournalBatch").encode(journal_body(entry))


def decode_journal(value: bytes, *, topic: str = "", kafka_offset: int | None = None) -> JournalEntry:
    """Return the entry; a JournalBatch comes without payload in `records` until `unpack`. Raises IntegrityError."""
    name, body = decode(value, topic=topic, kafka_offset=kafka_offset)
    try:
        if name == "JournalFence":
            return JournalFence(body["volume"], body["worker"], body["at_ns"])
        if name == "JournalGap":
            told = (body[name] for name in ("volume", "writer", "reason", "missing", "at_ns"))
            return JournalGap(*told, state=_state(body["state"]))
        if name == "JournalBatch":
            return journal_batch(body)
    except ValueError as error:
        raise IntegrityError(f"A journal message is malformed: {error}", topic=topic, kafka_offset=kafka_offset) from error
    raise IntegrityError(f"A {name} stands in a journal", topic=topic, kafka_offset=kafka_offset)


def journal_body(entry: JournalBatch) -> dict[str, Any]:
    """Return the fields of a JournalBatch as its schema names them, less the checksum. The store's blocks hold the same fields."""
    body = _columns(entry.records, entry.incarnation)
    return body | {
        "codec": entry.codec,
        "payload": entry.packed,
        "payload_bytes": entry.payload_bytes,
        "writer": entry.writer,
        "follows_epoch": entry.follows.epoch,
        "follows_sequence": entry.follows.sequence,
        "digest_before": entry.digest_before,
        "state": _state_body(entry.state),
    }


def journal_batch(body: dict[str, Any]) -> JournalBatch:
    """Return the JournalBatch of these fields, its records without payload until `unpack`. Raises ValueError."""
    return JournalBatch(
        _batch(body, None, "", None),
        body["incarnation"],
        body["codec"],
        body["payload_bytes"],
        body["writer"],
        Position(body["follows_epoch"], body["follows_sequence"]),
        body["digest_before"],
        _state(body["state"]),
        body["payload"],
    )


def open_gaps_body(gaps: Sequence[OpenGap]) -> list[dict[str, Any]]:
    """Return open gaps as the schemas' `Gap` names their fields."""
    return [
        {"epoch": gap.position.epoch, "sequence": gap.position.sequence, "reason": gap.reason, "begun_at_ns": gap.begun_at_ns}
        for gap in gaps
    ]


def open_gaps(body: list[dict[str, Any]]) -> tuple[OpenGap, ...]:
    """Return the open gaps of these fields. Raises ValueError for a position out of range."""
    return tuple(OpenGap(Position(gap["epoch"], gap["sequence"]), gap["reason"], gap["begun_at_ns"]) for gap in body)


def unpack(entry: JournalBatch, *, topic: str = "", kafka_offset: int | None = None) -> Batch:
    """Return the records with their payload, decompressed and checked against the running digest. Raises IntegrityError."""
    try:
        batch = replace(entry.records, payload=decompress(entry.codec, entry.packed, entry.payload_bytes))
    except IntegrityError as error:
        error.facts |= {"topic": topic or None, "kafka_offset": kafka_offset, "volume": entry.volume}
        raise
    problem = batch.problem()
    if problem is None and entry.state.position != batch.last:
        problem = f"its state stands at {entry.state.position}, its last record at {batch.last}"
    if problem is None and chain_digest(entry.digest_before, batch) != entry.state.digest:
        problem = "the running digest does not match the records"
    if problem is not None:
        raise IntegrityError(
            f"A journal batch is wrong: {problem}", topic=topic, kafka_offset=kafka_offset, volume=batch.volume, position=batch.first
        )
    return batch


def _columns(batch: Batch, incarnation: bytes) -> dict[str, Any]:
    return {
        "volume": batch.volume,
        "epoch": batch.epoch,
        "incarnation": incarnation,
        "first_sequence": batch.first_sequence,
        "capture_time_ns": batch.capture_time_ns,
        "kinds": batch.kinds,
        "flags": batch.flags,
        "offsets": batch.offsets,
        "lengths": batch.lengths,
        "ages_ns": batch.ages_ns,
        "marks": [{"index": index, "attributes": dict(told)} for index, told in sorted(batch.marks.items())],
    }


def _batch(body: dict[str, Any], payload: bytes | None, topic: str, kafka_offset: int | None) -> Batch:
    batch = Batch(
        body["volume"],
        body["epoch"],
        body["first_sequence"],
        body["capture_time_ns"],
        body["kinds"],
        body["flags"],
        body["offsets"],
        body["lengths"],
        body["ages_ns"],
        b"" if payload is None else payload,
        {mark["index"]: mark["attributes"] for mark in body["marks"]},
    )
    if payload is not None and (problem := batch.problem()) is not None:
        raise IntegrityError(f"A batch is malformed: {problem}", topic=topic, kafka_offset=kafka_offset, volume=batch.volume)
    return batch


def _state_body(state: JournalState) -> dict[str, Any]:
    return {
        "topic_id": state.topic_id,
        "next_kafka_offset": state.next_kafka_offset,
        "epoch": state.position.epoch,
        "incarnation": state.incarnation,
        "sequence": state.position.sequence,
        "digest": state.digest,
        "open_gaps": open_gaps_body(state.open_gaps),
    }


def _state(body: dict[str, Any]) -> JournalState:
    return JournalState(
        body["topic_id"],
        body["next_kafka_offset"],
        Position(body["epoch"], body["sequence"]),
        body["incarnation"],
        body["digest"],
        open_gaps(body["open_gaps"]),
    )
