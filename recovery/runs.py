"""Runs: an account of what was written to a volume, with a digest of each piece, kept by regions of the volume.

Used by `restore`, which reads all of it back afterwards, and by `comparison`. 24 bytes a run, so that millions fit into memory. Pure;
callers that add from several threads hold a lock.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xxhash

REGION_BYTES = 8 << 20
_ENTRY = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """Bytes `[start_bytes, end_bytes)`, inside one region, and the xxh3_64 of what they must be."""

    start_bytes: int
    end_bytes: int
    digest: int


def digest_of(data: memoryview) -> int:
    """Return the digest that a run of these bytes has."""
    return xxhash.xxh3_64_intdigest(data)


class Runs:
    """Runs by region; none overlaps another."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._regions: dict[int, array[int]] = {}
        self.total_bytes = 0
        for run in runs:
            self.add(run)

    def __iter__(self) -> Iterator[Run]:
        for region in sorted(self._regions):
            yield from self.region(region)

    def __len__(self) -> int:
        return sum(len(flat) for flat in self._regions.values()) // 3

    def add(self, run: Run) -> None:
        """Add a run that lies in one region."""
        assert run.start_bytes // REGION_BYTES == (run.end_bytes - 1) // REGION_BYTES, run
        self._regions.setdefault(run.start_bytes // REGION_BYTES, array("Q")).extend((run.start_bytes, run.end_bytes, run.digest))
        self.total_bytes += run.end_bytes - run.start_bytes

    def region(self, number: int) -> list[Run]:
        """Return the runs of a region, sorted."""
        flat = self._regions.get(number, ())
        return sorted(Run(*flat[index : index + 3]) for index in range(0, len(flat), 3))


def gaps_between(runs: Iterable[Run], start_bytes: int, end_bytes: int) -> list[tuple[int, int]]:
    """Return what of `[start_bytes, end_bytes)` no run covers, sorted. The runs are sorted and lie inside."""
    gaps = []
    at = start_bytes
    for run in runs:
        if at < run.start_bytes:
            gaps.append((at, run.start_bytes))
        at = run.end_bytes
    if at < end_bytes:
        gaps.append((at, end_bytes))
    return gaps


def pack_runs(runs: Runs) -> bytes:
    """Return runs as bytes, 24 each."""
    packed = bytearray()
    for run in runs:
        packed += _ENTRY.pack(run.start_bytes, run.end_bytes, run.digest)
    return bytes(packed)


def unpack_runs(data: bytes) -> Runs:
    """Return what `pack_runs` packed."""
    return Runs(Run(*entry) for entry in _ENTRY.iter_unpack(data))
