"""The owed map against a set of integers: one for each 64 KiB of the volume."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.ring import VolumeRing

GRAIN = 64 << 10
SIZES = [1, 4096, GRAIN - 1, GRAIN, GRAIN + 1, 7 * GRAIN, 8 * GRAIN, 9 * GRAIN + 5, 64 * GRAIN, 200 * GRAIN + 1, 33_000 * 8 * GRAIN]


def fresh(size_bytes: int) -> Iterator[VolumeRing]:
    with tempfile.TemporaryDirectory() as folder:
        ring = VolumeRing.create(Path(folder) / "v.ring", "v", size_bytes)
        yield ring
        ring.close()


class OwedMap(RuleBasedStateMachine):
    """Owe, settle and take runs as the copier does."""

    size_bytes = 137 * GRAIN + 77

    def __init__(self) -> None:
        super().__init__()
        self._fresh = fresh(self.size_bytes)
        self.ring = next(self._fresh)
        self.owed: set[int] = set()
        self.bits = -(-self.size_bytes // GRAIN)

    def teardown(self) -> None:
        self._fresh.close()

    @rule(data=st.data())
    def owe(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.size_bytes - 1))
        end = data.draw(st.integers(start + 1, self.size_bytes + GRAIN))
        self.ring.owe(start, end)
        self.owed |= {bit for bit in range(start // GRAIN, self.bits) if bit * GRAIN < end}

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, self.size_bytes))
        end = data.draw(st.integers(start, self.size_bytes))
        self.ring.settle(start, end)
        whole = {bit for bit in self.owed if bit * GRAIN >= start and min((bit + 1) * GRAIN, self.size_bytes) <= end}
        self.owed -= whole

    @rule(data=st.data(), most=st.integers(1, 40 * GRAIN))
    def take(self, data: st.DataObject, most: int) -> None:
        start = data.draw(st.integers(0, self.size_bytes))
        run = self.ring.next_owed(start, most)
        later = sorted(bit for bit in self.owed if bit >= start // GRAIN)
        if not later:
            assert run is None
            return
        first = last = later[0]
        while last + 1 in self.owed and (last + 1 - first) * GRAIN < most:
            last += 1
        assert run == (first * GRAIN, min((last + 1) * GRAIN, self.size_bytes))

    @invariant()
    def counts(self) -> None:
        assert self.ring.owed_bytes() == sum(min(GRAIN, self.size_bytes - bit * GRAIN) for bit in self.owed)


class OwedMapOfWholeBytes(OwedMap):
    size_bytes = 128 * GRAIN


class OwedMapOfOneBit(OwedMap):
    size_bytes = 100


TestOwedMap = OwedMap.TestCase
TestOwedMapOfWholeBytes = OwedMapOfWholeBytes.TestCase
TestOwedMapOfOneBit = OwedMapOfOneBit.TestCase
for case in (TestOwedMap, TestOwedMapOfWholeBytes, TestOwedMapOfOneBit):
    case.settings = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_all_owed_then_all_settled(size_bytes: int) -> None:
    for ring in fresh(size_bytes):
        ring.owe(0, size_bytes)
        assert ring.owed_bytes() == size_bytes
        assert ring.next_owed(0, 1 << 62) == (0, size_bytes)
        ring.settle(0, size_bytes)
        assert ring.owed_bytes() == 0
        assert ring.next_owed(0, 1 << 62) is None


@settings(deadline=None, max_examples=25)
@given(bit=st.integers(0, 33_000 * 8 - 1), start=st.integers(0, 33_000 * 8 - 1))
def test_one_bit_of_a_large_volume_is_found(bit: int, start: int) -> None:
    for ring in fresh(33_000 * 8 * GRAIN):
        ring.owe(bit * GRAIN, (bit + 1) * GRAIN)
        assert ring.next_owed(start * GRAIN, GRAIN) == ((bit * GRAIN, (bit + 1) * GRAIN) if start <= bit else None)
