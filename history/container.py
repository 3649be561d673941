"""The container of a segment: an Avro Object Container File in which no byte is without a check.

    file     = head · block of the header · block of a stored batch ...
    head     = "Obj" 01 · map {avro.codec: "null", avro.schema: JSON, hostoffload.index: checksum of the first block, 16 hex digits} · sync
    sync     = xxh3_128, big-endian, of the head before it
    block    = count (1) · size of the object · object · sync
    object   = part · checksum: xxh3_64, big-endian, of the block before it, from its count on

The first block lists the checksums of the others, the head that of the first block, and the sync marker, which differs from file to file,
ends every block. So a block is proved by a ranged read of the first block and of itself. Pure; used by `history.builder` and
`history.reader`.
Source: Avro 1.12 specification, "Object Container Files".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import fastavro
import xxhash
from fastavro.schema import parse_schema, to_parsing_canonical_form

from stream.errors import IntegrityError
from stream.schema import CHECKSUM_BYTES, schema

MAGIC = b"Obj\x01"
SYNC_BYTES = 16
TAIL_BYTES = CHECKSUM_BYTES + SYNC_BYTES
HEAD_BYTES_MAX = 64 << 10
INDEX_BYTES_MAX = 64 << 20
INDEX_KEY = "hostoffload.index"
_COUNT_ONE = b"\x02"
_VARINT_BYTES_MAX = 10
_NO_CHECKSUM = bytes(CHECKSUM_BYTES)


@dataclass(frozen=True, slots=True)
class Head:
    """What a file begins with; `schema` is the writer's own, `length_bytes` where the first block begins."""

    schema: Any
    sync: bytes
    index_checksum: bytes
    length_bytes: int


def encode_head(index_checksum: bytes) -> tuple[bytes, bytes]:
    """Return the head of a file and its sync marker."""
    told = {"avro.codec": b"null", "avro.schema": _schema_text().encode(), INDEX_KEY: index_checksum.hex().encode()}
    out = [MAGIC, _varint(len(told))]
    for key, value in sorted(told.items()):
        out += [_varint(len(key)), key.encode(), _varint(len(value)), value]
    out.append(_varint(0))
    head = b"".join(out)
    sync = xxhash.xxh3_128_digest(head)
    return head + sync, sync


def encode_block(name: str, body: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return the block of one object, without its sync marker, and its checksum. `name` is the record of the union `part`."""
    out = BytesIO()
    fastavro.schemaless_writer(out, schema("Segment").parsed, {"part": (f"hostoffload.{name}", body), "checksum": _NO_CHECKSUM})
    prefix = _COUNT_ONE + _varint(out.tell())
    end = out.tell() - CHECKSUM_BYTES
    hashed = xxhash.xxh3_64(prefix)
    with out.getbuffer() as view:
        hashed.update(view[:end])
        checksum = hashed.digest()
        view[end:] = checksum
        return prefix + view, checksum


def decode_head(data: bytes, path: str) -> Head:
    """Read and prove the head at the beginning of a file. Raises IntegrityError that names the file."""
    try:
        told, end = _read_map(data)
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise IntegrityError(f"A segment does not begin like one: {error}", path=path, hint=_HINT) from error
    sync = data[end : end + SYNC_BYTES]
    if xxhash.xxh3_128_digest(data[:end]) != sync:
        raise IntegrityError("The head of a segment does not match its digest", path=path, hint=_HINT)
    try:
        if told["avro.codec"] != b"null":
            raise ValueError(f"codec {told['avro.codec']!r}")
        return Head(_parsed(told["avro.schema"].decode()), sync, bytes.fromhex(told[INDEX_KEY].decode()), end + SYNC_BYTES)
    except Exception as error:  # the digest fits, so a newer version wrote what this one can't read
        raise IntegrityError(f"A segment's head can't be read: {error}", path=path, hint=_HINT_NEWER) from error


def index_bytes(data: bytes, head: Head, path: str) -> int:
    """Return the length of the first block, from its count to its sync marker, told by its beginning."""
    begin = data[head.length_bytes : head.length_bytes + 1 + _VARINT_BYTES_MAX]
    try:
        size, at = _read_varint(begin, 1)
    except (IndexError, ValueError):
        size, at = -1, 0
    if begin[:1] != _COUNT_ONE or not CHECKSUM_BYTES < size <= INDEX_BYTES_MAX:
        raise IntegrityError("A segment's first block has no believable length", path=path, hint=_HINT)
    return at + size + SYNC_BYTES


def decode_block(block: memoryview, head: Head, checksum: bytes, path: str, at_bytes: int) -> dict[str, Any]:
    """Prove a block, from its count to its sync marker, and return its `part` as the current schema shows it. Raises IntegrityError."""
    if len(block) <= TAIL_BYTES or block[-SYNC_BYTES:] != head.sync:
        raise IntegrityError("A block of a segment does not end with the file's sync marker", path=path, at_bytes=at_bytes, hint=_HINT)
    return decode_object(block[:-SYNC_BYTES], head.schema, checksum, path, at_bytes)


def decode_object(block: memoryview, written: Any, checksum: bytes, path: str, at_bytes: int) -> dict[str, Any]:
    """Prove a block without its sync marker and return its `part`; `written` is the writer's schema. Raises IntegrityError."""
    place = {"path": path, "at_bytes": at_bytes}
    end = len(block) - CHECKSUM_BYTES
    if not block[end:] == xxhash.xxh3_64_digest(block[:end]) == checksum:
        raise IntegrityError("A block of a segment does not match its checksum", **place, hint=_HINT)
    try:
        size, begin = _read_varint(block, 1)
        if block[:1] != _COUNT_ONE or begin + size != len(block):
            raise ValueError("its length is not what it says")
        source = BytesIO(block)
        source.seek(begin)
        current = schema("Segment").parsed
        body = fastavro.schemaless_reader(source, written, None if written is current else current)
        if source.tell() != begin + size:
            raise ValueError("bytes after its end")
    except Exception as error:  # fastavro raises whatever the decoder stumbles on
        raise IntegrityError(f"A block of a segment can't be decoded: {error}", **place, hint=_HINT_NEWER) from error
    return body["part"]


def decode_outline(block: memoryview, head: Head, path: str, at_bytes: int) -> dict[str, Any]:
    """Prove the first block of a file, and return the fields of its header that stand before the extent index. Raises IntegrityError.

    The index is most of a header, and most of the time that decoding takes.
    """
    place = {"path": path, "at_bytes": at_bytes}
    end = len(block) - TAIL_BYTES
    if (
        end <= 0
        or block[-SYNC_BYTES:] != head.sync
        or not block[end:-SYNC_BYTES] == xxhash.xxh3_64_digest(block[:end]) == head.index_checksum
    ):
        raise IntegrityError("The header of a segment does not match its checksum", **place, hint=_HINT)
    try:
        _, begin = _read_varint(block, 1)
        branch, begin = _read_varint(block, begin)
        if branch != 0:
            raise ValueError("no header stands first")
        source = BytesIO(block)
        source.seek(begin)
        return fastavro.schemaless_reader(source, _outline_schema(_text_of(head.schema)), None)
    except Exception as error:  # fastavro raises whatever the decoder stumbles on
        raise IntegrityError(f"The header of a segment can't be decoded: {error}", **place, hint=_HINT_NEWER) from error


def _text_of(parsed: Any) -> str:
    return _schema_text() if parsed is schema("Segment").parsed else to_parsing_canonical_form(json.loads(json.dumps(parsed)))


@lru_cache(maxsize=16)
def _outline_schema(text: str) -> Any:
    """Return the schema of a header up to its extent index, as the writer's schema has it."""
    header = json.loads(text)["fields"][0]["type"][0]
    names = [field["name"] for field in header["fields"]]
    return parse_schema(header | {"fields": header["fields"][: names.index("extent_steps")]})


@lru_cache(maxsize=1)
def _schema_text() -> str:
    return to_parsing_canonical_form(json.loads(json.dumps(schema("Segment").parsed)))


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    return schema("Segment").parsed if text == _schema_text() else parse_schema(json.loads(text))


def _varint(value: int) -> bytes:
    value <<= 1  # zigzag of a value that is never negative
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")
    return (value >> 1) ^ -(value & 1), at


def _read_map(data: bytes) -> tuple[dict[str, bytes], int]:
    """Return the map after the magic and where it ends."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("not an Avro file")
    told: dict[str, bytes] = {}
    count, at = _read_varint(data, len(MAGIC))
    while count:
        if count < 0:
            raise ValueError("a map with sizes")
        for _ in range(count):
            key, at = _read_bytes(data, at)
            told[key.decode()], at = _read_bytes(data, at)
        count, at = _read_varint(data, at)
    return told, at


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _read_varint(data, at)
    if not 0 <= size <= min(HEAD_BYTES_MAX, len(data) - at):
        raise ValueError("a length out of range")
    return data[at : at + size], at + size


_HINT = "Keep the file as it is; restore it from another copy of the store, or let the volume be copied again."
_HINT_NEWER = "If a newer version wrote this store, upgrade this process; else keep the file as it is."
