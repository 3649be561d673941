"""Avro schemas by name and by fingerprint, and the single-object envelope around every message.

A message is `C3 01`, the little-endian CRC-64-AVRO fingerprint of the writer's schema in parsing canonical form (Avro 1.12 specification,
"Single-object encoding"), the Avro body, whose last field is always `checksum`: xxh3_64, big-endian, of every byte before it. The
checksum is verified before anything is decoded, so a damaged message never reaches the Avro decoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import fastavro
import xxhash
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

import schemas
from stream.errors import IntegrityError

MARKER = b"\xc3\x01"
HEADER_BYTES = 10
CHECKSUM_BYTES = 8
MESSAGE_BYTES_MAX = 4 << 20
_NO_CHECKSUM = bytes(CHECKSUM_BYTES)


class Schema:
    """One published schema, ready to encode and decode."""

    __slots__ = ("_header", "name", "parsed")

    def __init__(self, definition: dict[str, Any]) -> None:
        self.name: str = definition["name"]
        self.parsed = parse_schema(definition)
        self._header = MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(definition), "CRC-64-AVRO"))

    @property
    def fingerprint(self) -> bytes:
        return self._header[2:]

    def encode(self, body: dict[str, Any]) -> bytes:
        """Return the whole message; `body` lacks the checksum, which is filled in here."""
        out = BytesIO()
        out.write(self._header)
        body["checksum"] = _NO_CHECKSUM
        fastavro.schemaless_writer(out, self.parsed, body)
        end = out.tell() - CHECKSUM_BYTES
        with out.getbuffer() as view:
            view[end:] = xxhash.xxh3_64_digest(view[:end])
        return out.getvalue()

    def encode_around(self, body: dict[str, Any], pieces: Sequence[memoryview], size_bytes: int) -> bytes:
        """Return the message whose field `payload`, the last one before the checksum, holds `pieces`, which are copied once.

        An Avro library would copy them three times, which was a third of the publisher's work. The bytes are the same (golden files).
        """
        body["payload"] = b""
        empty = self.encode(body)
        parts = [empty[: -CHECKSUM_BYTES - 1], _long(size_bytes), *pieces]  # an empty payload is one zero byte before the checksum
        checksum = xxhash.xxh3_64()
        for part in parts:
            checksum.update(part)
        parts.append(checksum.digest())
        return b"".join(parts)


def _long(value: int) -> bytes:
    """Return a non-negative Avro long: zig-zag, seven bits a byte, the least first (Avro 1.12, "Binary encoding")."""
    value <<= 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@cache
def schema(name: str) -> Schema:
    """Return the current schema of that name."""
    return Schema(json.loads((schemas.FOLDER / f"{name}.avsc").read_text(encoding="utf-8")))


@cache
def _published() -> dict[bytes, Schema]:
    """Return every schema that was ever published, by fingerprint."""
    found = {}
    for path in [*schemas.FOLDER.glob("published/*.avsc"), *schemas.FOLDER.glob("*.avsc")]:
        one = Schema(json.loads(path.read_text(encoding="utf-8")))
        found[one.fingerprint] = one
    return found


def decode(value: bytes, *, topic: str = "", kafka_offset: int | None = None) -> tuple[str, dict[str, Any]]:
    """Verify and decode one message; return its schema's name and its body as the current schema shows it.

    Raises IntegrityError, naming topic and kafka_offset, when a single byte is not what was written or the schema is not known.
    """
    place = {"topic": topic or None, "kafka_offset": kafka_offset}
    if len(value) < HEADER_BYTES + CHECKSUM_BYTES or value[:2] != MARKER:
        raise IntegrityError("A message is not in Avro single-object encoding", **place, hint=_HINT)
    end = len(value) - CHECKSUM_BYTES
    if xxhash.xxh3_64_digest(memoryview(value)[:end]) != value[end:]:
        raise IntegrityError("A message's checksum does not match its bytes", **place, hint=_HINT)
    writer = _published().get(value[2:HEADER_BYTES])
    if writer is None:
        raise IntegrityError(
            "A message has a schema that this version does not know",
            **place,
            fingerprint=value[2:HEADER_BYTES].hex(),
            hint="Upgrade this process: the message was written by a newer one.",
        )
    source = BytesIO(value)
    source.seek(HEADER_BYTES)
    current = schema(writer.name)
    try:
        if current.fingerprint == writer.fingerprint:
            body = fastavro.schemaless_reader(source, writer.parsed, None)
        else:
            body = fastavro.schemaless_reader(source, writer.parsed, current.parsed)
    except Exception as error:  # fastavro raises whatever the decoder stumbles on
        raise IntegrityError(f"A message can't be decoded: {error}", **place, hint=_HINT) from error
    if source.tell() != len(value):
        raise IntegrityError("A message has bytes after its end", **place, hint=_HINT)
    return writer.name, body


_HINT = "Keep the topic as it is; compare the message with another copy, or resync the volume."
