"""The golden files: pinned bytes that today's code must read as what they say, and write again byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

import schemas
from history.builder import SegmentBuilder, Start
from history.catalog import Catalog
from history.chain import Chain
from history.fold import FoldTask, fold
from history.reader import SegmentReader
from history.segment import SegmentName
from history.store import open_store
from stream.codec import decode_journal, decode_writes, encode_journal, encode_writes, unpack
from stream.control import decode_entry, encode_entry
from stream.position import ZERO, Position
from stream.record import DIGEST_START, FLAG_MORE, Kind
from stream.schema import decode, schema

GOLDEN = schemas.FOLDER / "golden"
MESSAGES = sorted(path.name.removesuffix(".bin") for path in GOLDEN.glob("*.bin"))


def content(name: str) -> Any:
    """Return what the JSON beside a golden file says, bytes as bytes."""

    def told(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("hex:"):
            return bytes.fromhex(value[4:])
        if isinstance(value, dict):
            return {key: told(one) for key, one in value.items()}
        return [told(one) for one in value] if isinstance(value, list) else value

    return told(json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")))


def test_every_schema_has_golden_files_of_every_version() -> None:
    published = {path.name.removesuffix(".avsc") for path in schemas.FOLDER.glob("published/*.avsc")}
    assert {path.name.removesuffix(".json") for path in GOLDEN.glob("*.json")} == published | {"Fold.v2"}
    assert {name.split(".")[0] for name in published} == {path.stem for path in schemas.FOLDER.glob("*.avsc")}


@pytest.mark.parametrize("golden", MESSAGES)
def test_a_message_says_what_its_json_says(golden: str) -> None:
    name, body = decode((GOLDEN / f"{golden}.bin").read_bytes())
    assert name == golden.split(".")[0]
    body.pop("checksum")
    assert body == content(golden)


@pytest.mark.parametrize("name", sorted(path.stem for path in schemas.FOLDER.glob("*.avsc") if path.stem != "Segment"))
def test_the_content_gives_the_same_bytes(name: str) -> None:
    newest = max(golden for golden in MESSAGES if golden.split(".")[0] == name)
    assert schema(name).encode(content(newest)) == (GOLDEN / f"{newest}.bin").read_bytes()


def test_writes_through_the_codec() -> None:
    value = (GOLDEN / "WriteBatch.v1.bin").read_bytes()
    batch, incarnation = decode_writes(value)
    assert (batch.first, batch.last, batch.volume) == (Position(1, 1), Position(1, 13), "golden")
    assert encode_writes(batch, incarnation) == value


@pytest.mark.parametrize("name", ["JournalBatch", "JournalGap", "JournalFence"])
def test_journal_entries_through_the_codec(name: str) -> None:
    value = (GOLDEN / f"{name}.v1.bin").read_bytes()
    assert encode_journal(decode_journal(value)) == value


def test_the_journal_batch_holds_the_records_of_the_write_batch() -> None:
    """Its digest was chained by the maker of the golden files, its payload packed by hand."""
    entry = decode_journal((GOLDEN / "JournalBatch.v1.bin").read_bytes())
    batch, _ = decode_writes((GOLDEN / "WriteBatch.v1.bin").read_bytes())
    assert unpack(entry) == batch


@pytest.mark.parametrize("name", ["VolumeDeclaration", "EpochClaim", "Request", "Answer", "ProcessReport"])
def test_control_entries(name: str) -> None:
    value = (GOLDEN / f"{name}.v1.bin").read_bytes()
    assert encode_entry(decode_entry(value)) == value


def test_the_segment_is_built_byte_for_byte() -> None:
    """From the golden journal: a fence, the batch, the gap, and the second batch that the segment's JSON holds."""
    chain = Chain("golden", ZERO, DIGEST_START)
    builder = SegmentBuilder(Start("golden", ZERO, DIGEST_START, "journal-topic-id", 0))
    second = content("Segment.v2")["batches"][1]
    del second["kafka_offset"], second["table"]
    messages = [(GOLDEN / f"{name}.v1.bin").read_bytes() for name in ("JournalFence", "JournalBatch", "JournalGap")]
    messages.append(schema("JournalBatch").encode(second))
    for kafka_offset, value in enumerate(messages):
        kept = chain.accept(decode_journal(value), kafka_offset)
        for one in kept:
            builder.append(one, kafka_offset, chain.fence, chain.open_gaps)
        if not kept:
            builder.skip(kafka_offset, chain.fence)
    sealed, _ = builder.seal()
    assert b"".join(sealed.parts) == (GOLDEN / "Segment.v2.avro").read_bytes()


def test_the_fold_is_made_byte_for_byte() -> None:
    """Of the golden segment, up to its fourth record."""
    store = open_store("memory:///")
    name = SegmentName("golden", 0, Position(1, 1), Position(1, 14))
    store.put(str(name), [(GOLDEN / "Segment.v2.avro").read_bytes()])
    made = fold(Catalog(store, "golden"), FoldTask("golden", 1, (name,), Position(1, 4)), codec="none")
    assert store.get(str(made)) == (GOLDEN / "Fold.v2.avro").read_bytes()


def test_the_fold_is_read() -> None:
    store = open_store("memory:///")
    name = SegmentName("golden", 1, Position(1, 1), Position(1, 4))
    store.put(str(name), [(GOLDEN / "Fold.v2.avro").read_bytes()])
    image = Catalog(store, "golden").image(Position(1, 4))
    shown = bytearray(16)
    image.read(0, memoryview(shown))
    assert (bytes(shown), image.size_bytes) == (b"abcdabcd" + bytes(8), 1 << 20)
    assert image.extents(0, image.size_bytes) == [(8, False), ((1 << 20) - 8, True)]


@pytest.mark.parametrize("version", [1, 2])
def test_the_segment_is_read(version: int) -> None:
    store = open_store("memory:///")
    name = SegmentName("golden", 0, Position(1, 1), Position(1, 14))
    store.put(str(name), [(GOLDEN / f"Segment.v{version}.avro").read_bytes()])
    reader = SegmentReader(store, name)
    reader.check()
    first, second = reader.batches()
    entry = decode_journal((GOLDEN / "JournalBatch.v1.bin").read_bytes())
    assert (first.entry, first.kafka_offset, second.kafka_offset) == (entry, 1, 3)
    assert bytes(second.unpack().payload) == b"efgh"
    (piece,) = reader.header.extents.find(9, 11, 14)
    assert (piece.record, piece.payload_bytes) == (13, 1)


def test_kinds_and_flags_are_those_of_the_page() -> None:
    """Two lists that must agree: the tables of the specification and the code."""
    page = (schemas.FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    told = {int(row[0]): row[1].strip("`") for row in rows if row[0].isdigit() and len(row) == 3 and row[1].startswith("`")}
    assert told.pop(FLAG_MORE) in ("MORE", "write")  # kinds and flags are numbered apart
    assert told == {int(kind): kind.name.lower() for kind in Kind if kind != Kind.WRITE}
    assert "| 1 | `MORE` |" in page
    assert "| 1 | `write` |" in page
