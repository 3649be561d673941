"""Write the golden files: one message of every schema and one segment, each with a JSON file beside it that says its content.

A second implementation of `schemas/README.md`, made from the Avro library, the hash and that page alone; it imports nothing else of this
project, so that the tests compare two encoders. Run by hand, for a new version of a schema: `python schemas/golden/make.py`. Bytes that
exist are never written anew: a version that was published does not change.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import fastavro
import xxhash
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "published"
INCARNATION = bytes(range(1, 9))
NOW_NS = 1_700_000_000_000_000_000
PAYLOAD = b"abcd" * 6
SNAPPY = b"\x18\x0cabcd\x1d\x04\x15\x04"  # 24 bytes: the literal abcd, then 11 and 9 bytes from 4 bytes back
ZERO_DIGEST = bytes(16)
NO_CHECKSUM = bytes(8)
EPOCH_START = {
    "agent": "host1",
    "believed": "00000000-0000000000000000",
    "clean": "true",
    "first": "true",
    "size_bytes": "1048576",
    "topic_id": "w",
}

# kind, flags, offset_bytes, length_bytes, age_ns, attributes of a mark
RECORDS: list[tuple[int, int, int, int, int, dict[str, str] | None]] = [
    (16, 0, 0, 0, 0, EPOCH_START),
    (1, 0, 0, 8, 1000, None),
    (2, 0, 4096, 8192, 2000, None),
    (4, 0, 0, 0, 3000, None),
    (1, 1, 16, 8, 4000, None),
    (1, 0, 24, 8, 4000, None),
    (17, 0, 0, 0, 5000, {"owed_bytes": "4096", "reason": "first_copy"}),
    (18, 0, 0, 0, 6000, {"closes": ""}),
    (19, 0, 0, 0, 7000, {"reason": "buffer_full"}),
    (21, 0, 0, 0, 8000, {"group": "", "label": "vor dem Umbau: ü"}),
    (22, 0, 0, 0, 9000, {"digest": "00ff", "length_bytes": "4096", "offset_bytes": "0"}),
    (23, 0, 0, 0, 10000, {"size_bytes": "2097152"}),
    (24, 0, 0, 0, 11000, {}),
]
SECOND_RECORDS = [(1, 0, 8, 4, 0, None)]
SECOND_PAYLOAD = b"efgh"
SECOND_NS = NOW_NS + 1_000_000
GAP = {"epoch": 1, "sequence": 9, "reason": "buffer_full", "begun_at_ns": NOW_NS + 7000}
LOST = {"epoch": 1, "sequence": 13, "reason": "retention", "begun_at_ns": NOW_NS + 500_000}


def digest(before: bytes, first: int, begun_ns: int, records: list, payload: bytes) -> bytes:
    """Chain the digest over the records of epoch 1."""
    at = 0
    for index, (kind, flags, offset, length, age, attributes) in enumerate(records):
        told = before + struct.pack("<QQBBQQQ", 1, first + index, kind, flags, offset, length, begun_ns + age)
        if kind == 1:
            told += xxhash.xxh3_128(payload[at : at + length]).digest()
            at += length
        elif attributes is not None:
            text = "".join(f"{key}\0{value}\0" for key, value in sorted(attributes.items()))
            told += xxhash.xxh3_128(text.encode()).digest()
        before = xxhash.xxh3_128(told).digest()
    return before


def columns(first: int, begun_ns: int, records: list) -> dict[str, Any]:
    return {
        "volume": "golden",
        "epoch": 1,
        "incarnation": INCARNATION,
        "first_sequence": first,
        "capture_time_ns": begun_ns,
        "kinds": bytes(one[0] for one in records),
        "flags": bytes(one[1] for one in records),
        "offsets": [one[2] for one in records],
        "lengths": [one[3] for one in records],
        "ages_ns": [one[4] for one in records],
        "marks": [{"index": index, "attributes": one[5]} for index, one in enumerate(records) if one[5] is not None],
    }


FIRST_DIGEST = digest(ZERO_DIGEST, 1, NOW_NS, RECORDS, PAYLOAD)
SECOND_DIGEST = digest(FIRST_DIGEST, 14, SECOND_NS, SECOND_RECORDS, SECOND_PAYLOAD)


def state(sequence: int, next_kafka_offset: int, running: bytes, gaps: list) -> dict[str, Any]:
    return {
        "topic_id": "writes-topic-id",
        "next_kafka_offset": next_kafka_offset,
        "epoch": 1,
        "incarnation": INCARNATION,
        "sequence": sequence,
        "digest": running,
        "open_gaps": gaps,
    }


JOURNAL_BATCH = columns(1, NOW_NS, RECORDS) | {
    "codec": "snappy",
    "payload": SNAPPY,
    "payload_bytes": len(PAYLOAD),
    "writer": 0,
    "follows_epoch": 0,
    "follows_sequence": 0,
    "digest_before": ZERO_DIGEST,
    "state": state(13, 1, FIRST_DIGEST, [GAP]),
}
SECOND_BATCH = columns(14, SECOND_NS, SECOND_RECORDS) | {
    "codec": "none",
    "payload": SECOND_PAYLOAD,
    "payload_bytes": len(SECOND_PAYLOAD),
    "writer": 0,
    "follows_epoch": 1,
    "follows_sequence": 13,
    "digest_before": FIRST_DIGEST,
    "state": state(14, 5, SECOND_DIGEST, [GAP, LOST]),
}
JOURNAL_GAP = {
    "volume": "golden",
    "writer": 0,
    "reason": "retention",
    "missing": "messages 1 to 3",
    "at_ns": NOW_NS + 500_000,
    "state": state(13, 4, FIRST_DIGEST, [GAP, LOST]),
}
MESSAGES: dict[str, dict[str, Any]] = {
    "WriteBatch": columns(1, NOW_NS, RECORDS) | {"payload": PAYLOAD},
    "JournalBatch": JOURNAL_BATCH,
    "JournalGap": JOURNAL_GAP,
    "JournalFence": {"volume": "golden", "worker": "cx-1", "at_ns": NOW_NS},
    "VolumeDeclaration": {
        "volume": "golden",
        "agent": "host1",
        "source": "/dev/vg0/data",
        "size_bytes": 1048576,
        "state": "paused",
        "flush_policy": "stream",
        "codec": "zstd",
        "replicas": [{"target": "target", "path": "/srv/replica.img", "delay_s": 1.5}],
        "declared_at_ns": NOW_NS,
    },
    "GroupDeclaration": {
        "group": "shop",
        "agent": "host1",
        "volumes": ["golden", "logs"],
        "declared_at_ns": NOW_NS,
    },
    "Bookmark": {
        "volume": "golden",
        "label": "vor dem Umbau: ü",
        "group": "shop",
        "epoch": 1,
        "sequence": 10,
        "capture_time_ns": NOW_NS + 8000,
    },
    "EpochClaim": {
        "volume": "golden",
        "epoch": 1,
        "incarnation": INCARNATION,
        "agent": "host1",
        "topic_id": "writes-topic-id",
        "first_sequence": 1,
        "claimed_at_ns": NOW_NS,
    },
    "Request": {
        "id": "r1",
        "kind": "resync",
        "volume": "golden",
        "attributes": {"gap": "00000001-0000000000000013", "reason": "retention"},
        "asked_by": "cx-1",
        "asked_at_ns": NOW_NS,
    },
    "Answer": {
        "id": "r1",
        "done": True,
        "attributes": {"position": "00000001-0000000000000014"},
        "answered_by": "host1",
        "answered_at_ns": NOW_NS,
    },
    "ProcessReport": {
        "kind": "target",
        "instance": "host2-target",
        "host": "host2",
        "pid": 4711,
        "at_ns": NOW_NS,
        "volumes": [{"volume": "golden", "epoch": 1, "sequence": 14, "facts": {"mode": "DATA"}}],
    },
}


def read_schema(name: str, version: int) -> tuple[Any, str]:
    definition = json.loads((PUBLISHED / f"{name}.v{version}.avsc").read_text(encoding="utf-8"))
    return parse_schema(definition), to_parsing_canonical_form(definition)


def avro(schema: Any, body: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, body)
    return out.getvalue()


def message(name: str, version: int, body: dict[str, Any]) -> bytes:
    """Return the message in single-object encoding, its checksum last."""
    schema, canonical = read_schema(name, version)
    start = b"\xc3\x01" + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))
    start += avro(schema, body | {"checksum": NO_CHECKSUM})[:-8]
    return start + xxhash.xxh3_64(start).digest()


def number(value: int) -> bytes:
    """Return an Avro long."""
    return avro("long", value)


def block(schema: Any, kind: str, body: dict[str, Any]) -> bytes:
    """Return an Avro block of one object, without the sync marker."""
    data = avro(schema, {"part": (f"hostoffload.{kind}", body), "checksum": NO_CHECKSUM})
    start = number(1) + number(len(data)) + data[:-8]
    return start + xxhash.xxh3_64(start).digest()


def segment(version: int) -> tuple[bytes, dict[str, Any]]:
    """Return the file of one segment: the two journal batches above and the gap between them."""
    schema, canonical = read_schema("Segment", version)
    newer = {"table": []} if version > 1 else {}
    batches = [JOURNAL_BATCH | {"kafka_offset": 1} | newer, SECOND_BATCH | {"kafka_offset": 3} | newer]
    blocks = [block(schema, "StoredBatch", body) for body in batches]
    table, at = [], 0
    for body, data in zip(batches, blocks, strict=True):
        length = len(data) + 16
        table.append(
            {
                "epoch": 1,
                "first_sequence": body["first_sequence"],
                "records": len(body["kinds"]),
                "capture_time_ns": body["capture_time_ns"],
                "last_capture_time_ns": body["capture_time_ns"] + body["ages_ns"][-1],
                "offset_bytes": at,
                "length_bytes": length,
                "payload_bytes": body["payload_bytes"],
                "checksum": data[-8:],
            }
        )
        at += length
    header = segment_header(table) | ({"pages": []} if version > 1 else {})
    return container(schema, canonical, header, blocks), {"header": header, "batches": batches}


def container(schema: Any, canonical: str, header: dict[str, Any], blocks: list[bytes]) -> bytes:
    """Return the Avro file of a header and the blocks behind it."""
    index = block(schema, "SegmentHeader", header)
    told = {"avro.codec": b"null", "avro.schema": canonical.encode(), "hostoffload.index": index[-8:].hex().encode()}
    head = b"Obj\x01" + number(len(told))
    for key, value in told.items():
        head += number(len(key)) + key.encode() + number(len(value)) + value
    head += number(0)
    sync = xxhash.xxh3_128(head).digest()
    return head + sync + b"".join(part + sync for part in (index, *blocks))


def fold(version: int) -> tuple[bytes, dict[str, Any]]:
    """Return the file of a fold of that segment, up to its fourth record: a block and the page that lists it."""
    schema, canonical = read_schema("Segment", version)
    held = extents([(1, 0, 8), (2, 4096, 8192)], b"abcdabcd")
    blocks = [block(schema, "StoredBatch", held)]
    size = len(blocks[0]) + 16
    table = [{"extents": 2, "offset_bytes": 0, "length_bytes": size, "payload_bytes": 8, "checksum": blocks[0][-8:]}]
    page = extents([(1, 0, 8), (2, 4096, 8192)], b"") | {"table": table}
    blocks.append(block(schema, "StoredBatch", page))
    told = {"start_bytes": 0, "end_bytes": 12288, "extents": 2, "offset_bytes": size, "length_bytes": len(blocks[-1]) + 16}
    whole = segment_header([])
    header = whole | {
        "level": 1,
        "last_sequence": 4,
        "digest_after": digest(ZERO_DIGEST, 1, NOW_NS, RECORDS[:4], b"abcdabcd"),
        "last_capture_time_ns": NOW_NS + 3000,
        "open_gaps": [],
        "gaps": [],
        "marks": [mark | {"record": -1} for mark in whole["marks"][:1]],
        "flushes": [],
        "extent_steps": [],
        "extent_lengths": [],
        "extent_records": [],
        "extent_payloads": [],
        "pages": [told | {"checksum": blocks[-1][-8:]}],
    }
    return container(schema, canonical, header, blocks), {"header": header, "batches": [held, page]}


def extents(told: list[tuple[int, int, int]], payload: bytes) -> dict[str, Any]:
    """Return the block of a fold that ends at the fourth record, with these extents: kind, offset and length."""
    nothing = {"topic_id": "", "next_kafka_offset": 0, "epoch": 0, "incarnation": bytes(8), "sequence": 0}
    return {
        "volume": "golden",
        "epoch": 1,
        "incarnation": bytes(8),
        "first_sequence": 4,
        "capture_time_ns": 0,
        "kinds": bytes(kind for kind, _, _ in told),
        "flags": b"",
        "offsets": [offset for _, offset, _ in told],
        "lengths": [length for _, _, length in told],
        "ages_ns": [],
        "marks": [],
        "codec": "none",
        "payload": payload,
        "payload_bytes": len(payload),
        "writer": -1,
        "follows_epoch": 1,
        "follows_sequence": 4,
        "digest_before": ZERO_DIGEST,
        "state": nothing | {"digest": ZERO_DIGEST, "open_gaps": []},
        "kafka_offset": -1,
        "table": [],
    }


def segment_header(table: list) -> dict[str, Any]:
    marks = [
        {"epoch": 1, "sequence": index + 1, "kind": one[0], "capture_time_ns": NOW_NS + one[4], "record": index, "attributes": one[5]}
        for index, one in enumerate(RECORDS)
        if one[0] >= 16 and one[0] != 24
    ]
    return {
        "volume": "golden",
        "level": 0,
        "first_epoch": 1,
        "first_sequence": 1,
        "last_epoch": 1,
        "last_sequence": 14,
        "follows_epoch": 0,
        "follows_sequence": 0,
        "digest_before": ZERO_DIGEST,
        "digest_after": SECOND_DIGEST,
        "first_capture_time_ns": NOW_NS,
        "last_capture_time_ns": SECOND_NS,
        "topic_id": "journal-topic-id",
        "first_kafka_offset": 0,
        "next_kafka_offset": 4,
        "fence": 0,
        "ends_inside_split": False,
        "open_gaps_before": [],
        "open_gaps": [GAP, LOST],
        "gaps": [
            {"epoch": 1, "sequence": 13, "reason": "retention", "missing": "messages 1 to 3", "at_ns": NOW_NS + 500_000, "kafka_offset": 2}
        ],
        "marks": marks,
        "flushes": [3],
        "blocks": table,
        "extent_steps": [0, 8, 8, 8, 4072],
        "extent_lengths": [8, 4, 8, 8, 8192],
        "extent_records": [1, 13, 4, 5, 2],
        "extent_payloads": [0, 0, 8, 16, -1],
    }


def shown(value: Any) -> Any:
    """Return content for JSON: bytes as `hex:...`."""
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else value


def keep(path: Path, data: bytes) -> None:
    """Write a file that does not exist; one that does must have these bytes."""
    if not path.exists():
        path.write_bytes(data)
        print(f"made {path.name}")
    elif path.read_bytes() != data:
        sys.exit(f"{path.name} exists and has other bytes: publish a new version")


def main() -> None:
    for name, body in MESSAGES.items():
        keep(HERE / f"{name}.v1.bin", message(name, 1, body))
        keep(HERE / f"{name}.v1.json", (json.dumps(shown(body), indent=1, ensure_ascii=False) + "\n").encode())
    for name, (whole, content) in {"Segment.v1": segment(1), "Segment.v2": segment(2), "Fold.v2": fold(2)}.items():
        keep(HERE / f"{name}.avro", whole)
        keep(HERE / f"{name}.json", (json.dumps(shown(content), indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
