"""Order: what becomes of one message of the writes topic, given the state of the journal. Pure: no I/O, no clock.

Called by the volume's worker for every message in the order of the writes topic. The answer depends on the journal's state, the message and
its kafka_offset alone, so a worker that starts again from the journal's own last message writes the same history, however its
input is delivered again. Design section 6 and rules 18, 20 and 21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from stream.errors import IntegrityError
from stream.journal import FIRST_COPY, JournalState, OpenGap
from stream.position import Position
from stream.record import Batch, Kind, chain_digest

UNCLEAN_STOP = "unclean_stop"
OPEN_GAPS_MAX = 1024


class GapReason(StrEnum):
    """Why order itself had to begin a gap."""

    TOPIC_RECREATED = "topic_recreated"
    RETENTION = "retention"
    BROKER_LOST_DATA = "broker_lost_data"
    JOURNAL_LOST = "journal_lost"


class Verdict(StrEnum):
    """What became of a message; all but JOURNALED leave nothing in the journal."""

    JOURNALED = "journaled"
    REDELIVERED = "redelivered"
    DUPLICATE = "duplicate"
    FENCED = "fenced"
    OUT_OF_SEQUENCE = "out_of_sequence"
    AWAITED = "awaited"
    """Behind a JournalGap, and before the copy that closes it."""
    COPY_LOST = "copy_lost"
    """The end of the copy that was to close a JournalGap: its beginning was lost as well."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the journal stands: the state of its last message, and whether that was a JournalGap.

    After a JournalGap nobody knows which position comes next, so the journal goes on with a `sync_begin` of the epoch's owner, or with a
    newer epoch, whatever its position. What comes before is passed over: it would be taken for whole, and a copy that closes the gap could
    have lost its first part in what was not seen.
    """

    state: JournalState
    after_gap: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a batch that goes into the journal: it follows `before.position`, `after` stands behind it."""

    batch: Batch
    incarnation: bytes
    before: JournalState
    after: JournalState


@dataclass(frozen=True, slots=True)
class Ordered:
    """The answer of `order`: the verdict, the tail after the message, and what is to be written or asked for."""

    verdict: Verdict
    tail: Tail
    piece: Piece | None = None
    wanted: Position | None = None


def order(tail: Tail, batch: Batch, incarnation: bytes, kafka_offset: int, *, more: bool = False) -> Ordered:
    """Decide about `batch`, published by the agent's claim `incarnation`, at `kafka_offset` of the writes topic.

    The caller has shown every message between `state.next_kafka_offset` and this one before. `more` says that the rest of the message
    follows in another call: the state then still wants this message, whose first part is cut by position when it is read again. Raises
    IntegrityError when the batch contradicts the protocol in a way that no delivery can explain.
    """
    state = tail.state
    if kafka_offset < state.next_kafka_offset:
        return Ordered(Verdict.REDELIVERED, tail)
    assert kafka_offset == state.next_kafka_offset, f"messages were passed over: {state.next_kafka_offset} was due, {kafka_offset} came"
    seen = replace(state, next_kafka_offset=kafka_offset if more else kafka_offset + 1)
    verdict, kept = _admit(tail, batch, incarnation)
    if kept is None:
        wanted = state.position.next() if verdict is Verdict.OUT_OF_SEQUENCE else None
        return Ordered(verdict, Tail(seen, tail.after_gap), wanted=wanted)
    after = replace(
        seen,
        position=kept.last,
        incarnation=incarnation,
        digest=chain_digest(state.digest, kept),
        open_gaps=_open_gaps(state, kept, kafka_offset),
    )
    return Ordered(verdict, Tail(after), Piece(kept, incarnation, state, after))


def begin_gap(state: JournalState, reason: GapReason, at_ns: int, *, topic_id: str, next_kafka_offset: int) -> JournalState:
    """Return the state after a JournalGap: the gap is open, and reading goes on at `next_kafka_offset` of the topic `topic_id`.

    A gap that was open at this position for this reason already begins anew: what was to close the first one may be lost as well.
    """
    begun = OpenGap(state.position, str(reason), at_ns)
    gaps = (*(gap for gap in state.open_gaps if (gap.position, gap.reason) != (begun.position, begun.reason)), begun)
    return replace(state, open_gaps=gaps, topic_id=topic_id, next_kafka_offset=next_kafka_offset)


def gaps_to_ask_for(state: JournalState) -> tuple[OpenGap, ...]:
    """Return the open gaps whose resync must be asked for, in this order: those that order began, which the agent does not know by itself,
    and all before them, for what closed those may be among what is missing."""
    gaps = state.open_gaps
    while gaps and gaps[-1].reason not in _REASONS:
        gaps = gaps[:-1]
    return gaps


def lacks_before(tail: Tail, batch: Batch) -> bool:
    """Tell whether a newer epoch begins behind records that are not in the journal and never will be: its agent found them in the log, or
    knew them counted, and a broker lost them since. A clean start closes no gap, an unclean one copies what Kafka may not have had."""
    position = tail.state.position
    newer = batch.epoch > position.epoch and batch.kinds[0] == Kind.EPOCH_START
    return newer and not tail.after_gap and batch.first_sequence > position.sequence + 1


def _admit(tail: Tail, batch: Batch, incarnation: bytes) -> tuple[Verdict, Batch | None]:
    """Return the verdict, and the records that are new, None if there are none."""
    state = tail.state
    position = state.position
    if batch.epoch < position.epoch:
        return Verdict.FENCED, None
    if batch.epoch > position.epoch:
        if batch.kinds[0] == Kind.EPOCH_START:
            return Verdict.JOURNALED, batch
        return _resume(state, batch) if tail.after_gap else (Verdict.OUT_OF_SEQUENCE, None)
    if incarnation != state.incarnation:
        return Verdict.FENCED, None
    kept = batch.after(position.sequence)
    if kept is None:
        return Verdict.DUPLICATE, None
    if tail.after_gap:
        return _resume(state, kept)
    if kept.first_sequence > position.sequence + 1:
        return Verdict.OUT_OF_SEQUENCE, None
    return Verdict.JOURNALED, kept


def _resume(state: JournalState, batch: Batch) -> tuple[Verdict, Batch | None]:
    """Return the verdict behind a JournalGap, and the records from the copy's beginning on."""
    begin = batch.kinds.find(Kind.SYNC_BEGIN)
    if begin >= 0:
        return Verdict.JOURNALED, batch.after(batch.first_sequence + begin - 1)
    own = {str(gap.position) for gap in state.open_gaps if gap.reason in _REASONS}
    ends = (batch.marks.get(index, {}) for index, kind in enumerate(batch.kinds) if kind == Kind.SYNC_END)
    return Verdict.COPY_LOST if any(own & _closed(told) for told in ends) else Verdict.AWAITED, None


def _closed(told: Mapping[str, str]) -> set[str]:
    """Return the positions of the gaps that a `sync_end` closes, as they are told."""
    return {text.strip() for text in told.get("closes", "").split(",")}


def _open_gaps(state: JournalState, batch: Batch, kafka_offset: int) -> tuple[OpenGap, ...]:
    """Return the gaps that are open after the batch, its marks applied in order."""
    gaps = state.open_gaps
    if max(batch.kinds) < Kind.EPOCH_START:
        return gaps
    for index, kind in enumerate(batch.kinds):
        if kind not in _GAP_KINDS:
            continue
        told = batch.marks.get(index, {})
        position = Position(batch.epoch, batch.first_sequence + index)
        if kind == Kind.SYNC_END:
            closed = _closed(told)
            gaps = tuple(gap for gap in gaps if str(gap.position) not in closed)
            continue
        if kind == Kind.EPOCH_START:
            if index > 0 or batch.epoch == state.position.epoch:
                raise IntegrityError("An epoch_start stands inside its epoch", kafka_offset=kafka_offset, position=position)
            if told.get("clean") == "true":
                continue
            first = told.get("first") == "true" or any(gap.reason == FIRST_COPY for gap in gaps)
            reason = FIRST_COPY if first else UNCLEAN_STOP
            gaps = tuple(gap for gap in gaps if gap.reason in _REASONS)  # the agent's own debts went with its memory: this gap covers them
        else:
            reason = told.get("reason") or "unknown"
        gaps = (*gaps, OpenGap(position, reason, batch.capture_time_ns + batch.ages_ns[index]))
    if len(gaps) > OPEN_GAPS_MAX:
        raise IntegrityError(f"More than {OPEN_GAPS_MAX} gaps are open", kafka_offset=kafka_offset, volume=batch.volume)
    return gaps


_REASONS = frozenset(str(reason) for reason in GapReason)
_GAP_KINDS = frozenset((Kind.EPOCH_START, Kind.SYNC_END, Kind.GAP_BEGIN))
