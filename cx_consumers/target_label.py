"""What the replica's label has to say, and when (design rule 24). Pure.

The label comes before the bytes: before the first byte of a window the durable label must not promise anything that the window breaks.
`ahead` reaches further than one window, so that in a stream without a pause the checkpoint of one window already carries the label of
the next.
"""

from __future__ import annotations

from cx_consumers.checkpoint import Label
from cx_consumers.target_chain import ChainState
from stream.position import Position

LABEL_AHEAD_RECORDS = 1 << 16
UNKNOWN = Label()


def covers(durable: Label, window_end: Position) -> bool:
    """Tell whether `durable` stays true while a window that ends at `window_end` is being written."""
    if durable.consistent_at is not None:
        return False
    return durable.not_until is None or window_end <= durable.not_until


def ahead(state: ChainState, known_end: Position | None = None) -> Label:
    """Return the label under which a replica at `state` may be written further.

    `known_end` is where the open gaps close if that was read already; while a gap is open and nobody knows, the end is unknown.
    """
    if known_end is not None and state.position < known_end:
        return Label(not_until=known_end)
    if not state.whole:
        return UNKNOWN
    return Label(not_until=Position(state.position.epoch, state.position.sequence + LABEL_AHEAD_RECORDS))


def at_rest(state: ChainState, *, settled: bool) -> Label | None:
    """Return the label of a replica that nothing is written to, None if it is no image of the source.

    `settled` says that nothing beyond `state` was ever written: after a crash that holds only when all has been applied again.
    """
    return Label(consistent_at=state.position) if settled and state.whole else None
