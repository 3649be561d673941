"""What to write to a replica for a window of batches: each byte once, sorted, neighbours joined.

Pure; called by the target for each apply window, and by nobody who needs order between the writes it returns: after all of them the
replica holds what applying the records one by one would have left. `plan` takes 1-2 us a record when nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stream.extent import ExtentSet
from stream.record import Batch, Kind

_WRITE = int(Kind.WRITE)
_ZERO = int(Kind.ZERO)

Pieces = list[memoryview] | None
"""Bytes to be written one behind the other, or None for zeroes."""

_Write = tuple[int, int, int, memoryview | None]  # offset, order in the window, length, payload


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """Disjoint writes `(offset_bytes, length_bytes, pieces)`, sorted by offset; `end_bytes` is the first byte behind all of them.

    `record_bytes` counts what the records carried, overwritten bytes included.
    """

    writes: Sequence[tuple[int, int, Pieces]]
    record_bytes: int
    end_bytes: int


def complete(batches: Iterable[Batch]) -> list[Batch]:
    """Return the batches without the fragments of splits that were given up: those that a newer epoch cut off (design rule 6)."""
    kept: list[Batch] = []
    for batch in batches:
        if kept and batch.epoch != kept[-1].epoch:
            _drop_open_split(kept)
        kept.append(batch)
    return kept


def complete_count(batch: Batch) -> int:
    """Return how many records of the batch come before the split that it ends inside of; all of them if it ends inside none."""
    return batch.flags.rfind(b"\0") + 1


def plan(batches: Sequence[Batch]) -> ApplyPlan:
    """Plan one window of batches in their order; the later of two overlapping records wins. Payload is not copied."""
    writes, record_bytes = _writes(batches)
    writes.sort()  # by offset, then by order: payloads are never compared
    disjoint: list[_Write] = []
    cluster: list[_Write] = []
    cluster_end = -1
    for write in writes:
        if write[0] >= cluster_end:
            disjoint += cluster if len(cluster) < 2 else _last_wins(cluster)
            cluster = [write]
            cluster_end = write[0] + write[2]
        else:
            cluster.append(write)
            cluster_end = max(cluster_end, write[0] + write[2])
    disjoint += cluster if len(cluster) < 2 else _last_wins(cluster)
    return ApplyPlan(_joined(disjoint), record_bytes, max(cluster_end, 0))


def _writes(batches: Sequence[Batch]) -> tuple[list[_Write], int]:
    writes: list[_Write] = []
    order = record_bytes = 0
    for batch in batches:
        view = memoryview(batch.payload)
        at = 0
        for kind, offset, length in zip(batch.kinds, batch.offsets, batch.lengths, strict=True):
            if kind == _WRITE:
                if length:
                    writes.append((offset, order, length, view[at : at + length]))
                at += length
            elif kind == _ZERO and length:
                writes.append((offset, order, length, None))
                record_bytes += length
            order += 1
        record_bytes += at
    return writes, record_bytes


def _last_wins(cluster: list[_Write]) -> list[_Write]:
    """Return the parts of overlapping writes that are still seen after the last of them, sorted by offset."""
    covered = ExtentSet()
    seen: list[_Write] = []
    for offset, order, length, payload in sorted(cluster, key=_order_of, reverse=True):
        for start, end in covered.missing(offset, offset + length):
            part = None if payload is None else payload[start - offset : end - offset]
            seen.append((start, order, end - start, part))
        covered.add(offset, offset + length)
    seen.sort()
    return seen


def _order_of(write: _Write) -> int:
    return write[1]


def _joined(disjoint: list[_Write]) -> list[tuple[int, int, Pieces]]:
    """Join neighbours of the same sort: one system call for a run of writes."""
    joined: list[tuple[int, int, Pieces]] = []
    run_offset = run_end = -1
    run: Pieces = None
    for offset, _, length, payload in disjoint:
        if offset == run_end and (payload is None) == (run is None):
            if payload is not None:
                run.append(payload)
        else:
            if run_end >= 0:
                joined.append((run_offset, run_end - run_offset, run))
            run_offset = offset
            run = None if payload is None else [payload]
        run_end = offset + length
    if run_end >= 0:
        joined.append((run_offset, run_end - run_offset, run))
    return joined


def _drop_open_split(kept: list[Batch]) -> None:
    while kept and kept[-1].ends_inside_split:
        last = kept.pop()
        count = complete_count(last)
        if count:
            kept.append(last.slice(0, count))
