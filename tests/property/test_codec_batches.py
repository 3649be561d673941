"""Batches as columns against the same records as a list, and the running digest over every way to join them."""

from __future__ import annotations

import struct
from itertools import pairwise

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from stream.extent import Extent, ExtentSet
from stream.record import DIGEST_START, Batch, Kind, chain_digest
from tests.property.batches import batches

SPACE = 200


def rows(batch: Batch) -> list[tuple]:
    """Return the records as plain tuples, cut out of the columns by hand."""
    found, at = [], 0
    for index, kind in enumerate(batch.kinds):
        size = batch.lengths[index] if kind == Kind.WRITE else 0
        found.append(
            (
                batch.epoch,
                batch.first_sequence + index,
                kind,
                batch.flags[index],
                batch.offsets[index],
                batch.lengths[index],
                batch.capture_time_ns + batch.ages_ns[index],
                bytes(batch.payload[at : at + size]),
                batch.marks.get(index),
            )
        )
        at += size
    return found


@given(batches(), st.data())
def test_a_slice_is_a_slice_of_the_list(batch: Batch, data) -> None:
    start = data.draw(st.integers(0, batch.count - 1))
    stop = data.draw(st.integers(start + 1, batch.count))
    part = batch.slice(start, stop)
    assert part.problem() is None
    assert rows(part) == rows(batch)[start:stop]


@given(batches(), st.integers(-3, 15))
def test_after_leaves_what_is_above(batch: Batch, distance: int) -> None:
    sequence = max(0, batch.first_sequence + distance)
    above = [row for row in rows(batch) if row[1] > sequence]
    part = batch.after(sequence)
    assert (rows(part) if part is not None else []) == above


@given(batches())
def test_records_are_the_rows(batch: Batch) -> None:
    for record, row in zip(batch.records(), rows(batch), strict=True):
        assert (record.position.epoch, record.position.sequence, record.kind, record.flags) == row[:4]
        assert (record.offset_bytes, record.length_bytes, record.capture_time_ns, record.payload) == row[4:8]
        assert record.attributes == (row[8] or {})


def digest_of(found: list[tuple]) -> bytes:
    """Chain the digest as the specification says it, over the list."""
    digest = bytes(16)
    for epoch, sequence, kind, flags, offset, length, time_ns, payload, attributes in found:
        told = digest + struct.pack("<QQBBQQQ", epoch, sequence, kind, flags, offset, length, time_ns)
        if kind == Kind.WRITE:
            told += xxhash.xxh3_128(payload).digest()
        elif attributes is not None:
            told += xxhash.xxh3_128("".join(f"{key}\0{attributes[key]}\0" for key in sorted(attributes)).encode()).digest()
        digest = xxhash.xxh3_128(told).digest()
    return digest


@given(batches(), st.sets(st.integers(1, 11)))
def test_the_digest_does_not_depend_on_how_records_are_joined(batch: Batch, cuts: set[int]) -> None:
    ends = sorted({cut for cut in cuts if cut < batch.count} | {batch.count})
    digest, start = DIGEST_START, 0
    for end in ends:
        digest = chain_digest(digest, batch.slice(start, end))
        start = end
    assert digest == chain_digest(DIGEST_START, batch) == digest_of(rows(batch))


@given(batches(), st.data())
def test_the_digest_sees_order(batch: Batch, data) -> None:
    """Two records exchanged, payload and all, give another digest unless they say the same."""
    if batch.count < 2:
        return
    found = rows(batch)
    index = data.draw(st.integers(0, batch.count - 2))
    first, second = found[index], found[index + 1]
    swapped = [*found[:index], (*first[:2], *second[2:]), (*second[:2], *first[2:]), *found[index + 2 :]]
    assert (digest_of(swapped) == chain_digest(DIGEST_START, batch)) == (swapped == found)


_span = st.tuples(st.integers(0, SPACE), st.integers(0, SPACE))


@given(st.lists(st.tuples(st.booleans(), _span), max_size=30), _span)
def test_an_extent_set_is_a_row_of_bytes(steps: list, asked: tuple[int, int]) -> None:
    """Adding and removing against a bytearray of flags."""
    found, model = ExtentSet(), bytearray(SPACE)
    for add, (start, end) in steps:
        (found.add if add else found.remove)(start, end)
        model[start:end] = bytes([add]) * max(0, end - start) if start < end else model[start:end]
    runs = list(found)
    assert b"".join(_flags(runs)) == bytes(model)
    assert found.total_bytes == sum(model)
    assert len(found) == len(runs)
    assert all(before.end_bytes < after.offset_bytes for before, after in pairwise(runs)), "not merged"
    start, end = asked
    inside = [at for span in found.covered(start, end) for at in range(*span)]
    outside = [at for span in found.missing(start, end) for at in range(*span)]
    assert inside == [at for at in range(start, end) if model[at]]
    assert outside == [at for at in range(start, end) if not model[at]]


def _flags(runs: list[Extent]) -> list[bytes]:
    parts, at = [], 0
    for run in runs:
        parts += [bytes(run.offset_bytes - at), b"\1" * run.length_bytes]
        at = run.end_bytes
    return [*parts, bytes(SPACE - at)]
