"""Extent lists: extents as the text of a request, "start-end,start-end" in bytes, half-open (`ho.control`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stream.errors import ConfigError

EXTENTS_MAX = 4096
_EXTENT = re.compile(r"([0-9]{1,19})-([0-9]{1,19})")

Run = tuple[int, int]
"""Start and end in bytes of the volume, half-open."""


def extents_text(extents: Iterable[Run]) -> str:
    """Return the text of these extents."""
    return ",".join(f"{start}-{end}" for start, end in extents)


def parse_extents(text: str, size_bytes: int) -> tuple[Run, ...]:
    """Return the extents of a text in the volume of that size; none for an empty one. Raises ConfigError that says what is wrong."""
    if not text.strip():
        return ()
    parts = text.split(",")
    if len(parts) > EXTENTS_MAX:
        raise ConfigError(f"{len(parts)} extents are asked for, {EXTENTS_MAX} are the most")
    found = []
    for part in parts:
        match = _EXTENT.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{part[:40]!r} is no extent", hint="An extent is start-end in bytes, for example 0-65536.")
        start, end = int(match[1]), int(match[2])
        if start >= end:
            raise ConfigError(f"The extent {start}-{end} is empty")
        if end > size_bytes:
            raise ConfigError(f"The extent {start}-{end} ends behind the volume of {size_bytes} bytes")
        found.append((start, end))
    return tuple(found)
