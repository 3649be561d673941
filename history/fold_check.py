"""A fold against what it is made of: the same range folded again from the level below, and compared byte by byte.

Called by the checker. What matters is what is shown: where one of both wrote nothing, what lies below counts, since a fold may repeat bytes
from before its range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from history.block_cache import BlockCache
from history.catalog import Catalog, cover
from history.fold import SOURCES_MAX, FoldTask, fold_header, write_fold
from history.fold_layer import FoldLayer
from history.fold_writer import FoldWriter, Spool
from history.image import REGION_BYTES, Found, Image, Layer, resolve
from history.levels import AS_WRITTEN, SNAPSHOT
from history.segment import SegmentHeader, SegmentName
from stream.position import ZERO

CACHE_BYTES = 64 << 20
SPANS_MAX = 4096


class Differs(Exception):
    """The fold shows other bytes than what it is made of, at these `(start, end)`."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        super().__init__(f"{len(spans)} extents differ")
        self.spans = spans


def sources_of(
    name: SegmentName, headers: Mapping[SegmentName, SegmentHeader], levels: Mapping[int, Sequence[SegmentName]]
) -> FoldTask | None:
    """Return how a fold can be made again from the levels below, the finest first; None if none leads from its beginning to its end."""
    follows = headers[name].coverage.follows
    for below in range(AS_WRITTEN, name.level):
        sources, at = cover({below: levels.get(below, [])}, name.last, headers.__getitem__, follows)
        if at == name.last and sources and (below == AS_WRITTEN or len(sources) <= SOURCES_MAX):
            return FoldTask(name.volume, name.level, tuple(sources), name.last)
    if name.level == SNAPSHOT:
        older = [one for one in levels.get(SNAPSHOT, []) if one.last < name.last]
        for base in reversed(older):
            for below in range(AS_WRITTEN, SNAPSHOT):
                sources, at = cover({below: levels.get(below, [])}, name.last, headers.__getitem__, base.last)
                if at == name.last and sources and below > AS_WRITTEN and len(sources) < SOURCES_MAX:
                    return FoldTask(name.volume, SNAPSHOT, (base, *sources), name.last)
    return None


def same_facts(catalog: Catalog, name: SegmentName, task: FoldTask) -> bool:
    """Tell whether a fold has the marks, the gaps and the times of what it is made of."""
    made, anew = catalog.header(name), fold_header(catalog, task)
    follows = made.coverage.follows
    marks = tuple(mark for mark in anew.marks if mark.position > follows)
    gaps = tuple(gap for gap in anew.gaps if gap.position >= follows)
    return (made.marks, made.gaps, made.coverage.last_capture_time_ns) == (marks, gaps, anew.coverage.last_capture_time_ns)


def compare(catalog: Catalog, name: SegmentName, task: FoldTask) -> None:
    """Raise Differs if the fold does not show what `task` gives. Raises IntegrityError, RetryError and ConfigError as they come."""
    follows = catalog.header(name).coverage.follows
    base_names, at = cover(catalog.levels(), follows, catalog.header)
    cache = BlockCache(CACHE_BYTES)
    base: list[Layer] = [catalog.layer(one, follows) for one in base_names] if at == follows and follows > ZERO else []
    with ExitStack() as stack:
        spool = Spool(None)
        stack.callback(spool.close)
        again = FoldWriter(task.volume, task.through, spool, "none")
        write_fold(catalog, task, again, cache, stack)
        made = FoldLayer(catalog.reader(name), cache=cache)
        anew = FoldLayer(again, cache=cache)
        limit = _end(catalog, name)
        spans: list[tuple[int, int]] = []
        at_bytes = 0
        while len(spans) < SPANS_MAX:
            starts = [start for layer in (made, anew) if (start := layer.next_start(at_bytes)) is not None and start < limit]
            if not starts:
                break
            at_bytes = min(starts)
            end = min(at_bytes + REGION_BYTES, limit)
            spans += _different(name, [*base, made], [*base, anew], at_bytes, end)
            at_bytes = end
    if spans:
        raise Differs(spans)


def _end(catalog: Catalog, name: SegmentName) -> int:
    """Return the size of the volume at the end of a fold: what lies behind it is shown to nobody."""
    return catalog.size_bytes(catalog.cover(name.last)[0], name.last) or 0


def _different(name: SegmentName, one: Sequence[Layer], other: Sequence[Layer], start: int, end: int) -> list[tuple[int, int]]:
    """Return the extents that two stacks of layers show differently."""
    if _zeroes(resolve(one, start, end)) and _zeroes(resolve(other, start, end)):
        return []
    shown = []
    for layers in (one, other):
        data = bytearray(end - start)
        Image(name.volume, name.last, end, layers).read(start, memoryview(data))
        shown.append(data)
    if shown[0] == shown[1]:
        return []
    spans: list[tuple[int, int]] = []
    for at in range(0, end - start, 512):
        if shown[0][at : at + 512] != shown[1][at : at + 512]:
            stop = min(start + at + 512, end)
            if spans and spans[-1][1] == start + at:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((start + at, stop))
    return spans


def _zeroes(found: Sequence[Found]) -> bool:
    return all(one.piece.is_zero for one in found)
