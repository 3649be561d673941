"""Which positions of a segment are moments: ends of whole writes while no gap is open.

Used by folds, which may end nowhere else, and by retention, which keeps bookmarks only where there is something to go back to. Pure. The
marks are applied as order applied them (`schemas/README.md`, "A gap is a stretch in which order was lost").
"""

from __future__ import annotations

from history.chain import HOLES, closed_names, closing_name
from history.segment import SegmentHeader
from stream.journal import OpenGap
from stream.position import Position
from stream.record import Kind

BEGUN_BY_ORDER = frozenset(("topic_recreated", "retention", "broker_lost_data", "journal_lost"))
"""Reasons of gaps that stay open when a new epoch begins: the agent can't have closed them with its own."""


def gap_open_at(header: SegmentHeader, position: Position) -> bool:
    """Tell whether a gap is open at a position of a segment. A split write that is open there is not looked for."""
    if position >= header.name.last:
        return bool(header.coverage.open_gaps)
    open_gaps = set(header.coverage.open_gaps_before)
    events = [(mark.position, 0, mark.kind, mark.attributes) for mark in header.marks if mark.position <= position]
    holes = {(gap.position, gap.reason): OpenGap(gap.position, gap.reason, gap.at_ns) for gap in header.gaps if gap.position < position}
    events += [(at, 1, None, {"reason": reason}) for at, reason in holes]  # behind that position
    for at, _, kind, told in sorted(events, key=lambda one: one[:2]):
        if kind is None:
            open_gaps.add(holes[at, told["reason"]])
        elif kind == Kind.SYNC_END:
            closed = closed_names(told)
            open_gaps = {gap for gap in open_gaps if closing_name(gap) not in closed}
        elif kind == Kind.GAP_BEGIN:
            open_gaps.add(OpenGap(at, told.get("reason", ""), 0))
        elif kind == Kind.EPOCH_START and told.get("clean") != "true":
            open_gaps = {gap for gap in open_gaps if gap.reason in BEGUN_BY_ORDER or gap.reason in HOLES} | {OpenGap(at, "unclean_stop", 0)}
    return bool(open_gaps)
