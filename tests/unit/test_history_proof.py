"""The store's image against verify marks: what differs is in doubt from the chunk's last proof to its next (design rule 26)."""

from __future__ import annotations

import pytest
import xxhash

from history.catalog import Catalog
from history.checker import Checked, check_volume
from history.doubts import Doubt, doubts, in_doubt
from history.proof import Difference, Prover
from history.retention_table import RetentionTable, Step
from history.store import Store, open_store
from history.upkeep import Policy, Upkeep
from stream.extent import Extent
from stream.journal import OpenGap
from stream.position import ZERO, Position
from stream.record import Kind
from tests.history_maker import damage
from tests.history_story import VOLUME_BYTES, oracle, store_all
from tests.journal_maker import STEP_NS, JournalMaker, Told, mark, write

CHUNK = VOLUME_BYTES // 2


class Volume:
    """A journal that tells the digests of its chunks, rightly or not."""

    def __init__(self) -> None:
        self.maker = JournalMaker()
        self.maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes=str(VOLUME_BYTES)))
        self.store: Store = open_store("memory:///")

    @property
    def position(self) -> Position:
        return self.maker.last

    def write(self, offset: int, data: bytes) -> None:
        self.maker.batch(write(offset, data))

    def verify(self, chunk: int, *, right: bool = True) -> Position:
        data = oracle(self.maker, self.position)[chunk * CHUNK : (chunk + 1) * CHUNK]
        digest = xxhash.xxh3_128_hexdigest(data if right else b"other bytes")
        self.maker.batch(self.told(chunk, digest))
        return self.position

    def told(self, chunk: int, digest: str) -> Told:
        return mark(Kind.VERIFY, offset_bytes=str(chunk * CHUNK), length_bytes=str(CHUNK), digest=digest, round="r")

    def stored(self) -> Catalog:
        store_all(self.maker, self.store, set(range(0, 1000, 3)))
        return Catalog(self.store, "v1")


def test_what_is_equal_is_proved() -> None:
    volume = Volume()
    for number in range(10):
        volume.write(number * 700, b"x" * 600)
        volume.verify(number % 2)
    prover = Prover(volume.stored())
    assert (prover.prove(), prover.proved) == ([], 10)
    assert (prover.prove(), prover.proved) == ([], 10), "compared once"
    assert doubts(volume.store, "v1") == []


def test_however_many_marks_there_are_none_is_folded_before_it_is_compared() -> None:
    """As when the store catches up after it was away."""
    volume = Volume()
    for number in range(150):
        volume.write(number % 8 * 700, bytes([number + 1]) * 600)
        volume.verify(0, right=number != 140)
    volume.stored()
    table = RetentionTable(10 * STEP_NS, (Step(5 * STEP_NS, 1 << 62),))
    upkeep = Upkeep(volume.store, "v1", Policy(table))
    upkeep.run_once()
    assert len(upkeep.different) == 1
    assert len(doubts(volume.store, "v1")) == 1
    assert Catalog(volume.store, "v1").levels()[1], "nothing was folded"


def test_history_is_in_doubt_since_the_last_proof_of_the_chunk_until_the_next() -> None:
    volume = Volume()
    volume.write(100, b"a" * 50)
    proved = volume.verify(0)
    other = volume.verify(1)
    volume.write(100, b"b" * 50)
    found = volume.verify(0, right=False)
    assert Prover(volume.stored()).prove() == [Difference(found, Extent(0, CHUNK))]
    (open_doubt,) = doubts(volume.store, "v1")
    assert open_doubt == Doubt(proved, found, None, Extent(0, CHUNK))
    assert [in_doubt([open_doubt], one) is not None for one in (proved, other, found)] == [False, True, True]
    again = volume.verify(0, right=False)
    volume.verify(1)
    right = volume.verify(0)
    volume.write(200, b"c")
    prover = Prover(volume.stored())
    assert prover.prove() == [Difference(found, Extent(0, CHUNK))], "asked for again after a restart"
    (ended,) = doubts(volume.store, "v1")
    assert (ended.after, ended.until) == (proved, right)
    assert [in_doubt([ended], one) is not None for one in (again, right, volume.position)] == [True, False, False]
    assert prover.prove() == [] == Prover(volume.stored()).prove()


def test_without_a_proof_all_of_it_is_in_doubt() -> None:
    volume = Volume()
    volume.write(100, b"a" * 50)
    found = volume.verify(0, right=False)
    Prover(volume.stored()).prove()
    assert [(one.after, one.found) for one in doubts(volume.store, "v1")] == [(ZERO, found)]


def test_marks_inside_gaps_count_for_nothing() -> None:
    volume = Volume()
    maker = volume.maker
    maker.open_gaps = (OpenGap(Position(1, maker.sequence + 1), "overflow", maker.time_ns),)
    maker.batch(mark(Kind.GAP_BEGIN, reason="overflow"))
    volume.verify(0, right=False)
    closes, maker.open_gaps = str(maker.open_gaps[0].position), ()
    maker.batch(mark(Kind.SYNC_END, closes=closes))
    maker.batch(volume.told(0, "no digest"))
    volume.verify(0)
    prover = Prover(volume.stored())
    assert (prover.prove(), prover.proved, doubts(volume.store, "v1")) == ([], 1, [])


def test_upkeep_compares_before_it_folds_and_forgets_what_is_gone() -> None:
    volume = Volume()
    volume.write(0, b"a" * 50)
    found = volume.verify(0, right=False)
    volume.verify(0)
    for number in range(200):
        volume.write(number * 30, b"x" * 20)
    volume.stored()
    table = RetentionTable(10 * STEP_NS, (Step(5 * STEP_NS, 20 * STEP_NS), Step(10 * STEP_NS, 1 << 60)))
    upkeep = Upkeep(volume.store, "v1", Policy(table))
    upkeep.run_once()
    assert upkeep.different == [Difference(found, Extent(0, CHUNK))]
    assert len(doubts(volume.store, "v1")) == 1
    assert list(check_volume(volume.store, "v1", Checked())) == []
    table = RetentionTable(10 * STEP_NS, (Step(5 * STEP_NS, 20 * STEP_NS), Step(10 * STEP_NS, 30 * STEP_NS)))
    for _ in range(3):
        upkeep = Upkeep(volume.store, "v1", Policy(table))
        upkeep.run_once()
    assert doubts(volume.store, "v1") == []


def test_a_damaged_doubt_is_named_and_still_counts() -> None:
    volume = Volume()
    found = volume.verify(0, right=False)
    Prover(volume.stored()).prove()
    (one,) = volume.store.list("v1/doubts/")
    damage(volume.store, one.name, 3)
    (left,) = doubts(volume.store, "v1")
    assert left == Doubt(ZERO, found) and left.covers(found)
    assert [finding.path for finding in check_volume(volume.store, "v1", Checked())] == [one.name]


@pytest.mark.parametrize("name", ["x", "00000001-0000000000000001"])
def test_what_is_no_doubt_is_passed_over(name: str) -> None:
    store = open_store("memory:///")
    store.put(f"v1/doubts/{name}", [b"{}"])
    assert doubts(store, "v1") == []
