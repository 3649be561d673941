"""A fold as a layer of an image: one page and one block for what is looked at, both through the shared cache.

Used by `history.catalog` for folds of the store and by `history.fold` for what it has on its scratch file.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol

from history.block_cache import BLOCKS, BlockCache
from history.extent_index import ZEROES
from history.fold_page import FoldBlock, Page
from history.image import LayerPiece
from history.segment import PageEntry

_end = attrgetter("end_bytes")


class Fold(Protocol):
    """A fold as it is read: `history.reader.SegmentReader`, `history.fold_writer.FoldWriter`."""

    path: str

    @property
    def pages(self) -> Sequence[PageEntry]: ...

    def page(self, index: int) -> Page: ...

    def fold_payload(self, block: FoldBlock) -> bytes: ...


class FoldLayer:
    """What a fold's range of history wrote last."""

    def __init__(self, fold: Fold, *, cache: BlockCache = BLOCKS) -> None:
        self._fold = fold
        self._cache = cache

    def pieces(self, start_bytes: int, end_bytes: int) -> list[LayerPiece]:
        found = []
        pages = self._fold.pages
        number = bisect_right(pages, start_bytes, key=_end)
        while number < len(pages) and pages[number].start_bytes < end_bytes:
            page = self._page(pages[number], number)
            index = bisect_right(page.ends, start_bytes)
            stop = bisect_left(page.starts, end_bytes)
            for one in range(index, stop):
                start, end, payload = page.starts[one], page.ends[one], page.payloads[one]
                begin, last = max(start, start_bytes), min(end, end_bytes)
                if payload == ZEROES:
                    found.append(LayerPiece(begin, last, True))
                else:
                    found.append(LayerPiece(begin, last, False, (number, page.blocks[one], payload + begin - start)))
            number += 1
        return found

    def read(self, piece: LayerPiece, into: memoryview) -> None:
        number, block, at = piece.reference
        place = self._page(self._fold.pages[number], number).table[block]
        key = (self._fold.path, place.offset_bytes, place.checksum)
        data = self._cache.get(key, lambda: self._fold.fold_payload(place))
        into[:] = memoryview(data)[at : at + len(into)]

    def next_start(self, at_bytes: int) -> int | None:
        """Return where the first extent that ends behind `at_bytes` begins, or `at_bytes` if it has begun; None if there is none."""
        pages = self._fold.pages
        number = bisect_right(pages, at_bytes, key=_end)
        if number == len(pages):
            return None
        if pages[number].start_bytes >= at_bytes:
            return pages[number].start_bytes
        page = self._page(pages[number], number)
        return max(at_bytes, page.starts[bisect_right(page.ends, at_bytes)])

    def _page(self, entry: PageEntry, number: int) -> Page:
        return self._cache.get((self._fold.path, "page", entry.offset_bytes, entry.checksum), lambda: self._fold.page(number), _cost)


def _cost(page: Page) -> int:
    return page.cost_bytes
