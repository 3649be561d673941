"""The bytes of a volume at a position, out of layers: segments of the store, and what is not in them yet.

Opened by recovery for an export, a restore or a drill, and by a fold for what it folds. Layers are stacked, the newest wins, and what no
layer wrote reads as zero. Segments overlap without harm: a layer that holds every write from some position at or below the ones beneath it
gives the same bytes whichever of them it repeats (design rule 27). A split write that is open at the position is not shown (rule 6).

Reads what it needs only: headers when an extent is first looked at, blocks when their bytes are. Every block is proved by its checksum, and
that by the header's. Memory: `REGIONS_MAX` regions of what was found, and the shared caches of headers (`history.catalog`) and blocks
(`history.block_cache`), each with a bound. Thread-safe: any number of threads may read one image.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from history.block_cache import BLOCKS, BlockCache
from history.extent_index import ZEROES
from history.segment import SegmentHeader
from stream.position import Position
from stream.record import FLAG_MORE

REGION_BYTES = 1 << 20
REGIONS_MAX = 256
REGION_PIECES_MAX = 64 << 10  # of all regions kept
SWEEP_PIECES_MAX = 128 << 10
SWEEP_REGION_BYTES = 16 << 20  # looked at in one step of a sweep: each asks every layer
_ZEROES = bytes(1 << 20)


class LayerPiece(NamedTuple):
    """Bytes `[start_bytes, end_bytes)` of a volume as a layer wrote them last.

    `reference` is the layer's own: numbers that sort as the bytes are stored, the last one of them where the bytes begin, so that the
    reference of a part is the same with that number moved.
    """

    start_bytes: int
    end_bytes: int
    is_zero: bool
    reference: tuple[int, ...] = ()

    def part(self, start_bytes: int, end_bytes: int) -> LayerPiece:
        """Return the piece of these bytes, which lie inside."""
        if self.is_zero or start_bytes == self.start_bytes:
            return LayerPiece(start_bytes, end_bytes, self.is_zero, self.reference)
        moved = (*self.reference[:-1], self.reference[-1] + start_bytes - self.start_bytes)
        return LayerPiece(start_bytes, end_bytes, False, moved)


class Layer(Protocol):
    """What was written in one stretch of history. Any thread may call it."""

    def pieces(self, start_bytes: int, end_bytes: int) -> list[LayerPiece]:
        """Return what this layer wrote there last, cut to these bounds, sorted and disjoint; no payload is read for it. Raises
        IntegrityError, RetryError."""
        ...

    def read(self, piece: LayerPiece, into: memoryview) -> None:
        """Fill `into`, as long as the piece, which is no zero. Raises IntegrityError, RetryError."""
        ...


class Segment(Protocol):
    """A segment as a layer reads it: `history.reader.SegmentReader`, or one that `history.catalog` reads again when it is needed."""

    path: str

    @property
    def header(self) -> SegmentHeader: ...

    def payload(self, index: int) -> bytes: ...

    def flags(self, index: int) -> bytes: ...


class SegmentLayer:
    """A segment of level 0 up to a position."""

    def __init__(self, reader: Segment, through: Position, *, cache: BlockCache = BLOCKS) -> None:
        self._segment = reader
        self._through = through
        self._cache = cache
        self._records: int | None = None

    def pieces(self, start_bytes: int, end_bytes: int) -> list[LayerPiece]:
        header = self._segment.header
        if self._records is None:
            self._records = _shown(self._segment, header, self._through)
        found = []
        for start, end, record, payload in header.extents.last(start_bytes, end_bytes, self._records, header.cuts):
            if payload == ZEROES:
                found.append(LayerPiece(start, end, True))
            else:
                found.append(LayerPiece(start, end, False, (header.block_of(record)[0], payload)))
        return found

    def read(self, piece: LayerPiece, into: memoryview) -> None:
        index, at = piece.reference
        checksum = self._segment.header.blocks[index].checksum  # the same path is another file in another store
        block = self._cache.get((self._segment.path, index, checksum), lambda: self._segment.payload(index))
        into[:] = memoryview(block)[at : at + len(into)]


def _shown(segment: Segment, header: SegmentHeader, through: Position) -> int:
    """Return how many records of a segment stand at or below a position, less those of a split write that is open there."""
    count = header.records_through(through)
    if through >= header.name.last:
        return count  # a segment ends inside no split write
    while count:
        block, index = header.block_of(count - 1)
        flags = segment.flags(block)
        while index >= 0 and flags[index] & FLAG_MORE:
            index, count = index - 1, count - 1
        if index >= 0:
            break
    return count


class Found(NamedTuple):
    """What covers a stretch of the image: a piece of a layer, or nothing (`layer` is -1)."""

    start_bytes: int
    end_bytes: int
    layer: int
    piece: LayerPiece


class Image:
    """The bytes of a volume at a position; `layers` from the oldest to the newest. Raises IntegrityError and RetryError of its layers."""

    def __init__(self, volume: str, position: Position, size_bytes: int, layers: Sequence[Layer]) -> None:
        self.volume = volume
        self.position = position
        self.size_bytes = size_bytes
        self._layers = tuple(layers)
        self._regions: OrderedDict[int, list[Found]] = OrderedDict()
        self._pieces = 0
        self._lock = threading.Lock()

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill `into` with the volume's bytes from `offset_bytes` on. What lies behind the volume's end is our bug."""
        end_bytes = offset_bytes + len(into)
        assert 0 <= offset_bytes <= end_bytes <= self.size_bytes, f"{offset_bytes} to {end_bytes} of {self.size_bytes}"
        wanted: list[tuple[int, LayerPiece]] = []
        for found in self._found(offset_bytes, end_bytes):
            start, end = max(found.start_bytes, offset_bytes), min(found.end_bytes, end_bytes)
            if found.piece.is_zero:
                _clear(into[start - offset_bytes : end - offset_bytes])
            else:
                wanted.append((found.layer, found.piece.part(start, end)))
        wanted.sort(key=_as_stored)
        for layer, piece in wanted:
            self._layers[layer].read(piece, into[piece.start_bytes - offset_bytes : piece.end_bytes - offset_bytes])

    def extents(self, offset_bytes: int, length_bytes: int, limit: int = 4096) -> list[tuple[int, bool]]:
        """Return `(length_bytes, is_zero)` of the extents from `offset_bytes` on, `limit` of them at most; no payload is read for it.

        What is told as zero reads as zero; other bytes may be zeroes too. Neighbours differ.
        """
        end_bytes = min(offset_bytes + length_bytes, self.size_bytes)
        told: list[tuple[int, bool]] = []
        at = offset_bytes
        while at < end_bytes:
            stop = min(end_bytes, (at // REGION_BYTES + 1) * REGION_BYTES)
            for found in resolve(self._layers, at, stop):
                is_zero = found.piece.is_zero
                size = found.end_bytes - found.start_bytes
                if told and told[-1][1] == is_zero:
                    told[-1] = (told[-1][0] + size, is_zero)
                elif len(told) == limit:
                    return told
                else:
                    told.append((size, is_zero))
            at = stop
        return told

    def sweep(self, offset_bytes: int = 0, end_bytes: int | None = None) -> Iterator[tuple[int, memoryview]]:
        """Yield `(offset_bytes, data)` of everything there that may not be zero, in the order in which it is stored.

        The fastest way to read a whole image: each block is read once, where `read` in the order of the volume may read one anew for every
        extent. Nothing is told of the rest: it reads as zero. `data` is good until the next step, and crosses no end of a region.
        Memory: some `SWEEP_PIECES_MAX` pieces; the order begins anew with each lot of them.
        """
        at, end_bytes = offset_bytes, self.size_bytes if end_bytes is None else end_bytes
        scratch = bytearray(REGION_BYTES)
        while at < end_bytes:
            wanted: list[tuple[int, LayerPiece]] = []
            while at < end_bytes and len(wanted) < SWEEP_PIECES_MAX:
                stop = min(end_bytes, (at // SWEEP_REGION_BYTES + 1) * SWEEP_REGION_BYTES)
                for one in resolve(self._layers, at, stop):
                    if not one.piece.is_zero:
                        wanted += [(one.layer, part) for part in _cut(one.piece)]
                at = stop
            wanted.sort(key=_as_stored)
            for layer, piece in wanted:
                data = memoryview(scratch)[: piece.end_bytes - piece.start_bytes]
                self._layers[layer].read(piece, data)
                yield piece.start_bytes, data

    def _found(self, start_bytes: int, end_bytes: int) -> Iterator[Found]:
        """Yield what covers these bytes, in order; the first and the last may reach beyond."""
        for number in range(start_bytes // REGION_BYTES, -(-end_bytes // REGION_BYTES)):
            region = self._region(number)
            index = max(0, bisect_right(region, start_bytes, key=_start) - 1)
            while index < len(region) and region[index].start_bytes < end_bytes:
                yield region[index]
                index += 1

    def _region(self, number: int) -> list[Found]:
        with self._lock:
            region = self._regions.get(number)
            if region is not None:
                self._regions.move_to_end(number)
                return region
        start = number * REGION_BYTES
        region = resolve(self._layers, start, min(start + REGION_BYTES, self.size_bytes))
        with self._lock:
            if number not in self._regions:
                self._regions[number] = region
                self._pieces += len(region)
            while len(self._regions) > 1 and (len(self._regions) > REGIONS_MAX or self._pieces > REGION_PIECES_MAX):
                self._pieces -= len(self._regions.popitem(last=False)[1])
        return region


def resolve(layers: Sequence[Layer], start_bytes: int, end_bytes: int) -> list[Found]:
    """Return what covers these bytes, sorted and without a hole, asking the newest layers first and only for what is still missing."""
    done: list[Found] = []
    missing = [(start_bytes, end_bytes)]
    for number in range(len(layers) - 1, -1, -1):
        pieces = layers[number].pieces(missing[0][0], missing[-1][1])
        if not pieces:
            continue
        missing = _fill(missing, pieces, number, done)
        if not missing:
            break
    done += [Found(start, end, -1, LayerPiece(start, end, True)) for start, end in missing]
    done.sort(key=_start)
    return done


def _fill(missing: list[tuple[int, int]], pieces: list[LayerPiece], layer: int, done: list[Found]) -> list[tuple[int, int]]:
    """Put the parts of `pieces` that are missing among `done`; return what is missing still. Both are sorted and disjoint."""
    left = []
    index = 0
    for start, end in missing:
        at = start
        while index < len(pieces) and pieces[index].end_bytes <= start:
            index += 1
        step = index
        while step < len(pieces) and pieces[step].start_bytes < end:
            piece = pieces[step]
            begin, stop = max(start, piece.start_bytes), min(end, piece.end_bytes)
            if at < begin:
                left.append((at, begin))
            done.append(Found(begin, stop, layer, piece.part(begin, stop)))
            at = stop
            step += 1
        if at < end:
            left.append((at, end))
    return left


def _cut(piece: LayerPiece) -> list[LayerPiece]:
    """Return a piece in parts that cross no region's end."""
    start, end = piece.start_bytes, piece.end_bytes
    edges = range((start // REGION_BYTES + 1) * REGION_BYTES, end, REGION_BYTES)
    if not edges:
        return [piece]
    return [piece.part(low, high) for low, high in zip((start, *edges), (*edges, end), strict=True)]


def _start(found: Found) -> int:
    return found.start_bytes


def _as_stored(wanted: tuple[int, LayerPiece]) -> tuple[int, tuple[int, ...]]:
    return wanted[0], wanted[1].reference


def _clear(into: memoryview) -> None:
    for at in range(0, len(into), len(_ZEROES)):
        part = into[at : at + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
