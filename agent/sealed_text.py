"""A text with its checksum, as JSON: what stands in the pages of the activity log that hold words."""

from __future__ import annotations

import json

import xxhash


def seal(body: str) -> bytes:
    """Return the text with its checksum."""
    return json.dumps({"body": body, "checksum": xxhash.xxh3_64_hexdigest(body.encode())}).encode()


def unseal(raw: bytes) -> str:
    """Return the text. Raises ValueError if it is not what was sealed; zero bytes behind it do not count."""
    told = json.loads(raw.rstrip(b"\0"))
    if not isinstance(told, dict) or not isinstance(told.get("body"), str):
        raise ValueError("no sealed text")
    if xxhash.xxh3_64_hexdigest(told["body"].encode()) != told.get("checksum"):
        raise ValueError("the checksum is wrong")
    return told["body"]
