"""The chain: prove that journal messages continue the history so far, and cut what it holds already.

Used by persist, and by whoever appends a journal to a history. Pure: messages go in one by one in the order of the log, what is to be kept
comes out. Stale writers are dropped (design rule 21), duplicates are dropped and overlaps cut by position, a hole that nobody foretold is
an IntegrityError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from history.segment import StoredGap
from stream.codec import unpack
from stream.compression import compress
from stream.errors import IntegrityError
from stream.journal import JournalBatch, JournalEntry, JournalFence, JournalGap, OpenGap
from stream.position import Position
from stream.record import Batch, Kind, chain_digest
from stream.topic_names import journal_topic

JOURNAL_EXPIRED = "journal_expired"
JOURNAL_RECREATED = "journal_recreated"
JOURNAL_SHORTENED = "journal_shortened"
HOLES = {
    JOURNAL_EXPIRED: "the journal's retention deleted messages before they were stored",
    JOURNAL_RECREATED: "the journal topic was made anew",
    JOURNAL_SHORTENED: "the journal ends below what was stored already",
}
NO_FENCE = -1


def closing_name(gap: OpenGap) -> str:
    """Return what the `closes` of a `sync_end` calls this gap.

    A hole has its time in its name: at its position somebody else may have asked for a copy, whose beginning can be among what was lost.
    """
    return f"{gap.position}/{gap.begun_at_ns:x}" if gap.reason in HOLES else str(gap.position)


def closed_names(attributes: Mapping[str, str]) -> set[str]:
    """Return the names of the gaps that a `sync_end` closes."""
    return {text.strip() for text in attributes.get("closes", "").split(",")}


class Chain:
    """Follow one volume's journal from a position.

    `position` and `digest` stand after the last entry kept, `fence` is the highest seen, `open_gaps` are open there: those of the journal's
    state, and the chain's own, begun where the journal had lost something, until a `sync_end` names them.
    """

    def __init__(
        self,
        volume: str,
        position: Position,
        digest: bytes,
        *,
        fence: int = NO_FENCE,
        open_gaps: tuple[OpenGap, ...] = (),
        after_gap: bool = False,
    ) -> None:
        """Stand at the end of a history; `after_gap` says that a gap was noted there, so that what follows may stand elsewhere."""
        self.volume = volume
        self.position = position
        self.digest = digest
        self.fence = fence
        self.stale = 0
        self._state_gaps = tuple(gap for gap in open_gaps if gap.reason not in HOLES)
        self._own_gaps = tuple(gap for gap in open_gaps if gap.reason in HOLES)
        self._foretold: str | None = None
        self._certain = False
        self._gap_noted = after_gap

    @property
    def open_gaps(self) -> tuple[OpenGap, ...]:
        return tuple(sorted((*self._state_gaps, *self._own_gaps), key=lambda gap: gap.position))

    @property
    def own_gaps(self) -> tuple[OpenGap, ...]:
        """Gaps that the journal's state does not know: it had lost something before it was read."""
        return self._own_gaps

    def foretell(self, reason: str, *, certain: bool = False) -> None:
        """Say that the next batch may not continue this history, and why (one of `HOLES`).

        A gap is begun only if it does not, or if `certain`: the digest of the records tells.
        """
        self._foretold = reason
        self._certain = certain

    def accept(self, entry: JournalEntry, kafka_offset: int) -> list[StoredGap | JournalBatch]:
        """Return what of the journal's next message is to be kept, in order: nothing, a gap, a batch, or a gap and a batch.

        Raises IntegrityError when it is not what was written, or does not continue this history and nothing foretold it.
        """
        if entry.volume != self.volume:
            raise self._wrong("A message of another volume stands in this journal", kafka_offset, expected=self.volume, got=entry.volume)
        if isinstance(entry, JournalFence):
            self.fence = max(self.fence, kafka_offset)
            return []
        if entry.writer < self.fence or entry.writer >= kafka_offset:
            self.stale += 1
            if entry.writer >= kafka_offset:  # of a worker that did not notice yet that the topic was made anew; none of its fences is here
                self.fence = max(self.fence, kafka_offset + 1)
            return []
        unseen, self.fence = entry.writer > self.fence, entry.writer
        if unseen and self._foretold is None:
            self._foretold = JOURNAL_EXPIRED  # its fence was deleted: what was read since had a writer who had lost the volume already
        if isinstance(entry, JournalGap):
            return [self._pass_gap(entry, kafka_offset)]
        records = unpack(entry, topic=journal_topic(self.volume), kafka_offset=kafka_offset)
        if records.last <= self.position:
            return []
        gap, kept = self._join(entry, records, kafka_offset)
        self.position = records.last
        self.digest = entry.state.digest
        self._state_gaps = entry.state.open_gaps
        self._close_own_gaps(records)
        self._foretold, self._certain, self._gap_noted = None, False, False
        return [kept] if gap is None else [gap, kept]

    def _join(self, entry: JournalBatch, records: Batch, kafka_offset: int) -> tuple[StoredGap | None, JournalBatch]:
        """Return the gap before this batch, if there is one, and what of it stands above the position."""
        follows, digest, start = entry.follows, entry.digest_before, 0
        if records.first <= self.position:
            start = self.position.sequence - records.first_sequence + 1
            follows, digest = self.position, chain_digest(digest, records.slice(0, start))
        continues = follows == self.position and digest == self.digest
        if not continues and self._foretold is None and not self._gap_noted:
            raise self._wrong(
                "The journal does not continue the history: what follows the last position is not there",
                kafka_offset,
                expected=self.position,
                got=follows,
                digests=f"{self.digest.hex()}/{digest.hex()}",
            )
        kept = entry if start == 0 else cut(entry, records, start, records.count, digest_before=digest)
        if self._foretold is None or (continues and not self._certain):
            return None, kept
        gap = StoredGap(self.position, self._foretold, HOLES[self._foretold], records.capture_time_ns, kafka_offset)
        self._own_gaps = (*self._own_gaps, OpenGap(gap.position, gap.reason, gap.at_ns))
        return gap, kept

    def _pass_gap(self, entry: JournalGap, kafka_offset: int) -> StoredGap:
        """Adopt the state behind a gap that the journal itself tells of; where that state stands elsewhere, what follows may do so too."""
        gap = StoredGap(self.position, entry.reason, entry.missing, entry.at_ns, kafka_offset)
        self._state_gaps = entry.state.open_gaps
        self._gap_noted |= (entry.state.position, entry.state.digest) != (self.position, self.digest)
        return gap

    def _close_own_gaps(self, records: Batch) -> None:
        if not self._own_gaps or Kind.SYNC_END not in records.kinds:
            return
        closed: set[str] = set()
        for index, attributes in records.marks.items():
            if records.kinds[index] == Kind.SYNC_END:
                closed |= closed_names(attributes)
        self._own_gaps = tuple(gap for gap in self._own_gaps if closing_name(gap) not in closed)

    def _wrong(self, sentence: str, kafka_offset: int, **facts: object) -> IntegrityError:
        return IntegrityError(
            sentence,
            volume=self.volume,
            topic=journal_topic(self.volume),
            kafka_offset=kafka_offset,
            **facts,
            hint="Keep store and topic as they are and compare them; a resync of the volume begins its history anew.",
        )


def cut(
    entry: JournalBatch, records: Batch, start: int, stop: int, *, digest_before: bytes, next_kafka_offset: int | None = None
) -> JournalBatch:
    """Return records `[start, stop)` of a batch as a batch of their own, packed again; `records` is `unpack(entry)`.

    `digest_before` stands before them. A part that is not the end takes `next_kafka_offset` for its state; the gaps open after the whole
    batch must be those open after the part.
    """
    part = records.slice(start, stop)
    codec, packed = compress(entry.codec, part.payload)
    state = entry.state
    if stop < records.count:
        assert next_kafka_offset is not None
        state = replace(state, position=part.last, digest=chain_digest(digest_before, part), next_kafka_offset=next_kafka_offset)
    return replace(
        entry,
        records=replace(part, payload=b""),
        codec=codec,
        payload_bytes=len(part.payload),
        follows=entry.follows if start == 0 else Position(part.epoch, part.first_sequence - 1),
        digest_before=digest_before,
        state=state,
        packed=packed,
    )
