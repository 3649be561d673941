"""Which positions of a segment are moments: ends of whole writes while no gap is open.

Used by folds, which may end nowhere else, and by retention, which keeps bookmarks only where there is something to go back to. Pure. The
marks are applied as order applied them (`schemas/README.md`, "A gap is a stretch in which order was lost").
"""

from __future__ import annotations

from history.chain import HOLES
from history.segment import SegmentHeader
from stream.position import Position
from stream.record import Kind

BEGUN_BY_ORDER = frozenset(("topic_recreated", "retention", "broker_lost_data", "journal_lost"))
"""Reasons of gaps that stay open when a new epoch begins: the agent can't have closed them with its own."""


def gap_open_at(header: SegmentHeader, position: Position) -> bool:
    """Tell whether a gap is open at a position of a segment. A split write that is open there is not looked for."""
    if position >= header.name.last:
        return bool(header.coverage.open_gaps)
    open_gaps = {(gap.position, gap.reason) for gap in header.coverage.open_gaps_before}
    events = [(mark.position, 0, mark.kind, mark.attributes) for mark in header.marks if mark.position <= position]
    events += [(gap.position, 1, None, {"reason": gap.reason}) for gap in header.gaps if gap.position < position]  # behind that position
    for at, _, kind, told in sorted(events, key=lambda one: one[:2]):
        if kind is None:
            open_gaps.add((at, told["reason"]))
        elif kind == Kind.SYNC_END:
            closed = {text.strip() for text in told.get("closes", "").split(",")}
            open_gaps = {gap for gap in open_gaps if str(gap[0]) not in closed}
        elif kind == Kind.GAP_BEGIN:
            open_gaps.add((at, told.get("reason", "")))
        elif kind == Kind.EPOCH_START and told.get("clean") != "true":
            open_gaps = {gap for gap in open_gaps if gap[1] in BEGUN_BY_ORDER or gap[1] in HOLES} | {(at, "unclean_stop")}
    return bool(open_gaps)
