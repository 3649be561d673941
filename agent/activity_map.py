"""The map of the activity log: one bit a region, in the very bytes that stand in its file.

Sectors of 512 bytes, the unit that a disk writes whole: 504 bytes of bits, the lowest first, and the xxh3_64 of those, seeded with the
sector's number, as a little-endian word. A sector that is damaged, missing or stands where another belongs counts as all set, so a
torn write of the map costs a comparison and never forgets a region. What is written are whole pages, so that no write waits for a read.
"""

from __future__ import annotations

import struct

import xxhash

SECTOR_BYTES = 512
SECTOR_REGIONS = 504 * 8
PAGE_BYTES = 4096
_BITS_BYTES = SECTOR_REGIONS // 8
_PAGE_SECTORS = PAGE_BYTES // SECTOR_BYTES
_CHECKSUM = struct.Struct("<Q")
_EIGHT = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


class ActivityMap:
    """The bits of `count` regions. Not thread-safe; pure."""

    __slots__ = ("_changed", "_raw", "count")

    def __init__(self, count: int, raw: bytes) -> None:
        """Take over these bytes, unchecked; `clear_of` and `read` make maps."""
        self.count = count
        self._raw = bytearray(raw)
        self._changed: set[int] = set()

    @classmethod
    def clear_of(cls, count: int) -> ActivityMap:
        """Return a map with no region set."""
        made = cls(count, bytes(map_bytes(count)))
        made._changed.update(range(sectors(count)))
        return made

    @classmethod
    def read(cls, count: int, raw: bytes) -> tuple[ActivityMap, int]:
        """Return the map of a file, and how many sectors could not be believed: all their regions are set."""
        size = map_bytes(count)
        found = cls(count, raw[:size].ljust(size, b"\0"))
        found._changed.update(range(sectors(count)))
        damaged = [sector for sector in range(sectors(count)) if not found._believable(sector)]
        for sector in damaged:
            found.set(sector * SECTOR_REGIONS, min((sector + 1) * SECTOR_REGIONS, count))
        return found, len(damaged)

    def set(self, first: int, stop: int) -> None:
        """Set the regions `first` to `stop - 1`."""
        self._fill(first, stop, 0xFF)

    def clear(self, first: int, stop: int) -> None:
        """Clear the regions `first` to `stop - 1`."""
        self._fill(first, stop, 0)

    def seal(self) -> list[tuple[int, bytes]]:
        """Return what is to be written since the last call: places in the map, and whole pages for them, sealed."""
        for sector in self._changed:
            at = sector * SECTOR_BYTES
            bits = bytes(self._raw[at : at + _BITS_BYTES])
            _CHECKSUM.pack_into(self._raw, at + _BITS_BYTES, xxhash.xxh3_64_intdigest(bits, sector))
        pieces: list[tuple[int, bytes]] = []
        first = last = -1
        for page in sorted({sector // _PAGE_SECTORS for sector in self._changed}):
            if page != last + 1 or first < 0:
                if first >= 0:
                    pieces.append(self._pages(first, last))
                first = page
            last = page
        if first >= 0:
            pieces.append(self._pages(first, last))
        self._changed.clear()
        return pieces

    def spread(self) -> bytearray:
        """Return one byte a region: 1 if it is set, else 0."""
        bits = b"".join(self._raw[at : at + _BITS_BYTES] for at in range(0, sectors(self.count) * SECTOR_BYTES, SECTOR_BYTES))
        found = bytearray(b"".join(map(_EIGHT.__getitem__, bits)))
        del found[self.count :]
        return found

    def grow(self, count: int) -> None:
        """Have more regions, all of them clear."""
        self._changed.update(range(sectors(self.count), sectors(count)))
        self._raw.extend(bytes(map_bytes(count) - len(self._raw)))
        self.count = count

    def _believable(self, sector: int) -> bool:
        at = sector * SECTOR_BYTES
        (told,) = _CHECKSUM.unpack_from(self._raw, at + _BITS_BYTES)
        return told == xxhash.xxh3_64_intdigest(bytes(self._raw[at : at + _BITS_BYTES]), sector)

    def _pages(self, first: int, last: int) -> tuple[int, bytes]:
        return first * PAGE_BYTES, bytes(self._raw[first * PAGE_BYTES : (last + 1) * PAGE_BYTES])

    def _fill(self, first: int, stop: int, value: int) -> None:
        assert first >= 0 and stop <= self.count, "a region outside of the volume"
        while first < stop:
            sector, bit = divmod(first, SECTOR_REGIONS)
            end = min(stop - sector * SECTOR_REGIONS, SECTOR_REGIONS)
            self._fill_sector(sector * SECTOR_BYTES, bit, end, value)
            self._changed.add(sector)
            first = sector * SECTOR_REGIONS + end

    def _fill_sector(self, base: int, first: int, stop: int, value: int) -> None:
        raw, low, high = self._raw, base + (first >> 3), base + (stop >> 3)
        head, tail = 0xFF << (first & 7) & 0xFF, (1 << (stop & 7)) - 1
        if low == high:
            head, tail = 0, head & tail
        elif first & 7:
            raw[low] = raw[low] & ~head | value & head
            low += 1
        if low < high:
            raw[low:high] = bytes((value,)) * (high - low)
        if tail:
            raw[high] = raw[high] & ~tail | value & tail


def sectors(count: int) -> int:
    """Return how many sectors hold the bits of that many regions."""
    return -(-count // SECTOR_REGIONS)


def map_bytes(count: int) -> int:
    """Return how long the map of that many regions is: whole pages."""
    return -(-sectors(count) // _PAGE_SECTORS) * PAGE_BYTES
