"""Folds: several segments into one that holds the last write of each extent, with the same end and the same facts.

Called by `history.retention`'s executor. Only the end of a fold is a moment; it is one by the rules of `history.moments`, and no write is
split there. Marks and gaps of the range stay (`_marks` says which), so the timeline of what was folded can still be told.

Segments of level 0 are sorted first: `RUN_BYTES` of payload at a time become a run on a scratch file, each block read once, in order. Runs
and folds are then merged in the order of the volume, each block of each read once. Memory, whatever the size: a run (`RUN_BYTES` and its
extents), a block and a page for each of `SOURCES_MAX` sources, the header; below 256 MiB. The scratch file is as large as what was written
in the range, at most. The file is durable under its name when `fold` returns; before, nothing of it can be seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from history.block_cache import BlockCache
from history.catalog import Catalog
from history.extent_index import ZEROES, ExtentIndex, newest
from history.fold_layer import FoldLayer
from history.fold_writer import FoldWriter, Spool
from history.image import REGION_BYTES, resolve
from history.levels import AS_WRITTEN, HOUR, SNAPSHOT
from history.reader import SegmentReader
from history.segment import Coverage, Origin, SegmentHeader, SegmentName, StoredGap, StoredMark
from stream.errors import IntegrityError
from stream.extent import VOLUME_BYTES_MAX
from stream.position import Position
from stream.record import Kind, chain_digest

RUN_BYTES = 32 << 20
RUN_EXTENTS_MAX = 128 << 10
RUNS_MAX = 24
SOURCES_MAX = 64
CACHE_BYTES = 64 << 20
WINDOW_BYTES_MAX = 256 << 20


@dataclass(frozen=True, slots=True)
class FoldTask:
    """What to fold: `sources` in order, each joining the one before, up to `through`, behind `after` (a fold's end; None: from the start
    of the first source on)."""

    volume: str
    level: int
    sources: tuple[SegmentName, ...]
    through: Position
    after: SegmentName | None = None

    def __post_init__(self) -> None:
        assert self.sources and self.level > 0, self
        assert self.sources[0].level == AS_WRITTEN or len(self.sources) <= SOURCES_MAX, self
        assert self.level < SNAPSHOT or self.after is None, "a snapshot says nothing of what reads as zero: it is made of everything"


def fold(catalog: Catalog, task: FoldTask, *, codec: str, scratch: Path | None = None) -> SegmentName:
    """Make a fold and store it, durable on return; one that is there already is left as it is.

    Raises IntegrityError for a source that is damaged or does not join, RetryError and ConfigError as the store does.
    """
    header = fold_header(catalog, task)
    cache = BlockCache(CACHE_BYTES)
    with ExitStack() as stack:
        spool = Spool(scratch)
        stack.callback(spool.close)
        writer = FoldWriter(task.volume, task.through, spool, codec)
        write_fold(catalog, task, writer, cache, stack, scratch=scratch)
        header = replace(header, pages=tuple(writer.pages))
        catalog.store.put(str(header.name), writer.parts(header))
    return header.name


def write_fold(
    catalog: Catalog,
    task: FoldTask,
    writer: FoldWriter,
    cache: BlockCache,
    stack: ExitStack,
    *,
    scratch: Path | None = None,
) -> None:
    """Write what the sources of a fold hold, and finish the writer; what is left on scratch files is closed with `stack`."""
    if task.sources[0].level > AS_WRITTEN:
        layers = [FoldLayer(catalog.reader(name), cache=cache) for name in task.sources]
        _merge(layers, writer, zeroes=task.level < SNAPSHOT)
    else:
        _Sorter(catalog, task, scratch, cache, stack).fold(writer)
    writer.finish()


def _merge(layers: Sequence[FoldLayer], writer: FoldWriter, *, zeroes: bool = True) -> None:
    """Write what the layers hold together, the newest last, in the order of the volume."""
    at, window = 0, REGION_BYTES
    buffer = memoryview(bytearray(REGION_BYTES))
    while starts := [start for layer in layers if (start := layer.next_start(at)) is not None]:
        at = min(starts)
        end = min(at + window, VOLUME_BYTES_MAX)
        found = resolve(layers, at, end)
        for one in found:
            if one.layer < 0:
                continue
            if not one.piece.is_zero:
                for start in range(one.start_bytes, one.end_bytes, len(buffer)):
                    piece = one.piece.part(start, min(start + len(buffer), one.end_bytes))
                    data = buffer[: piece.end_bytes - start]
                    layers[one.layer].read(piece, data)
                    writer.write(start, data)
            elif zeroes:
                writer.zero(one.start_bytes, one.end_bytes)
        window = min(window * 2, WINDOW_BYTES_MAX) if all(one.piece.is_zero for one in found) else REGION_BYTES
        at = end


class _Sorter:
    """Sorts what segments of level 0 wrote by its place on the volume."""

    def __init__(
        self, catalog: Catalog, task: FoldTask, scratch: Path | None, cache: BlockCache, stack: ExitStack
    ) -> None:
        self._catalog = catalog
        self._task = task
        self._scratch = scratch
        self._cache = cache
        self._stack = stack
        self._runs: list[tuple[FoldLayer, Spool]] = []
        self._entries: list[tuple[int, int, int, int]] = []
        self._blobs: list[bytes] = []
        self._begins: list[int] = []
        self._bytes = 0
        self._end_bytes = _end_before(catalog, task)  # no byte written so far lies behind it

    def fold(self, writer: FoldWriter) -> None:
        """Write what the sources hold; blocks of the store are read once."""
        for name in self._task.sources:
            self._take(self._catalog.reader(name))
        zeroes = self._task.level < SNAPSHOT
        if not self._runs:
            self._write(writer, zeroes=zeroes)
            return
        self._end_run()
        _merge([layer for layer, _ in self._runs], writer, zeroes=zeroes)

    def _take(self, reader: SegmentReader) -> None:
        header = reader.header
        shown = header.records_through(self._task.through)
        wanted: dict[int, list[tuple[int, int, int, int]]] = {}
        extents = header.extents
        for offset, length, record, payload in zip(extents.offsets, extents.lengths, extents.records, extents.payloads, strict=True):
            if record < shown:
                wanted.setdefault(header.block_of(record)[0], []).append((record, offset, offset + length, payload))
        for record, size in header.cuts:
            if record < shown and size < self._end_bytes:
                wanted.setdefault(header.block_of(record)[0], []).append((record, size, self._end_bytes, ZEROES))
            self._end_bytes = max(self._end_bytes, size)
        for index in sorted(wanted):
            payload = b"" if all(one[3] == ZEROES for one in wanted[index]) else reader.payload(index)
            for _, start, end, at in sorted(wanted[index]):
                self._entries.append((start, end, len(self._entries), at if at == ZEROES else self._bytes + at))
            self._blobs.append(payload)
            self._begins.append(self._bytes)
            self._bytes += len(payload)
            if self._bytes >= RUN_BYTES or len(self._entries) >= RUN_EXTENTS_MAX:
                self._end_run()

    def _end_run(self) -> None:
        """Put what was collected on a scratch file, in order; join the runs when there are many."""
        if self._entries:
            writer, spool = self._new_run()
            self._write(writer)
            self._add_run(writer, spool)
        if len(self._runs) >= RUNS_MAX:
            writer, spool = self._new_run()
            _merge([layer for layer, _ in self._runs], writer)
            for _, merged in self._runs:
                merged.close()
            self._runs = []
            self._add_run(writer, spool)

    def _new_run(self) -> tuple[FoldWriter, Spool]:
        spool = Spool(self._scratch)
        self._stack.callback(spool.close)
        return FoldWriter(self._task.volume, self._task.through, spool, "none"), spool

    def _add_run(self, writer: FoldWriter, spool: Spool) -> None:
        writer.finish()
        self._runs.append((FoldLayer(writer, cache=self._cache), spool))

    def _write(self, writer: FoldWriter, *, zeroes: bool = True) -> None:
        for start, end, _, at in newest(self._entries, 0, VOLUME_BYTES_MAX):
            if at != ZEROES:
                number = bisect_right(self._begins, at) - 1
                begin = at - self._begins[number]
                writer.write(start, memoryview(self._blobs[number])[begin : begin + end - start])
            elif zeroes:
                writer.zero(start, end)
        self._entries, self._blobs, self._begins, self._bytes = [], [], [], 0


def _end_before(catalog: Catalog, task: FoldTask) -> int:
    """Return the size that the volume has before the range of a fold, 0 if it has no history there."""
    if task.after is not None and (size := catalog.size_bytes([task.after], task.after.last)) is not None:
        return size
    names, reached = catalog.cover(catalog.header(task.sources[0]).coverage.follows)
    return catalog.size_bytes(names, reached) or 0


def fold_header(catalog: Catalog, task: FoldTask) -> SegmentHeader:
    """Return the header of the fold, without its pages."""
    headers = [catalog.header(name) for name in task.sources]
    begin, last = headers[0], headers[-1]
    coverage = begin.coverage
    if task.after is not None:
        before = catalog.header(task.after)
        _prove_join(before.name.last, begin, task)
        done = before.coverage
        coverage = replace(coverage, follows=before.name.last, digest_before=done.digest_after, open_gaps_before=done.open_gaps)
    for one, following in pairwise(headers):
        _prove_join(one.name.last, following, task)
    first = begin.name.first if begin.name.first > coverage.follows else _first_after(begin, coverage.follows)
    digest, time_ns = _end_of(catalog, last, task.through)
    marks = [mark for header in headers for mark in header.marks if coverage.follows < mark.position <= task.through]
    gaps = [gap for header in headers for gap in header.gaps if coverage.follows <= gap.position < task.through]
    return SegmentHeader(
        SegmentName(task.volume, task.level, first, task.through),
        Coverage(
            coverage.follows,
            coverage.digest_before,
            digest,
            coverage.first_capture_time_ns,
            time_ns,
            coverage.open_gaps_before,
            (),
        ),
        Origin(last.origin.topic_id, begin.origin.first_kafka_offset, last.origin.next_kafka_offset, last.origin.fence),
        tuple(_gaps(gaps, task.level, first)),
        tuple(_marks(marks, task.level, task.through)),
        (),
        (),
        ExtentIndex.of(()),
    )


def _prove_join(reached: Position, header: SegmentHeader, task: FoldTask) -> None:
    if header.name.first > reached and header.coverage.follows != reached and all(gap.position != reached for gap in header.gaps):
        raise IntegrityError(
            "Segments to be folded do not join", path=str(header.name), expected=reached, got=header.coverage.follows, volume=task.volume
        )


def _first_after(header: SegmentHeader, position: Position) -> Position:
    """Return the first position of a segment that stands behind another."""
    for block in header.blocks:
        if block.last > position:
            return max(block.first, position.next()) if block.first.epoch == position.epoch else block.first
    return position.next()


def _end_of(catalog: Catalog, header: SegmentHeader, through: Position) -> tuple[bytes, int]:
    """Return the running digest after a position of a segment, and its capture time."""
    if through == header.name.last:
        return header.coverage.digest_after, header.coverage.last_capture_time_ns
    for index, block in enumerate(header.blocks):
        if block.first <= through <= block.last:
            stored = catalog.reader(header.name).batch(index)
            part = stored.unpack().slice(0, through.sequence - block.first.sequence + 1)
            return chain_digest(stored.entry.digest_before, part), part.last_capture_time_ns
    raise IntegrityError("A segment to be folded does not reach its end", path=str(header.name), expected=through, got=header.name.last)


def _gaps(gaps: Sequence[StoredGap], level: int, first: Position) -> Iterator[StoredGap]:
    """Yield the gaps that a fold keeps, each once: all, or what a snapshot goes on over."""
    seen = set()
    for gap in sorted(gaps, key=lambda one: one.position):
        if (gap.position, gap.reason) not in seen and (level < SNAPSHOT or gap.position < first):
            seen.add((gap.position, gap.reason))
            yield gap


def _marks(marks: Sequence[StoredMark], level: int, through: Position) -> list[StoredMark]:
    """Return the marks that a fold keeps, each once, in order.

    All of them in the first fold. From hours on, of the verify marks the last of each chunk and the last of each round: what is proved is
    still told. A snapshot keeps nothing of the time before it but the volume's size, those, and what stands at its very end.
    """
    kept = {mark.position: replace(mark, record=-1) for mark in sorted(marks, key=lambda one: one.position)}
    if level >= HOUR:
        proofs = {mark.attributes.get("offset_bytes"): mark.position for mark in kept.values() if mark.kind == Kind.VERIFY}
        last = set(proofs.values())
        sizes = [mark.position for mark in kept.values() if mark.size_bytes is not None]
        kept = {
            at: mark
            for at, mark in kept.items()
            if (at in last or mark.attributes.get("last") == "true" if mark.kind == Kind.VERIFY else level < SNAPSHOT)
            or at == through
            or at in sizes[-1:]
        }
    return list(kept.values())
