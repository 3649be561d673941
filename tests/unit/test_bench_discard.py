"""The discarding publisher does the publisher's work on a ring: it claims, takes every record, and acknowledges it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import ring as layout
from agent.allocator import ChunkAllocator
from agent.pool import Pool
from agent.record_log import RecordLog
from agent.ring import VolumeRing
from bench.discard import FIRST_SEQUENCE, Discarded
from stream.record import Kind

SIZE_BYTES = 1 << 20
CHUNKS = 8


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool.open(tmp_path / "pool", CHUNKS)


@pytest.fixture
def ring(tmp_path: Path) -> VolumeRing:
    return VolumeRing.create(tmp_path / "v.ring", "v", SIZE_BYTES)


def test_it_claims_a_clean_epoch_so_that_capture_copies_nothing(ring: VolumeRing, pool: Pool):
    Discarded(ring, pool)
    words = ring.words
    assert words[layout.W_CLAIMED] == layout.CLAIM_DONE
    assert words[layout.W_CLEAN] == layout.CLEAN_PROVED
    assert words[layout.W_HEAD] == words[layout.W_ACKED] == FIRST_SEQUENCE


def test_it_takes_and_acknowledges_every_record(ring: VolumeRing, pool: Pool):
    discarded = Discarded(ring, pool)
    chunks = ChunkAllocator(CHUNKS, [], lambda: None, lambda waiting: None)
    log = RecordLog(ring, pool, chunks, lambda: None)
    log.adopt_head()
    chunk = chunks.take(1)[0]
    log.reserve(3)
    with log.mutex:
        log.append_write(0, [(chunk, 0, 4096)])
        log.append_write(8192, [(chunk, 4096, 512)])
        last = log.append(Kind.ZERO, 0, 4096)
    assert discarded.publish() > 4608
    assert ring.words[layout.W_ACKED] == ring.words[layout.W_SENT] == last
    assert ring.words[layout.W_ACKED_BYTES] == 4608
    assert discarded.publish() == 0


def test_it_goes_on_where_a_former_one_stopped(ring: VolumeRing, pool: Pool):
    Discarded(ring, pool)
    incarnation = ring.words[layout.W_INCARNATION]
    ring.words[layout.W_ACKED] = ring.words[layout.W_HEAD] = 7
    Discarded(ring, pool)
    assert (ring.words[layout.W_INCARNATION], ring.words[layout.W_ACKED]) == (incarnation, 7)
