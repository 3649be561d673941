"""The golden files read by a stranger: an Avro library, JSON and the `.avsc` files, nothing else of this project.

What this file does is what `schemas/README.md` tells a reader in another language to do.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import fastavro
import pytest
import xxhash

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOLDEN = SCHEMAS / "golden"
MESSAGES = sorted(GOLDEN.glob("*.bin"))
KIND_WRITE, KIND_EPOCH_START = 1, 16


def schemas_by_fingerprint() -> dict[bytes, Any]:
    found = {}
    for path in sorted(SCHEMAS.glob("published/*.avsc")):
        definition = json.loads(path.read_text(encoding="utf-8"))
        canonical = fastavro.schema.to_parsing_canonical_form(definition)
        found[bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))] = fastavro.parse_schema(definition)
    return found


def read_message(value: bytes) -> dict[str, Any]:
    assert value[:2] == b"\xc3\x01"
    source = io.BytesIO(value[10:])
    body = fastavro.schemaless_reader(source, schemas_by_fingerprint()[value[2:10]], None)
    assert source.read() == b""
    return body


def shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_message_says_what_its_json_says(path: Path) -> None:
    body = read_message(path.read_bytes())
    assert body.pop("checksum") == xxhash.xxh3_64(path.read_bytes()[:-8]).digest()
    assert shown(body) == json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["Segment.v1", "Segment.v2", "Fold.v2"])
def test_a_segment_is_an_ordinary_avro_file(name: str) -> None:
    with (GOLDEN / f"{name}.avro").open("rb") as file:
        parts = [one["part"] for one in fastavro.reader(file)]
    told = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert shown(parts[0]) == told["header"]
    assert shown(parts[1:]) == told["batches"]


@pytest.mark.parametrize("name", ["Segment.v1", "Segment.v2"])
def test_the_running_digest_can_be_chained_from_the_page_alone(name: str) -> None:
    with (GOLDEN / f"{name}.avro").open("rb") as file:
        header, *batches = [one["part"] for one in fastavro.reader(file)]
    digest = header["digest_before"]
    for batch in batches:
        payload = batch["payload"] if batch["codec"] == "none" else unsnap(batch["payload"])
        marks = {mark["index"]: mark["attributes"] for mark in batch["marks"]}
        for index, kind in enumerate(batch["kinds"]):
            meta = struct.pack(
                "<QQBBQQQ",
                batch["epoch"],
                batch["first_sequence"] + index,
                kind,
                batch["flags"][index],
                batch["offsets"][index],
                batch["lengths"][index],
                batch["capture_time_ns"] + batch["ages_ns"][index],
            )
            body = b""
            if kind == KIND_WRITE:
                data, payload = payload[: batch["lengths"][index]], payload[batch["lengths"][index] :]
                body = xxhash.xxh3_128(data).digest()
            elif index in marks:
                text = "".join(f"{key}\0{value}\0" for key, value in sorted(marks[index].items()))
                body = xxhash.xxh3_128(text.encode()).digest()
            digest = xxhash.xxh3_128(digest + meta + body).digest()
        assert digest == batch["state"]["digest"]
        assert payload == b""
    assert digest == header["digest_after"]


def test_a_fold_is_followed_from_its_header_to_its_bytes_by_the_page_alone() -> None:
    """Header, page, block: each is where the one before says, and has the checksum that it says."""
    raw = (GOLDEN / "Fold.v2.avro").read_bytes()
    with (GOLDEN / "Fold.v2.avro").open("rb") as file:
        header, held, page = [one["part"] for one in fastavro.reader(file)]
    sync = raw[-16:]
    begin = raw.index(sync, raw.index(sync) + 16) + 16
    (entry,), (place,) = header["pages"], page["table"]
    for one in (entry, place):
        stored = raw[begin + one["offset_bytes"] :][: one["length_bytes"]]
        assert stored[-24:] == one["checksum"] + sync
        assert xxhash.xxh3_64(stored[:-24]).digest() == one["checksum"]
    assert (page["kinds"], page["offsets"], page["lengths"]) == (held["kinds"], held["offsets"], held["lengths"])
    assert (held["kinds"], held["offsets"], held["lengths"], held["payload"]) == (b"\x01\x02", [0, 4096], [8, 8192], b"abcdabcd")


def unsnap(data: bytes) -> bytes:
    """Decompress the one snappy blob of the golden files, by its format: a literal and copies with one byte of offset."""
    out, at = bytearray(), 1
    while at < len(data):
        tag = data[at]
        if tag & 3 == 0:
            size = (tag >> 2) + 1
            out += data[at + 1 : at + 1 + size]
            at += 1 + size
        else:
            for _ in range((tag >> 2 & 7) + 4):
                out.append(out[-data[at + 1]])
            at += 2
    assert len(out) == data[0]
    return bytes(out)


def test_every_field_and_kind_is_on_the_page() -> None:
    """Two lists that must agree: the fields of every schema, and the tables of the specification."""
    page = (SCHEMAS / "README.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0].strip(): part for part in page.split("\n### ")[1:]}
    missing = []

    def walk(definition: Any) -> None:
        if isinstance(definition, list):
            for one in definition:
                walk(one)
        elif isinstance(definition, dict) and definition.get("type") == "record":
            section = sections.get(f"`{definition['name']}`", "")
            if not section:
                missing.append(definition["name"])
            for field in definition["fields"]:
                if section and f"`{field['name']}`" not in section and definition["name"] != "StoredBatch":
                    missing.append(f"{definition['name']}.{field['name']}")
                walk(field["type"])
        elif isinstance(definition, dict) and definition.get("type") == "array":
            walk(definition["items"])

    for path in sorted(SCHEMAS.glob("*.avsc")):
        walk(json.loads(path.read_text(encoding="utf-8")))
    assert not missing, f"not in schemas/README.md: {missing}"


def test_a_stored_batch_has_the_fields_of_a_journal_batch() -> None:
    journal = json.loads((SCHEMAS / "JournalBatch.avsc").read_text(encoding="utf-8"))
    segment = json.loads((SCHEMAS / "Segment.avsc").read_text(encoding="utf-8"))
    stored = segment["fields"][0]["type"][1]
    assert stored["name"] == "StoredBatch"
    expected = [field["name"] for field in journal["fields"] if field["name"] != "checksum"]
    assert [field["name"] for field in stored["fields"]] == [*expected, "kafka_offset", "table"]


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.avsc")), ids=lambda path: path.stem)
def test_the_checksum_is_the_last_field(path: Path) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))["fields"]
    assert fields[-1]["name"] == "checksum"
