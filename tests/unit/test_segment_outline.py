"""The outline of a segment says what its header says, of level 0 and of folds, of every version, and no damaged byte passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

import schemas
from history.extent_index import ExtentIndex
from history.outline import read_outline
from history.reader import SegmentReader, list_segments
from history.segment import SegmentName
from history.store import open_store
from stream.errors import IntegrityError
from tests.history_maker import damage
from tests.recovery_bench import RecoveryBench, busy_history


def test_it_is_the_header_without_its_index() -> None:
    bench = RecoveryBench(maker := busy_history(1, 30), len(maker.messages))
    for name in list_segments(bench.store, "v1"):
        header = SegmentReader(bench.store, name).header
        assert len(header.extents) > 0
        assert read_outline(bench.store, name) == replace(header, extents=ExtentIndex.of(()))


@pytest.mark.parametrize("path", sorted(schemas.FOLDER.glob("golden/*.avro")), ids=lambda path: path.name)
def test_it_reads_every_version(path) -> None:
    store = open_store("memory:///")
    raw = path.read_bytes()
    name = _name_in(raw)
    store.put(str(name), [raw])
    header = SegmentReader(store, name).header
    assert read_outline(store, name) == replace(header, extents=ExtentIndex.of(()), pages=())


def test_no_damaged_byte_passes() -> None:
    bench = RecoveryBench(maker := busy_history(1, 2), len(maker.messages), seals=1)
    (name,) = list_segments(bench.store, "v1")
    size = SegmentReader(bench.store, name)._blocks_begin
    whole = bench.store.get(str(name))
    for at in range(0, size, 7):
        damage(bench.store, str(name), at)
        with pytest.raises(IntegrityError):
            read_outline(bench.store, name)
        bench.store.delete(str(name))
        bench.store.put(str(name), [whole])
    bench.store.delete(str(name))
    bench.store.put(str(name), [whole[: size // 2]])
    with pytest.raises(IntegrityError):
        read_outline(bench.store, name)


def _name_in(raw: bytes) -> SegmentName:
    import io

    import fastavro

    part = next(fastavro.reader(io.BytesIO(raw)))["part"]
    told = part[1] if isinstance(part, tuple) else part
    first, last = (f"{told[f'{end}_epoch']:08d}-{told[f'{end}_sequence']:016d}" for end in ("first", "last"))
    name = SegmentName.parse(f"{told['volume']}/L{told['level']}/{first}_{last}.avro")
    assert name is not None
    return name
