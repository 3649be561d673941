"""A volume's topics after the campaign, read with plain fastavro and the published schemas: what they announce, and what they add up to.

No code of the agent, the CX or `stream` takes part: the decoder is the one of `tests/agent_rig.py`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fastavro

from tests.agent_rig import EPOCH_START, GAP_BEGIN, ROOT, SYNC_BEGIN, SYNC_END, WRITE, ZERO, decode_plain, read_topic, records_of

MARKS = {EPOCH_START: "epoch_start", SYNC_BEGIN: "sync_begin", SYNC_END: "sync_end", GAP_BEGIN: "gap_begin"}


@dataclass(frozen=True, slots=True)
class Announced:
    """A mark in the stream that tells of order lost or found: `at` in seconds since 1970, by the agent's clock."""

    mark: str
    at: float
    position: str
    attributes: dict[str, str]


@dataclass(slots=True)
class Stream:
    """What the writes topic of a volume says."""

    image: bytearray
    records: int = 0
    duplicates: int = 0
    payload_bytes: int = 0
    holes: list[str] = field(default_factory=list)
    announced: list[Announced] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {"records": self.records, "payload_bytes": self.payload_bytes, "duplicates": self.duplicates}

    def of(self, mark: str) -> list[Announced]:
        return [one for one in self.announced if one.mark == mark]


def fold(bootstrap: str, volume: str, size_bytes: int) -> Stream:
    """Return the volume's writes topic folded as it stands: duplicates dropped, the first claim of the newest epoch counts."""
    stream = Stream(bytearray(size_bytes))
    newest, last, incarnation = 0, 0, b""
    for value, _ in read_topic(bootstrap, f"ho.{volume}.writes"):
        body = decode_plain(value)
        epoch = body["epoch"]
        if epoch < newest or (epoch == newest and body["incarnation"] != incarnation):
            continue
        if epoch > newest:
            if EPOCH_START not in body["kinds"]:
                stream.holes.append(f"epoch {epoch} begins without its epoch_start")
            newest, last, incarnation = epoch, body["first_sequence"] - 1, body["incarnation"]
        elif body["first_sequence"] > last + 1:
            stream.holes.append(f"{epoch}-{last} is followed by {body['first_sequence']}")
        for record in records_of(body):
            if record[0] <= last:
                stream.duplicates += 1
                continue
            last = record[0]
            _take(stream, epoch, record)
    return stream


def journal_gaps(bootstrap: str, volume: str) -> list[dict[str, Any]]:
    """Return the gaps that the CX itself put into the journal."""
    schema = fastavro.parse_schema(json.loads((ROOT / "schemas" / "JournalGap.avsc").read_text(encoding="utf-8")))
    return [
        fastavro.schemaless_reader(io.BytesIO(value[10:]), schema, None)
        for value, headers in read_topic(bootstrap, f"ho.{volume}.journal")
        if headers.get("kind") == b"gap"
    ]


def gaps_by_reason(streams: Iterator[Stream] | list[Stream]) -> dict[str, int]:
    """Return how many gaps were announced, by reason; the first copy is none."""
    found: dict[str, int] = {}
    for stream in streams:
        for one in stream.announced:
            reason = _reason(one)
            if reason is not None:
                found[reason] = found.get(reason, 0) + 1
    return found


def _reason(one: Announced) -> str | None:
    if one.mark == "gap_begin":
        return one.attributes.get("reason", "without a reason")
    unclean = one.mark == "epoch_start" and one.attributes.get("clean") != "true" and one.attributes.get("first") != "true"
    return "unclean_stop" if unclean else None


def _take(stream: Stream, epoch: int, record: tuple) -> None:
    sequence, kind, _, offset, length, captured_ns, attributes, payload = record
    stream.records += 1
    if kind == WRITE:
        stream.image[offset : offset + length] = payload
        stream.payload_bytes += length
    elif kind == ZERO:
        stream.image[offset : offset + length] = bytes(length)
    elif kind in MARKS:
        stream.announced.append(Announced(MARKS[kind], captured_ns / 1e9, f"{epoch:08d}-{sequence:016d}", json.loads(attributes)))
