"""Messages and segments read by a stranger: fastavro, xxHash, the codecs and the published schemas, nothing of the product's code."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import lz4.block
import snappy
import xxhash
import zstandard

SCHEMAS = Path(__file__).parents[2] / "schemas"


@cache
def _by_fingerprint() -> dict[bytes, tuple[str, Any]]:
    found = {}
    for path in [*sorted(SCHEMAS.glob("published/*.avsc")), *sorted(SCHEMAS.glob("*.avsc"))]:
        definition = json.loads(path.read_text(encoding="utf-8"))
        form = fastavro.schema.to_parsing_canonical_form(definition)
        fingerprint = bytes.fromhex(fastavro.schema.fingerprint(form, "CRC-64-AVRO"))
        found[fingerprint] = definition["name"], fastavro.parse_schema(definition)
    return found


def message(value: bytes) -> tuple[str, dict[str, Any]]:
    """Return the schema's name and the fields of a message, its checksum proved."""
    assert value[:2] == b"\xc3\x01", "not in single-object encoding"
    assert xxhash.xxh3_64_digest(value[:-8]) == value[-8:], "a message's checksum is wrong"
    name, parsed = _by_fingerprint()[value[2:10]]
    return name, fastavro.schemaless_reader(io.BytesIO(value[10:]), parsed, None)


def segment(data: bytes) -> list[dict[str, Any]]:
    """Return the parts of a segment, the header first."""
    return [one["part"] for one in fastavro.reader(io.BytesIO(data))]


def payload(codec: str, packed: bytes, size_bytes: int) -> bytes:
    """Return what stands under a codec."""
    if codec == "none":
        return packed
    if codec == "snappy":
        return snappy.decompress(packed)
    if codec == "lz4":
        return lz4.block.decompress(packed, uncompressed_size=size_bytes)
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size_bytes)
