"""The bytes of an activity log's file: header, the two markers, and where the map begins. docs/activity_log.md has the tables.

Pure: what is read comes in as bytes, what is to be written goes out as bytes. What is damaged means what does no harm: a damaged header
is no log, a damaged clean-stop marker is none, a damaged fence stands.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from agent.activity_map import PAGE_BYTES, SECTOR_BYTES
from agent.sealed_text import seal, unseal

REGION_SHIFT = 20
REGION_BYTES = 1 << REGION_SHIFT
HEADER_AT, CLEAN_AT, FENCE_AT, MAP_AT = (page * PAGE_BYTES for page in range(4))
NO_TEXT = bytes(PAGE_BYTES)
FENCE_CHARACTERS_MAX = 300
DAMAGED_FENCE = "somebody (the fence in the activity log is damaged)"
_MAGIC = b"HOACTIVE"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQ64s")
_CHECKSUM = struct.Struct("<Q")
_SEALED_BYTES = SECTOR_BYTES - _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class Header:
    """Whose log it is: the volume, and the source by its inode (a device: its number) and size."""

    volume: str
    inode: int
    size_bytes: int

    @property
    def regions(self) -> int:
        return -(-self.size_bytes // REGION_BYTES)

    def page(self) -> bytes:
        """Return the header's page: one sector, which a disk writes whole, and zero bytes."""
        name = self.volume.encode()
        assert len(name) <= 64, "a volume's name that no topic could have"
        sealed = _HEADER.pack(_MAGIC, _VERSION, REGION_BYTES, self.size_bytes, self.inode, name).ljust(_SEALED_BYTES, b"\0")
        return (sealed + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(sealed))).ljust(PAGE_BYTES, b"\0")

    @classmethod
    def read(cls, page: bytes) -> Header | None:
        """Return the header; None if it is damaged or of another version."""
        if len(page) < SECTOR_BYTES or _CHECKSUM.unpack_from(page, _SEALED_BYTES) != (xxhash.xxh3_64_intdigest(page[:_SEALED_BYTES]),):
            return None
        magic, version, region_bytes, size_bytes, inode, name = _HEADER.unpack_from(page)
        if (magic, version, region_bytes) != (_MAGIC, _VERSION, REGION_BYTES):
            return None
        return cls(name.rstrip(b"\0").decode(errors="replace"), inode, size_bytes)


def text_page(raw: bytes) -> bytes:
    """Return the page for a sealed text."""
    assert 0 < len(raw) <= PAGE_BYTES
    return raw.ljust(PAGE_BYTES, b"\0")


def fence_page(by: str) -> bytes:
    """Return the page of a fence; a text that is too long is cut."""
    return text_page(seal(by[:FENCE_CHARACTERS_MAX]))


def read_fence(page: bytes) -> str | None:
    """Return who fenced the volume; None if nobody did, that is, if the page is zero."""
    if not page.strip(b"\0"):
        return None
    try:
        return unseal(page)
    except ValueError:
        return DAMAGED_FENCE
