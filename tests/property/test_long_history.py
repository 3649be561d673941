"""A long history, seeded: a hundred thousand writes, an oracle at two hundred instants, before and after folding."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from history.catalog import Catalog
from history.checker import Checked, check_volume
from history.image import Image
from history.retention_table import parse_table
from history.store import open_store
from history.upkeep import Policy, Upkeep
from stream.position import Position
from tests.history_load import LongHistory

VOLUME_BYTES = 24 << 20


def digest(image: Image) -> bytes:
    """Return the digest of an image's bytes, read in the order in which they are stored."""
    shown = bytearray(image.size_bytes)
    for offset, data in image.sweep():
        shown[offset : offset + len(data)] = data
    return xxhash.xxh3_128_digest(shown)


def in_order(image: Image) -> bytes:
    """Return the same, read in the order of the volume."""
    shown = bytearray(image.size_bytes)
    for at in range(0, len(shown), 1 << 20):
        image.read(at, memoryview(shown)[at : at + (1 << 20)])
    return xxhash.xxh3_128_digest(shown)


@pytest.mark.slow
def test_a_hundred_thousand_writes_at_two_hundred_instants(tmp_path: Path) -> None:
    """Every write is a moment; folded, the ends of folds are, and what is young enough; the rest says that it is not there."""
    store = open_store(str(tmp_path))
    history = LongHistory(store, 42, VOLUME_BYTES, segment_bytes=1 << 20, record_ns=20_000_000)
    history.write_all(100_000, 200)
    assert len(history.instants) == 200
    catalog = Catalog(store, "v1")
    for number, (position, expected) in enumerate(history.instants.items()):
        image = catalog.image(position)
        assert digest(image) == expected, position
        if number % 20 == 0:
            assert in_order(image) == expected, position
    table = parse_table("any write 6 min, 1 min for 15 min, 3 min for 25 min, 6 min for 30 min")
    Upkeep(store, "v1", Policy(table, codec="snappy")).run_once()
    catalog.refresh()
    levels = catalog.levels()
    assert set(levels) == {0, 1, 2, 3}
    newest = levels[0][-1].last
    young = [position for position in history.instants if position >= levels[0][0].last]
    assert young and newest in history.ends
    for position in young:
        assert digest(catalog.image(position)) == history.instants[position], position
    for level in (1, 2, 3):
        assert len(levels[level]) >= 4
        for name in levels[level]:
            assert in_order(catalog.image(name.last)) == history.ends[name.last], name
    gone = [position for position in history.instants if _reached(catalog, position) != position]
    assert gone and all(position < levels[0][0].first for position in gone)
    assert list(check_volume(store, "v1", Checked())) == []


def _reached(catalog: Catalog, position: Position) -> Position:
    return catalog.cover(position)[1]
