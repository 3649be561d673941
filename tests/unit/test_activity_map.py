"""The map of the activity log against a set of integers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.activity_map import ActivityMap, map_bytes, sectors
from tests.activity_disk import MAP_AT, set_in

COUNTS = [1, 7, 8, 9, 4031, 4032, 4033, 8064, 33_000]


def written(bits: ActivityMap, content: bytearray) -> bytes:
    """Write what is to be written into a file's content."""
    for at, piece in bits.seal():
        assert at % 4096 == len(piece) % 4096 == 0
        content[MAP_AT + at : MAP_AT + at + len(piece)] = piece
    return bytes(content)


def regions(bits: ActivityMap) -> set[int]:
    return {region for region, byte in enumerate(bits.spread()) if byte}


def file_of(count: int) -> bytearray:
    return bytearray(MAP_AT + map_bytes(count))


@pytest.mark.parametrize("count", COUNTS)
def test_clear_and_full(count: int) -> None:
    bits, content = ActivityMap.clear_of(count), file_of(count)
    assert set_in(bytes(content), count) == set(range(count)), "zero bytes are no map"
    assert set_in(written(bits, content), count) == set()
    assert bits.spread() == bytes(count)
    bits.set(0, count)
    assert set_in(written(bits, content), count) == set(range(count))
    assert bits.spread() == b"\1" * count
    bits.clear(0, count)
    assert set_in(written(bits, content), count) == set()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.sampled_from([9, 4033, 12_100]))
def test_any_runs(data: st.DataObject, count: int) -> None:
    bits, content, expected = ActivityMap.clear_of(count), file_of(count), set()
    for _ in range(data.draw(st.integers(1, 8))):
        edges = st.sampled_from([at for at in (0, 8, 4031, 4032, count - 1) if at < count])
        first = data.draw(st.one_of(st.integers(0, count - 1), edges))
        stop = data.draw(st.one_of(st.integers(first, min(first + 20, count)), st.integers(first, count)))
        if data.draw(st.booleans()):
            bits.set(first, stop)
            expected |= set(range(first, stop))
        else:
            bits.clear(first, stop)
            expected -= set(range(first, stop))
        if data.draw(st.booleans()):
            written(bits, content)
    raw = written(bits, content)
    assert set_in(raw, count) == expected
    assert regions(bits) == expected
    found, damaged = ActivityMap.read(count, raw[MAP_AT:])
    assert damaged == 0
    assert found.spread() == bits.spread()
    assert bits.seal() == []


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 3 * 512 - 1), change=st.integers(1, 255))
def test_no_damaged_sector_is_believed(at: int, change: int) -> None:
    count = 2 * 4032 + 5
    bits, content = ActivityMap.clear_of(count), file_of(count)
    bits.set(3, 9)
    raw = bytearray(written(bits, content))
    raw[MAP_AT + at] ^= change
    found, damaged = ActivityMap.read(count, bytes(raw[MAP_AT:]))
    hurt = set(range(at // 512 * 4032, min((at // 512 + 1) * 4032, count)))
    assert damaged == 1
    assert regions(found) == hurt | set(range(3, 9))
    assert set_in(written(found, bytearray(raw)), count) == hurt | set(range(3, 9)), "what is not believed is written anew"


def test_a_sector_in_the_place_of_another_is_not_believed() -> None:
    count = 3 * 4032
    raw = written(ActivityMap.clear_of(count), file_of(count))[MAP_AT:]
    found, damaged = ActivityMap.read(count, raw[512:1024] + raw[:512] + raw[1024:])
    assert damaged == 2
    assert found.spread().count(1) == 2 * 4032


@pytest.mark.parametrize(("old", "new"), [(1, 2), (4032, 4033), (5, 40_000), (4033, 8064), (8, 16)])
def test_growth_is_clear(old: int, new: int) -> None:
    bits = ActivityMap.clear_of(old)
    bits.set(old - 1, old)
    bits.seal()
    bits.grow(new)
    bits.set(new - 1, new)
    content = file_of(new)
    content[MAP_AT:] = bytes(bits._raw)
    assert set_in(written(bits, content), new) == {old - 1, new - 1}
    assert len(bits.spread()) == new


@pytest.mark.parametrize("count", COUNTS)
def test_sizes(count: int) -> None:
    assert sectors(count) == (count + 4031) // 4032
    assert map_bytes(count) % 4096 == 0
    assert sectors(count) * 512 <= map_bytes(count) < sectors(count) * 512 + 4096


def test_only_pages_that_changed_are_written() -> None:
    bits = ActivityMap.clear_of(40 * 4032)
    bits.seal()
    bits.set(0, 1)
    bits.set(9 * 4032, 9 * 4032 + 1)
    bits.set(39 * 4032, 40 * 4032)
    assert [(at, len(piece)) for at, piece in bits.seal()] == [(0, 8192), (4 * 4096, 4096)]
