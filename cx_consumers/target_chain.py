"""The chain of a journal as a reader of it follows it: what each message does to the reader's state, and whether it may.

Pure; used by the target, message by message in log order. Guarantees: a message of a worker that lost the volume changes nothing;
records are let through once and in order; a hole, a fork or an alteration is an IntegrityError that names topic and kafka_offset
(design rules 18, 20, 21, section 6). No payload is unpacked until `Step.unpack` is called, so that a reader may look ahead cheaply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from stream.codec import unpack
from stream.errors import IntegrityError
from stream.journal import FIRST_COPY, JournalBatch, JournalEntry, JournalFence, JournalGap, OpenGap
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Batch, Kind, chain_digest

ANCHORED = "anchored"
FRESH = "fresh"
ANEW = "anew"
REBASED = "rebased"
AFTER_GAP = "after_gap"
ANCHORS = (ANCHORED, FRESH, ANEW, REBASED, AFTER_GAP)
"""How the next entry is joined to the state. It follows; or it is the first that this reader sees of the history, of a topic made anew
(design rule 8), or behind a hole that an own gap stands for; or a JournalGap came last, and records may be missing before it."""

RETENTION = "retention"
NO_FENCE = -1
_JOINED = (ANCHORED, AFTER_GAP)


@dataclass(frozen=True, slots=True)
class ChainState:
    """Where a reader stands before `kafka_offset`, the next message to read.

    `position` and `digest` are those after the last record let through, `fence` the highest seen, `open_gaps` the journal's, `own_gaps`
    those that only this reader has (it missed messages), closed by the `sync_end` that names them, if the copy's beginning was seen too
    since the newest of them (`copy_seen`): a copy asked for by an earlier gap at the same position may have lost its first part in this
    one. `gaps` counts all that ever opened, first copies left out. `size_bytes` is the volume's, 0 if no mark told it.
    """

    kafka_offset: int = 0
    fence: int = NO_FENCE
    position: Position = ZERO
    digest: bytes = DIGEST_START
    open_gaps: tuple[OpenGap, ...] = ()
    own_gaps: tuple[OpenGap, ...] = ()
    copy_seen: bool = False
    gaps: int = 0
    size_bytes: int = 0
    anchor: str = FRESH

    @property
    def whole(self) -> bool:
        """Tell whether applying everything up to here leaves a consistent image."""
        return not self.open_gaps and not self.own_gaps and self.position > ZERO


@dataclass(frozen=True, slots=True)
class Step:
    """What a message came to: the state after it, and its records if any are let through.

    `before` is the state before the message, `joined` the same where its records were joined to it (they differ at the first message of
    a history). `after_sequence` cuts a batch whose first records are already behind the reader; `dropped` says why nothing was let
    through.
    """

    before: ChainState
    joined: ChainState
    state: ChainState
    entry: JournalBatch | None = None
    after_sequence: int | None = None
    dropped: str = ""

    def unpack(self, topic: str) -> Batch:
        """Return the records let through, checked against the running digest on both sides of a cut. Raises IntegrityError."""
        entry, kafka_offset = self.entry, self.state.kafka_offset - 1
        assert entry is not None, "a step without records has nothing to unpack"
        batch = unpack(entry, topic=topic, kafka_offset=kafka_offset)
        if self.after_sequence is None:
            return batch
        cut = batch.after(self.after_sequence)
        assert cut is not None, "a cut that leaves nothing is a duplicate"
        if chain_digest(self.joined.digest, cut) != entry.state.digest:
            raise _broken("A journal batch overlaps what came before it, with other records", topic, kafka_offset, self.joined, cut.first)
        return cut


def step(state: ChainState, kafka_offset: int, entry: JournalEntry, *, topic: str, volume: str) -> Step:
    """Return what the message at `kafka_offset` does to `state`. Raises IntegrityError for what no order worker writes."""
    moved = replace(state, kafka_offset=kafka_offset + 1)
    if entry.volume != volume:
        raise _broken(f"A message of volume {entry.volume} stands in this journal", topic, kafka_offset, state)
    if isinstance(entry, JournalFence):
        return Step(state, state, replace(moved, fence=max(state.fence, kafka_offset)))
    if entry.writer < state.fence:
        return Step(state, state, moved, dropped="stale")
    if entry.writer >= kafka_offset:  # of a worker that did not notice yet that the topic was made anew; none of its fences is here
        return Step(state, state, replace(moved, fence=kafka_offset + 1), dropped="foreign")
    if state.anchor in _JOINED and entry.writer > state.fence:
        state = _rejoined(state, entry)
    own = {"own_gaps": state.own_gaps, "copy_seen": state.copy_seen, "gaps": state.gaps}
    moved = replace(moved, fence=entry.writer, anchor=state.anchor, **own)
    if isinstance(entry, JournalGap):
        return _gap(state, moved, entry, topic)
    if state.anchor not in _JOINED:
        moved = _anchored(moved, entry, topic)
    return _batch(state, moved, entry, topic)


def with_own_gap(state: ChainState, reason: str, at_ns: int) -> ChainState:
    """Return the state with a gap of this reader's own after its position: messages it needed are gone."""
    gap = OpenGap(state.position, reason, at_ns)
    kept = tuple(one for one in state.own_gaps if one.position != gap.position)
    return replace(state, own_gaps=(*kept, gap), copy_seen=False, gaps=state.gaps + 1)


def part(before: ChainState, after: ChainState, prefix: Batch) -> ChainState:
    """Return the state inside a message, after `prefix` of its records; the message has to be read again from there."""
    inside = replace(
        before,
        kafka_offset=after.kafka_offset - 1,
        fence=after.fence,
        position=prefix.last,
        digest=chain_digest(before.digest, prefix),
        open_gaps=gaps_after(before.open_gaps, prefix),
        anchor=ANCHORED,
    )
    return _marks_counted(inside, prefix, 0)


def gaps_after(gaps: Iterable[OpenGap], batch: Batch) -> tuple[OpenGap, ...]:
    """Return the open gaps after the marks of `batch`, as the order worker counts them."""
    left = list(gaps)
    for index in mark_indexes(batch):
        told = batch.marks.get(index, {})
        if batch.kinds[index] == Kind.SYNC_END:
            left = [gap for gap in left if str(gap.position) not in _closed(told)]
        elif opens_gap(batch, index):
            reason = told.get("reason") or "unknown"
            if batch.kinds[index] == Kind.EPOCH_START:
                reason = FIRST_COPY if told.get("first") == "true" else "unclean_stop"
            position = Position(batch.epoch, batch.first_sequence + index)
            left.append(OpenGap(position, reason, batch.capture_time_ns + batch.ages_ns[index]))
    return tuple(left)


def mark_indexes(batch: Batch) -> list[int]:
    """Return which records of the batch are marks."""
    if max(batch.kinds) < Kind.EPOCH_START:
        return []
    return [index for index, kind in enumerate(batch.kinds) if kind >= Kind.EPOCH_START]


def opens_gap(batch: Batch, index: int) -> bool:
    """Tell whether record `index` begins a gap."""
    kind = batch.kinds[index]
    return kind == Kind.GAP_BEGIN or (kind == Kind.EPOCH_START and batch.marks.get(index, {}).get("clean") != "true")


def told_size(batch: Batch, index: int) -> int:
    """Return the volume's size that mark `index` tells, 0 if it tells none."""
    if batch.kinds[index] not in (Kind.RESIZE, Kind.EPOCH_START):
        return 0
    text = batch.marks.get(index, {}).get("size_bytes", "")
    return int(text) if text.isascii() and text.isdigit() else 0


def _rejoined(state: ChainState, entry: JournalBatch | JournalGap) -> ChainState:
    """Return the state to join an entry to whose fence was deleted before this reader came: all that it read since was by a worker that
    had lost the volume already. The gap of its own that it began with covers that."""
    if not state.own_gaps:
        state = with_own_gap(state, RETENTION, entry.at_ns if isinstance(entry, JournalGap) else entry.records.capture_time_ns)
    return replace(state, anchor=REBASED)


def _anchored(state: ChainState, entry: JournalBatch, topic: str) -> ChainState:
    """Join the state to the first batch that a reader sees. Raises IntegrityError where a topic made anew does not begin with a gap.

    A batch that follows others is not its begin: those are gone already.
    """
    begins = entry.follows == ZERO
    if state.anchor == ANEW and begins and not (entry.records.kinds[0] == Kind.EPOCH_START and opens_gap(entry.records, 0)):
        raise _broken("A journal made anew does not begin with a gap", topic, state.kafka_offset - 1, state, entry.records.first)
    told = entry.records.marks.get(0, {})
    unseen = state.anchor == FRESH and entry.follows != ZERO
    behind = state.anchor == ANEW and told.get("first") != "true" and (entry.follows, entry.digest_before) != (state.position, state.digest)
    if unseen or behind:  # what came before this batch was never applied here, and the resync that it brings may be a partial one
        state = with_own_gap(state, RETENTION, entry.records.capture_time_ns)
    missed = unseen or behind or state.anchor == REBASED  # a JournalGap may have been among what is not here
    return replace(state, position=entry.follows, digest=entry.digest_before, anchor=AFTER_GAP if missed else ANCHORED)


def _gap(before: ChainState, moved: ChainState, entry: JournalGap, topic: str) -> Step:
    told = entry.state
    follows = before.anchor in _JOINED and (told.position, told.digest) == (before.position, before.digest)
    if not follows and not told.open_gaps:
        raise _broken("A journal gap moves the position and leaves no gap open", topic, moved.kafka_offset - 1, before, told.position)
    if before.anchor == FRESH and told.position != ZERO:
        moved = with_own_gap(moved, RETENTION, entry.at_ns)
    gaps = moved.gaps + (not set(told.open_gaps) <= set(before.open_gaps))
    adopted = {"position": told.position, "digest": told.digest, "open_gaps": told.open_gaps, "anchor": AFTER_GAP}
    return Step(before, before, replace(moved, gaps=gaps, **adopted))


def _batch(before: ChainState, moved: ChainState, entry: JournalBatch, topic: str) -> Step:
    kafka_offset = moved.kafka_offset - 1
    records, position = entry.records, moved.position
    if records.last != entry.state.position:
        raise _broken("A journal batch ends elsewhere than its state says", topic, kafka_offset, before, records.last)
    if records.last <= position:
        return Step(before, before, moved, dropped="duplicate")
    cut = position.sequence if records.first <= position else None
    if cut is None:
        if entry.follows != position:
            raise _broken("Records are missing from the journal", topic, kafka_offset, before, entry.follows)
        if entry.digest_before != moved.digest:
            raise _broken("The journal's running digest forks", topic, kafka_offset, before, entry.follows)
        if moved.anchor != AFTER_GAP and not _continues(records, position):
            raise _broken("A journal batch skips records", topic, kafka_offset, before, records.first)
    told, joined = entry.state, replace(moved, kafka_offset=kafka_offset)
    start = 0 if cut is None else cut + 1 - records.first_sequence
    moved = replace(moved, position=told.position, digest=told.digest, open_gaps=told.open_gaps, anchor=ANCHORED)
    return Step(before, joined, _marks_counted(moved, records, start), entry, cut)


def _continues(records: Batch, position: Position) -> bool:
    """Tell whether the records come next: a newer epoch begins with its `epoch_start`, the same one goes on by one."""
    if records.epoch == position.epoch:
        return records.first_sequence == position.sequence + 1
    return records.kinds[0] == Kind.EPOCH_START


def _marks_counted(state: ChainState, batch: Batch, start: int) -> ChainState:
    """Return the state with what the marks from record `start` on say about own gaps, counts and size."""
    own, copy_seen, gaps, size_bytes = state.own_gaps, state.copy_seen, state.gaps, state.size_bytes
    indexes = [index for index in mark_indexes(batch) if index >= start]
    if not indexes:
        return state
    for index in indexes:
        told = batch.marks.get(index, {})
        copy_seen = copy_seen or batch.kinds[index] == Kind.SYNC_BEGIN
        if batch.kinds[index] == Kind.SYNC_END and copy_seen:
            own = tuple(gap for gap in own if str(gap.position) not in _closed(told))
        gaps += opens_gap(batch, index) and told.get("first") != "true"
        size_bytes = told_size(batch, index) or size_bytes
    return replace(state, own_gaps=own, copy_seen=copy_seen, gaps=gaps, size_bytes=size_bytes)


def _closed(told: Mapping[str, str]) -> set[str]:
    """Return the positions, as text, of the gaps that a `sync_end` closes."""
    return {text.strip() for text in told.get("closes", "").split(",")}


def _broken(sentence: str, topic: str, kafka_offset: int, state: ChainState, got: object = None) -> IntegrityError:
    return IntegrityError(
        f"{sentence}: {topic} at kafka_offset {kafka_offset}",
        hint="Keep the topic as it is; then make the replica anew, or resync the volume.",
        topic=topic,
        kafka_offset=kafka_offset,
        position=state.position,
        got=got,
    )
