"""The catalog of a volume: which segments the store has, and their headers, read when they are asked for and kept up to a bound.

Shared by everything that looks at one volume's history in a process: the timeline, each image, a fold. The listing is the only manifest; it
is read anew by `refresh` alone, so that what is decided from one listing is decided from one truth. Thread-safe.

`cover` says which segments give the bytes at a position. What an offered point needs is proved by it before anything is opened: every
segment is there by name, and each goes on where the one before ends.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from history.block_cache import BLOCKS, BlockCache
from history.fold_layer import FoldLayer
from history.fold_page import FoldBlock, Page
from history.image import Image, Layer, SegmentLayer
from history.levels import AS_WRITTEN
from history.reader import SegmentReader
from history.segment import PageEntry, SegmentHeader, SegmentName, in_order
from history.store import Store
from stream.errors import RecoveryError
from stream.position import ZERO, Position

HEADERS_BYTES_MAX = 96 << 20
EXTENT_COST_BYTES = 32  # four columns
BLOCK_COST_BYTES = 400
HEADER_COST_BYTES = 2_000


class Catalog:
    """One volume's segments. Every method may raise RetryError and ConfigError (`history.store`)."""

    def __init__(
        self, store: Store, volume: str, *, headers_bytes_max: int = HEADERS_BYTES_MAX, cache: BlockCache = BLOCKS
    ) -> None:
        self.store = store
        self.volume = volume
        self._headers_bytes_max = headers_bytes_max
        self._cache = cache
        self.sizes: Mapping[SegmentName, int] = MappingProxyType({})
        self._levels: Mapping[int, list[SegmentName]] | None = None
        self._readers: OrderedDict[SegmentName, SegmentReader] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._opening: dict[SegmentName, threading.Lock] = {}

    def refresh(self) -> None:
        """Read the listing again. Images that are open go on with what they were opened from."""
        found: dict[int, list[SegmentName]] = {}
        sizes: dict[SegmentName, int] = {}
        for one in self.store.list(f"{self.volume}/"):
            name = SegmentName.parse(one.name)
            if name is not None and name.volume == self.volume:
                found.setdefault(name.level, []).append(name)
                sizes[name] = one.size_bytes
        self.sizes = MappingProxyType(sizes)
        self._levels = MappingProxyType({level: _sorted(level, names) for level, names in sorted(found.items())})

    def levels(self) -> Mapping[int, list[SegmentName]]:
        """Return the segments of each level in order, those of level 0 without any that another covers. Only levels that have some."""
        if self._levels is None:
            self.refresh()
        assert self._levels is not None
        return self._levels

    def header(self, name: SegmentName) -> SegmentHeader:
        """Return the header of a segment. Raises IntegrityError that names the file."""
        return self.reader(name).header

    def reader(self, name: SegmentName) -> SegmentReader:
        """Return a reader of a segment, opened now or before, by one thread alone. Raises IntegrityError that names the file."""
        with self._lock:
            reader = self._known(name)
            if reader is not None:
                return reader
            opening = self._opening.setdefault(name, threading.Lock())
        with opening:
            with self._lock:
                reader = self._known(name)
            return reader if reader is not None else self._open(name)

    def _known(self, name: SegmentName) -> SegmentReader | None:
        """Return a reader that is open already; the lock is held."""
        reader = self._readers.get(name)
        if reader is not None:
            self._readers.move_to_end(name)
        return reader

    def _open(self, name: SegmentName) -> SegmentReader:
        reader = SegmentReader(self.store, name)
        reader.forget()
        with self._lock:
            self._opening.pop(name, None)
            self._readers[name] = reader
            self._bytes += _cost(reader.header)
            while self._bytes > self._headers_bytes_max and len(self._readers) > 1:
                self._bytes -= _cost(self._readers.popitem(last=False)[1].header)
        return reader

    def layer(self, name: SegmentName, through: Position) -> Layer:
        """Return a segment up to a position as a layer of an image; nothing is read until its bytes are asked for."""
        segment = _Cataloged(self, name)
        if name.level > AS_WRITTEN:
            return FoldLayer(segment, cache=self._cache)
        return SegmentLayer(segment, through, cache=self._cache)

    def cover(self, position: Position) -> tuple[list[SegmentName], Position]:
        """Return what `cover` finds for this volume."""
        return cover(self.levels(), position, self.header)

    def size_bytes(self, names: Sequence[SegmentName], position: Position) -> int | None:
        """Return the size that the volume has at a position, told by the marks of the segments that cover it; None if none tells it."""
        for name in reversed(names):
            for mark in reversed(self.header(name).marks):
                if mark.position <= position and mark.size_bytes is not None:
                    return mark.size_bytes
        return None

    def image(self, position: Position) -> Image:
        """Return the image at a position that segments alone reach. Raises RecoveryError if they don't, IntegrityError for bad headers."""
        names, reached = self.cover(position)
        size_bytes = self.size_bytes(names, position)
        if reached != position or size_bytes is None:
            raise RecoveryError(
                f"The store has no moment {position}",
                volume=self.volume,
                reached=reached,
                hint="Between the ends of folds there is nothing to go back to; `hostoffload points` shows what there is.",
            )
        return Image(self.volume, position, size_bytes, [self.layer(name, position) for name in names])


class _Cataloged:
    """A segment whose header may be dropped and read again."""

    def __init__(self, catalog: Catalog, name: SegmentName) -> None:
        self._catalog = catalog
        self._name = name
        self.path = str(name)

    @property
    def header(self) -> SegmentHeader:
        return self._catalog.reader(self._name).header

    def payload(self, index: int) -> bytes:
        return self._catalog.reader(self._name).payload(index)

    def flags(self, index: int) -> bytes:
        return self._catalog.reader(self._name).flags(index)

    @property
    def pages(self) -> Sequence[PageEntry]:
        return self._catalog.reader(self._name).pages

    def page(self, index: int) -> Page:
        return self._catalog.reader(self._name).page(index)

    def fold_payload(self, block: FoldBlock) -> bytes:
        return self._catalog.reader(self._name).fold_payload(block)


def cover(
    levels: Mapping[int, Sequence[SegmentName]],
    position: Position,
    header: Callable[[SegmentName], SegmentHeader],
    reached: Position = ZERO,
) -> tuple[list[SegmentName], Position]:
    """Return the fewest segments that give the bytes at `position`, the oldest first, and the position that they reach; on top of the bytes
    at `reached`.

    Each begins at or behind the start of the history, joins the one before, and is a fold that ends at or below the position, or a segment
    of level 0. What is reached is the position itself; or less, if the history has a hole there, has folded that moment away, or ends
    below: then the journal's tail may go on from it. Headers are read only where names don't tell whether a segment joins.
    """
    usable = [name for level, names in levels.items() for name in names if _usable(name, position)]
    usable.sort(key=lambda name: name.first)
    chosen: list[SegmentName] = []
    seen = 0
    best: SegmentName | None = None
    while reached < position:
        best, seen = _furthest(usable, seen, reached.next(), best, position)
        if best is None or best.last <= reached:
            if seen == len(usable) or not joins(header(usable[seen]), reached):
                break
            best, seen = _furthest(usable, seen, usable[seen].first, None, position)
        assert best is not None, "a segment that joins"
        chosen.append(best)
        reached = min(best.last, position)
    return chosen, reached


def _usable(name: SegmentName, position: Position) -> bool:
    return name.first <= position and (name.level == AS_WRITTEN or name.last <= position)


def _furthest(
    names: Sequence[SegmentName], seen: int, bound: Position, best: SegmentName | None, position: Position
) -> tuple[SegmentName | None, int]:
    """Return which of `best` and those from `seen` on that begin at or below `bound` reaches furthest, and how many were seen now."""
    while seen < len(names) and names[seen].first <= bound:
        best = max(names[seen], best or names[seen], key=lambda name: (min(name.last, position), name.level))
        seen += 1
    return best, seen


def joins(header: SegmentHeader, reached: Position) -> bool:
    """Tell whether a segment goes on behind a position, directly or over a gap that it tells of."""
    return header.coverage.follows == reached or any(gap.position == reached for gap in header.gaps)


def _sorted(level: int, names: list[SegmentName]) -> list[SegmentName]:
    return in_order(names) if level == AS_WRITTEN else sorted(names, key=lambda name: (name.first, name.last))


def _cost(header: SegmentHeader) -> int:
    entries = len(header.blocks) + len(header.marks) + len(header.pages)
    return HEADER_COST_BYTES + len(header.extents) * EXTENT_COST_BYTES + entries * BLOCK_COST_BYTES
