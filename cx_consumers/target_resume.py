"""Where a target goes on: the checkpoint against what the journal still has (design rules 8, 20, 25). Pure.

Nothing is jumped over in silence: messages that this target needed and that are gone become a gap of its own, which a resync of the
volume closes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cx_consumers.checkpoint import Checkpoint, Label
from cx_consumers.target_chain import ANEW, NO_FENCE, REBASED, RETENTION, ChainState, with_own_gap

BROKER_LOST_DATA = "broker_lost_data"


@dataclass(frozen=True, slots=True)
class Resumption:
    """The state to go on from, under the label that the replica has now.

    `settled_at` is the kafka_offset from which on nothing that an earlier run may have written is left to be written again. `missed`
    says why messages are gone, `note` what the operator should know.
    """

    chain: ChainState
    label: Label
    settled_at: int
    missed: str | None = None
    note: str | None = None


def resume(checkpoint: Checkpoint | None, topic_id: str, bounds: tuple[int, int], at_ns: int, lacking: str = "") -> Resumption:
    """Return how to go on in a journal of this id and these bounds, the store behind it included; `lacking` says why they begin no
    earlier."""
    start, end = bounds
    if checkpoint is None:
        return Resumption(ChainState(kafka_offset=start), Label(), settled_at=start)
    chain, label = checkpoint.chain, checkpoint.label
    settled_at = 0 if label.consistent_at is not None else end
    if checkpoint.topic_id != topic_id:
        anew = replace(chain, kafka_offset=start, fence=NO_FENCE, anchor=ANEW)
        note = "the journal was made anew; it goes on with a gap"
        if label.consistent_at is not None:
            return Resumption(anew, label, settled_at, note=note)
        return Resumption(with_own_gap(anew, RETENTION, at_ns), Label(), settled_at, missed=RETENTION, note=note)
    if start <= chain.kafka_offset <= end:
        return Resumption(chain, label, settled_at)
    if chain.kafka_offset < start:
        gone = f"the journal begins at kafka_offset {start}, the replica needs {chain.kafka_offset}" + (f"; {lacking}" if lacking else "")
        behind = replace(with_own_gap(chain, RETENTION, at_ns), kafka_offset=start, anchor=REBASED)
        return Resumption(behind, Label(), settled_at, missed=RETENTION, note=gone)
    gone = f"the journal ends at kafka_offset {end}, the replica has applied up to {chain.kafka_offset}: the broker lost messages"
    beyond = replace(with_own_gap(chain, BROKER_LOST_DATA, at_ns), kafka_offset=end, fence=NO_FENCE, anchor=REBASED)
    return Resumption(beyond, Label(), settled_at, missed=BROKER_LOST_DATA, note=gone)
