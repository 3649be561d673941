"""Taking over a volume: what the journal says last, compared with what the writes topic has. No step looks at the group's offsets.

Called by the volume's worker right after its fence is durable. In order: 1. the journal's last valid message before the fence gives the
state; where retention deleted the fences that say whether it is valid, that is a gap · 2. the writes topic, looked at only now (the worker
before may have read further than any earlier look would show), is compared with it: another topic id, a start above or an end below the
wanted kafka_offset, or a journal that lost all it had, is a gap (design rules 8, 20, 21) · 3. the worker appends that gap, asks for what
open gaps need, and reads on.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

from cx_consumers.broker import Broker, Log
from cx_consumers.journal_tail import find_tail
from cx_consumers.order import GapReason, Tail, begin_gap
from stream.journal import JournalGap, JournalState
from stream.topics import journal_topic


@dataclass(frozen=True, slots=True)
class Missing:
    """Why the writes topic does not go on where the journal ends, in a word and for the operator."""

    reason: GapReason
    told: str


@dataclass(frozen=True, slots=True)
class Found:
    """The journal as a worker finds it: its tail (None: nothing but fences), whether every reader believes that, its first kafka_offset."""

    tail: Tail | None
    certain: bool
    start: int


def read_tail(broker: Broker, volume: str, fence: int, acknowledged: JournalState | None = None) -> Found:
    """Return what the journal holds before `fence`. A tail that was `acknowledged` to this worker, under a claim of its own, is certain."""
    with closing(broker.reader(journal_topic(volume))) as reader:
        start, _ = reader.bounds()
        tail, certain = find_tail(reader, start, fence)
        return Found(tail, certain or (tail is not None and tail.state == acknowledged), start)


def resume(found: Found, log: Log) -> tuple[Tail, Missing | None]:
    """Return where to go on, and what is missing before that. Pure.

    The tail returned wants a kafka_offset that the log has, or will give next.
    """
    tail, journal_start = found.tail, found.start
    if tail is None:
        fresh = JournalState(topic_id=log.topic_id)
        if journal_start > 0:
            return Tail(replace(fresh, next_kafka_offset=log.start)), Missing(
                GapReason.JOURNAL_LOST, f"the journal begins at {journal_start} and holds nothing"
            )
        tail = Tail(fresh)
    state = tail.state
    wanted = state.next_kafka_offset
    if state.topic_id != log.topic_id:
        moved, why = log.start, Missing(GapReason.TOPIC_RECREATED, f"topic {state.topic_id} was replaced by {log.topic_id}")
    elif wanted < log.start:
        moved, why = log.start, Missing(GapReason.RETENTION, f"kafka_offset {wanted} to {log.start - 1} of the writes topic")
    elif wanted > log.end:
        moved, why = log.end, Missing(GapReason.BROKER_LOST_DATA, f"kafka_offset {log.end} to {wanted - 1} of the writes topic")
    elif not found.certain:
        return tail, Missing(GapReason.JOURNAL_LOST, f"the fences before {journal_start}, which say whose messages are valid behind it")
    else:
        return tail, None
    return Tail(replace(state, topic_id=log.topic_id, next_kafka_offset=moved), tail.after_gap), why


def gap_entry(volume: str, writer: int, state: JournalState, missing: Missing, at_ns: int) -> JournalGap:
    """Return the journal's word for it: `state` with the gap open."""
    after = begin_gap(state, missing.reason, at_ns, topic_id=state.topic_id, next_kafka_offset=state.next_kafka_offset)
    return JournalGap(volume, writer, str(missing.reason), missing.told, at_ns, after)
