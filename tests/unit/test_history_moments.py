"""Which positions a gap is open at, told by a segment's header alone, against what the journal's own state said after each message."""

from __future__ import annotations

from history.catalog import Catalog
from history.moments import gap_open_at
from history.store import open_store
from stream.journal import JournalBatch, OpenGap
from stream.position import Position
from stream.record import Kind
from tests.history_story import store_all
from tests.journal_maker import JournalMaker, mark, write


def begin(maker: JournalMaker, kind: Kind, why: str, /, *kept: str, **told: str) -> None:
    """Open a gap under the position of the mark; of those open before, those of the reasons kept stay open."""
    stay = tuple(gap for gap in maker.open_gaps if not kept or gap.reason in kept)
    maker.open_gaps = (*stay, OpenGap(Position(maker.epoch, maker.sequence + 1), why, maker.time_ns))
    maker.batch(mark(kind, **told))


def close(maker: JournalMaker, *positions: Position) -> None:
    maker.open_gaps = tuple(gap for gap in maker.open_gaps if gap.position not in positions)
    maker.batch(mark(Kind.SYNC_END, closes=",".join(map(str, positions))))


def test_a_header_tells_what_the_journal_said() -> None:
    """Also where order lost something right where the agent had begun a gap: an unclean start takes the place of the agent's alone."""
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, clean="true", size_bytes="8192"), write(0, b"a"))
    begin(maker, Kind.GAP_BEGIN, "overflow", reason="overflow")
    began = maker.last
    maker.gap("retention")
    maker.batch(write(0, b"b"))
    maker.epoch += 1
    begin(maker, Kind.EPOCH_START, "unclean_stop", "retention", clean="false")
    close(maker, maker.last)
    maker.batch(write(0, b"c"))
    assert maker.open_gaps, "order's own is open still"
    close(maker, began)
    maker.batch(write(0, b"d"))
    store = open_store("memory:///")
    store_all(maker, store, set())
    (name,) = Catalog(store, "v1").levels()[0]
    header = Catalog(store, "v1").header(name)
    said = [(entry.records.last, bool(entry.state.open_gaps)) for entry in maker.entries if isinstance(entry, JournalBatch)]
    assert [(position, gap_open_at(header, position)) for position, _ in said] == said
    assert [open_then for _, open_then in said] == [False, True, True, True, True, True, False, False]
