"""Read a volume's topics with plain fastavro, the .avsc files and schemas/README.md alone; compare the fold with the source.

Usage: plain_reader.py BOOTSTRAP VOLUME SCHEMAS SOURCE. Imports nothing of hostoffload.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import fastavro
import snappy
import xxhash
from confluent_kafka import Consumer, TopicPartition

bootstrap, volume, folder, source = sys.argv[1:]
by_fingerprint = {}
for path in Path(folder).glob("*.avsc"):
    definition = json.loads(path.read_text())
    form = fastavro.schema.to_parsing_canonical_form(definition)
    fingerprint = bytes.fromhex(fastavro.schema.fingerprint(form, "CRC-64-AVRO"))
    by_fingerprint[fingerprint] = (definition["name"], fastavro.parse_schema(definition))


def messages(topic: str):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "plain", "enable.auto.commit": False, "auto.offset.reset": "error"})
    start, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)
    consumer.assign([TopicPartition(topic, 0, start)])
    seen = start
    while seen < end:
        message = consumer.poll(20)
        assert message is not None and message.error() is None, message and message.error()
        value = message.value()
        assert value[:2] == b"\xc3\x01"
        assert xxhash.xxh3_64_digest(value[:-8]) == value[-8:]
        name, parsed = by_fingerprint[value[2:10]]
        body = io.BytesIO(value[10:])
        record = fastavro.schemaless_reader(body, parsed, None)
        assert body.read() == b""
        yield name, record
        seen = message.offset() + 1
    consumer.close()


def fold(topic: str) -> bytes:
    image = bytearray(Path(source).stat().st_size)
    expected = None
    for name, record in messages(topic):
        if name in ("JournalFence", "JournalGap"):
            continue
        assert name == ("WriteBatch" if topic.endswith(".writes") else "JournalBatch"), name
        assert record["volume"] == volume
        payload = record["payload"]
        if record.get("codec") == "snappy":
            payload = snappy.decompress(payload)
        assert expected is None or record["first_sequence"] == expected
        expected = record["first_sequence"] + len(record["kinds"])
        at = 0
        for kind, offset, length in zip(record["kinds"], record["offsets"], record["lengths"], strict=True):
            if kind == 1:
                image[offset : offset + length] = payload[at : at + length]
                at += length
            elif kind == 2:
                image[offset : offset + length] = bytes(length)
        assert at == len(payload)
    return bytes(image)


want = Path(source).read_bytes()
for topic in (f"ho.{volume}.writes", f"ho.{volume}.journal"):
    assert fold(topic) == want, f"{topic} differs from the source"
print("equal")
