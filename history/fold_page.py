"""Pages and blocks of a fold: what the last write of each extent left, in the order of the volume.

A fold's file holds, behind its header, blocks of extents with their bytes, and after every few of them a page that lists those extents and
where their blocks stand; the header lists the pages. So whoever wants an extent reads the header, one page and one block, however large
the fold is, and proves each by the checksum that the one before holds. Both are stored as a `StoredBatch` of which kinds, offsets,
lengths, codec, payload and (pages) the table mean something. Pure; used by `history.fold_writer`, `history.reader` and the checker.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from history.extent_index import ZEROES
from history.segment import PageEntry
from stream.codec import journal_body
from stream.journal import JournalBatch, JournalState
from stream.position import Position
from stream.record import DIGEST_START, Batch, Kind

PAGE_EXTENTS_MAX = 8192
PAGE_BLOCKS_MAX = 512
BLOCK_EXTENTS_MAX = 4096
FOLD_BLOCK_BYTES = 256 << 10
_NOBODY = bytes(8)


@dataclass(frozen=True, slots=True)
class FoldBlock:
    """Where a block of a fold stands: `offset_bytes` after the end of the file's first block; `extents` of its page are its own."""

    extents: int
    offset_bytes: int
    length_bytes: int
    payload_bytes: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Extents sorted and disjoint: `[starts[i], ends[i])` are in block `blocks[i]` of the table from `payloads[i]` of its blob on, or
    (ZEROES) read as zero."""

    starts: Sequence[int]
    ends: Sequence[int]
    blocks: Sequence[int]
    payloads: Sequence[int]
    table: tuple[FoldBlock, ...]

    @property
    def cost_bytes(self) -> int:
        """Return about what it takes in memory."""
        return 32 * len(self.starts) + 200 * len(self.table) + 500


def extents_body(
    volume: str, position: Position, extents: Sequence[tuple[int, int, bool]], codec: str, packed: bytes, payload_bytes: int
) -> dict[str, Any]:
    """Return the fields of a block or a page: `extents` are `(start_bytes, end_bytes, is_zero)`, `position` is the fold's end."""
    records = Batch(
        volume,
        position.epoch,
        position.sequence,
        0,
        bytes(Kind.ZERO if is_zero else Kind.WRITE for _, _, is_zero in extents),
        b"",
        [start for start, _, _ in extents],
        [end - start for start, end, _ in extents],
        [],
    )
    entry = JournalBatch(records, _NOBODY, codec, payload_bytes, -1, position, DIGEST_START, JournalState(), packed)
    return journal_body(entry) | {"kafka_offset": -1, "table": []}


def table_body(table: Sequence[FoldBlock]) -> list[dict[str, Any]]:
    """Return the field `table` of a page."""
    return [{name: getattr(block, name) for name in FoldBlock.__slots__} for block in table]


def extents_of(body: dict[str, Any]) -> list[tuple[int, int, bool]]:
    """Return the extents of a block or a page as `extents_body` takes them. Raises ValueError unless they are sorted and disjoint."""
    kinds, offsets, lengths = body["kinds"], body["offsets"], body["lengths"]
    if not len(kinds) == len(offsets) == len(lengths):
        raise ValueError("columns of different lengths")
    if set(kinds) - {Kind.WRITE, Kind.ZERO}:
        raise ValueError("an extent of an unknown kind")
    found, at = [], 0
    for kind, offset, length in zip(kinds, offsets, lengths, strict=True):
        if offset < at or length <= 0:
            raise ValueError("extents out of order")
        at = offset + length
        found.append((offset, at, kind == Kind.ZERO))
    return found


def page_of(body: dict[str, Any], entry: PageEntry) -> Page:
    """Return the page of these fields. Raises ValueError for fields that can't be one, or not the one that the header lists."""
    extents = extents_of(body)
    table = tuple(FoldBlock(**block) for block in body["table"])
    if not extents or (extents[0][0], extents[-1][1], len(extents)) != (entry.start_bytes, entry.end_bytes, entry.extents):
        raise ValueError("its extents are not those of the header")
    if sum(block.extents for block in table) != len(extents):
        raise ValueError("its blocks do not hold its extents")
    blocks, payloads = array("q"), array("q")
    at = 0
    for number, block in enumerate(table):
        payload = 0
        for start, end, is_zero in extents[at : at + block.extents]:
            blocks.append(number)
            payloads.append(ZEROES if is_zero else payload)
            payload += 0 if is_zero else end - start
        if payload != block.payload_bytes:
            raise ValueError("a block's extents are not as long as its payload")
        at += block.extents
    return Page(array("q", (one[0] for one in extents)), array("q", (one[1] for one in extents)), blocks, payloads, table)
