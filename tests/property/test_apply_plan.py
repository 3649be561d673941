"""Apply plans against a bytearray that the records are written to one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cx_consumers.apply import complete, plan
from stream.record import FLAG_MORE, Batch, Kind

VOLUME_BYTES = 512

_record = st.tuples(
    st.sampled_from([Kind.WRITE, Kind.WRITE, Kind.ZERO, Kind.FLUSH, Kind.HEARTBEAT]),
    st.integers(0, VOLUME_BYTES - 1),
    st.integers(0, 80),
    st.integers(0, 255),
)


def _batch(epoch: int, first: int, records: list[tuple[Kind, int, int, int]], flags: bytes | None = None) -> Batch:
    shaped = []
    for kind, offset, length, fill in records:
        length = min(length, VOLUME_BYTES - offset) if kind in (Kind.WRITE, Kind.ZERO) else 0
        shaped.append((kind, offset, length, bytes([fill + at & 255 for at in range(length)])))
    return Batch(
        "v",
        epoch,
        first,
        0,
        bytes(kind for kind, *_ in shaped),
        flags or bytes(len(shaped)),
        [offset for _, offset, _, _ in shaped],
        [length for _, _, length, _ in shaped],
        [0] * len(shaped),
        b"".join(data for kind, _, _, data in shaped if kind == Kind.WRITE),
    )


def _told(batches: list[Batch], image: bytearray) -> bytearray:
    for batch in batches:
        for record in batch.records():
            if record.kind == Kind.WRITE:
                image[record.offset_bytes : record.offset_bytes + record.length_bytes] = record.payload
            elif record.kind == Kind.ZERO:
                image[record.offset_bytes : record.offset_bytes + record.length_bytes] = bytes(record.length_bytes)
    return image


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(_record, min_size=1, max_size=12), max_size=5), st.binary(min_size=VOLUME_BYTES, max_size=VOLUME_BYTES))
def test_plan_leaves_what_the_records_leave(told: list[list[tuple[Kind, int, int, int]]], before: bytes) -> None:
    first, batches = 1, []
    for records in told:
        batches.append(_batch(1, first, records))
        first += len(records)
    made = plan(batches)
    image, end = bytearray(before), 0
    for offset, length, pieces in made.writes:
        assert offset >= end, "writes are sorted and disjoint"
        assert length > 0
        end = offset + length
        data = bytes(length) if pieces is None else b"".join(pieces)
        assert len(data) == length
        image[offset:end] = data
    assert image == _told(batches, bytearray(before))
    assert made.end_bytes == end
    carried = [kind in (Kind.WRITE, Kind.ZERO) for batch in batches for kind in batch.kinds]
    lengths = [length for batch in batches for length in batch.lengths]
    assert made.record_bytes == sum(length for length, counts in zip(lengths, carried, strict=True) if counts)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=16, unique=True))
def test_plan_joins_neighbours(slots: list[int]) -> None:
    made = plan([_batch(1, 1, [(Kind.WRITE, slot * 32, 32, slot) for slot in slots])])
    runs = sum(slot - 1 not in slots for slot in slots)
    assert len(made.writes) == runs


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_complete_drops_only_what_an_epoch_cut_off(shape: list[tuple[int, bool, bool]]) -> None:
    """Each batch has `count` writes, ends inside a split or not, and begins a newer epoch or not."""
    epoch, first, batches, kept, held = 1, 1, [], [], []
    for count, inside, newer in shape:
        if newer:
            epoch += 1
            held = []  # what the old epoch left open is given up
        flags = bytes(count - 1) + bytes([FLAG_MORE if inside else 0])
        batch = _batch(epoch, first, [(Kind.WRITE, (first + at) % 64, 1, first + at) for at in range(count)], flags)
        for at in range(count):
            held.append((epoch, first + at))
            if not flags[at]:
                kept += held
                held = []
        first += count
        batches.append(batch)
    kept += held  # the last split may still go on
    found = [(one.position.epoch, one.position.sequence) for batch in complete(batches) for one in batch.records()]
    assert found == kept
