"""What of a volume's topic counts, in which order: the writes topic and the journal, read by their wire specification alone.

Used by `replay`. Pure: messages go in one by one in the order of the log, portions of records come out, each record once. The writes
topic is ordered by the rules of `schemas/README.md` (*Marks*, *Records*), not by the code of the CX, so that a replay tests that code; of
the journal the chain of digests is proved as persist proves it. Duplicates, overlaps, older epochs, lost claims and stale workers leave
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from history.chain import Chain, closed_names, closing_name
from history.segment import StoredGap, StoredMark
from recovery.gaps import GAP_MARKS, OpenGaps
from stream.codec import decode_journal, decode_writes, unpack
from stream.consumer import StoredMessage
from stream.errors import IntegrityError
from stream.journal import NO_INCARNATION, JournalBatch, JournalGap, OpenGap
from stream.position import ZERO, Position
from stream.record import FLAG_MORE, Batch, Kind

MISSING = "broker_lost_data"  # what order calls it, and no mark of the agent's takes its place


@dataclass(frozen=True, slots=True)
class Portion:
    """Records that count, consecutive but for gaps. `batch` may lack its payload, `load` returns it with it.

    `sound` are the ranges of record indexes at which no gap is open. `unsound_before`: a gap ends here that began before the topic does, so
    nothing before was sound.
    """

    batch: Batch
    load: Callable[[], Batch]
    sound: tuple[tuple[int, int], ...]
    unsound_before: bool = False

    def recovery_points(self) -> list[int]:
        """Return the indexes of the records that are recovery points: sound, and not inside a split write."""
        flags = self.batch.flags
        return [index for start, stop in self.sound for index in range(start, stop) if not flags[index] & FLAG_MORE]


class TopicOrder(Protocol):
    """Follows a topic; `copy` gives another one that goes on from the same place."""

    hole: int | None
    """The kafka_offset at which records are missing that no later message has brought so far."""

    def accept(self, message: StoredMessage) -> list[Portion]: ...

    def copy(self) -> TopicOrder: ...


class WritesOrder:
    """The order of the writes topic.

    The first `epoch_start` of an epoch in the log owns it. Records that do not follow are passed by until they come again; `unfilled` are
    places, by kafka_offset, where it is known that they never do: a gap begins there, closed by the `sync_end` that names its position.
    """

    def __init__(self, volume: str, topic: str, unfilled: frozenset[int] = frozenset()) -> None:
        self.hole: int | None = None
        self._volume = volume
        self._topic = topic
        self._unfilled = unfilled
        self._position = ZERO
        self._incarnation = NO_INCARNATION
        self._anchored = False
        self._after_gap = False
        self._gaps: tuple[OpenGap, ...] = ()
        self._first = ZERO

    def accept(self, message: StoredMessage) -> list[Portion]:
        """Return what of a message counts. Raises IntegrityError for what is not what was written."""
        kafka_offset = message.kafka_offset
        batch, incarnation = decode_writes(message.value or b"", topic=self._topic, kafka_offset=kafka_offset)
        if batch.volume != self._volume:
            raise IntegrityError(f"A message of volume {batch.volume} stands in this topic", topic=self._topic, kafka_offset=kafka_offset)
        kept = self._admit(batch, incarnation, kafka_offset)
        if kept is None:
            return []
        self._first = self._first if self._anchored else kept.first
        self._position, self._incarnation, self._anchored, self._after_gap = kept.last, incarnation, True, False
        self.hole = None
        gaps, sound, unsound_before = sound_ranges(self._gaps, kept, self._first)
        self._gaps = gaps
        return [Portion(kept, lambda: kept, sound, unsound_before)]

    def copy(self) -> WritesOrder:
        other = WritesOrder(self._volume, self._topic, self._unfilled)
        other.__dict__.update(self.__dict__)
        return other

    def _admit(self, batch: Batch, incarnation: bytes, kafka_offset: int) -> Batch | None:
        """Return the records that come next, None if none of the message do."""
        position = self._position
        if not self._anchored:
            return batch
        if batch.epoch < position.epoch:
            return None
        jumps = batch.first_sequence > position.sequence + 1
        if batch.epoch > position.epoch:
            begins = batch.kinds[0] == Kind.EPOCH_START
            if begins and jumps and not self._after_gap:
                self._begin_gap(batch.capture_time_ns)
            return batch if begins or self._follows(kafka_offset, batch) else None
        if incarnation != self._incarnation:
            return None
        kept = batch.after(position.sequence)
        if kept is None or (kept.first_sequence > position.sequence + 1 and not self._follows(kafka_offset, batch)):
            return None
        return kept

    def _follows(self, kafka_offset: int, batch: Batch) -> bool:
        """Tell whether a batch is taken although records before it are missing; note the hole if it is not."""
        if not self._after_gap and kafka_offset in self._unfilled:
            self._begin_gap(batch.capture_time_ns)
        if not self._after_gap and self.hole is None:
            self.hole = kafka_offset
        return self._after_gap

    def _begin_gap(self, at_ns: int) -> None:
        self._gaps = (*self._gaps, OpenGap(self._position, MISSING, at_ns))
        self._after_gap = True


class JournalOrder:
    """The order of the journal: what `history.chain` lets through, anchored at the first batch that the topic still has."""

    hole = None

    def __init__(self, volume: str, topic: str) -> None:
        self._topic = topic
        self._chain = Chain(volume, ZERO, bytes(16))
        self._anchored = False
        self._first = ZERO

    def accept(self, message: StoredMessage) -> list[Portion]:
        """Return what of a message counts. Raises IntegrityError for what is not what was written, or does not continue."""
        kafka_offset = message.kafka_offset
        entry = decode_journal(message.value or b"", topic=self._topic, kafka_offset=kafka_offset)
        if not self._anchored and isinstance(entry, JournalBatch | JournalGap) and self._chain.fence <= entry.writer < kafka_offset:
            self._anchor(entry)
        before = self._chain.open_gaps
        portions = []
        for kept in self._chain.accept(entry, kafka_offset):
            if isinstance(kept, StoredGap):
                before = (*before, OpenGap(kept.position, kept.reason, kept.at_ns))
                continue
            records = kept.records
            self._first = self._first if self._first > ZERO else records.first
            _, sound, unsound_before = sound_ranges(before, records, self._first)
            portions.append(Portion(records, lambda kept=kept: self._load(kept, kafka_offset), sound, unsound_before))
        return portions

    def copy(self) -> JournalOrder:
        other = JournalOrder(self._chain.volume, self._topic)
        other._anchored, other._first = self._anchored, self._first
        other._chain.__dict__.update(self._chain.__dict__)
        return other

    def _anchor(self, entry: JournalBatch | JournalGap) -> None:
        """Begin where the topic does: what came before its first batch is not asked for."""
        self._anchored = True
        if isinstance(entry, JournalBatch):
            self._chain = Chain(self._chain.volume, entry.follows, entry.digest_before, fence=self._chain.fence)

    def _load(self, entry: JournalBatch, kafka_offset: int) -> Batch:
        return unpack(entry, topic=self._topic, kafka_offset=kafka_offset)


def sound_ranges(
    before: tuple[OpenGap, ...], batch: Batch, first: Position
) -> tuple[tuple[OpenGap, ...], tuple[tuple[int, int], ...], bool]:
    """Return the gaps open after a batch, the ranges of its records at which none is, and whether a gap ends in it that began before
    `first`, where the topic begins: then nothing before that end was sound."""
    if max(batch.kinds) < Kind.EPOCH_START:
        return before, (() if before else ((0, batch.count),)), False
    gaps = OpenGaps(before)
    ranges: list[tuple[int, int]] = []
    start, unsound_before = 0, False
    for index, kind in enumerate(batch.kinds):
        if kind not in GAP_MARKS:
            continue
        if not gaps and index > start:
            ranges.append((start, index))
        told = batch.marks.get(index, {})
        position = Position(batch.epoch, batch.first_sequence + index)
        if kind == Kind.SYNC_END and _closes_unseen(told, gaps, first):
            ranges, unsound_before = [], True
        gaps.apply(StoredMark(position, Kind(kind), batch.capture_time_ns + batch.ages_ns[index], index, told))
        start = index
    if not gaps and batch.count > start:
        ranges.append((start, batch.count))
    return tuple(sorted(gaps.open.values(), key=lambda gap: (gap.position, gap.reason))), tuple(ranges), unsound_before


def _closes_unseen(told: Mapping[str, str], gaps: OpenGaps, first: Position) -> bool:
    """Tell whether a `sync_end` closes a gap that began before the topic does. One that is not known here, but lies behind that, is of
    somebody who had lost what stands here."""
    closed = closed_names(told) - {""}
    return any(text < str(first) for text in closed - set(map(closing_name, gaps.open.values())))
