"""The part of a volume's history that its journal no longer has, read from the segments of the store (design rule 25).

Used by the target's source. Entries come in the order of the journal, each proved: the bytes by checksum and digest, the chain by
position and digest from where the reader stands, over a recorded gap and over nothing else. Segments may overlap; one contributes only
positions above those already covered (rule 27). A segment that is damaged or does not fit is remembered as lacking for as long as the
process lives: the store is then as good as one that ends before it, and the reader asks the host.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

from cx_consumers.target_chain import ANEW, FRESH, NO_FENCE, REBASED, ChainState, Step, step, with_own_gap
from history.chain import HOLES
from history.reader import SegmentReader, StoredBatch, list_segments
from history.segment import SegmentHeader, SegmentName, StoredGap
from history.store import Store
from stream.errors import IntegrityError, ResyncError
from stream.journal import JournalBatch
from stream.position import Position
from stream.record import chain_digest


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader of segments stands: behind a position, its digest and the highest fence, before a kafka_offset of the journal.

    `gap` says that something is missing right there, so that what follows may stand elsewhere.
    """

    position: Position
    digest: bytes
    kafka_offset: int
    fence: int = NO_FENCE
    gap: bool = False


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """What a segment says in the place of a journal message; it stands in for `stream.consumer.StoredMessage`.

    `entry` is None at the end of a segment, where messages may follow of which nothing was kept. `next_kafka_offset` is where the journal
    goes on behind it: at the message itself if only its first part is here. `value` is there for its size.
    """

    kafka_offset: int
    next_kafka_offset: int
    entry: JournalBatch | StoredGap | None
    fence: int = NO_FENCE
    value: bytes = b""
    timestamp_ms: int = 0


def follow(state: ChainState, stored: StoredEntry, *, topic: str, volume: str) -> Step:
    """Return what a stored entry does to the state of a journal's reader, as `target_chain.step` does for a message.

    A gap that persist noted (the journal had lost messages before they were stored) is a gap of the reader's own, closed by the
    `sync_end` that names it; a gap of the journal opens with the records behind it, whose state tells of it.
    """
    entry = stored.entry
    if entry is None:
        return Step(state, state, replace(state, kafka_offset=stored.next_kafka_offset, fence=max(state.fence, stored.fence)))
    if isinstance(entry, StoredGap):
        moved = replace(state, gaps=state.gaps + 1)
        if entry.reason in HOLES:
            known = any(gap.position == state.position for gap in state.own_gaps)
            moved = replace(state if known else with_own_gap(state, entry.reason, entry.at_ns), fence=NO_FENCE)
        return Step(state, state, replace(moved, kafka_offset=stored.next_kafka_offset, anchor=REBASED))
    state = replace(state, fence=entry.writer)  # segments hold no fences, and nothing that one outdates
    done = step(state, stored.kafka_offset, entry, topic=topic, volume=volume)
    return replace(done, state=replace(done.state, kafka_offset=stored.next_kafka_offset))


def place_of(chain: ChainState) -> Place | None:
    """Return where a reader in this state stands; None for one that goes on in a topic made anew, which no segment continues."""
    if chain.anchor == ANEW:
        return None
    return Place(chain.position, chain.digest, 0 if chain.anchor == FRESH else chain.kafka_offset, chain.fence, chain.anchor == REBASED)


class StoredHistory:
    """One volume's segments, for readers that the journal left behind. `open_store` is called when they are needed first; it returns
    None where there is no store. One thread uses it. Every method may raise RetryError and ConfigError (`history.store`)."""

    def __init__(self, volume: str, open_store: Callable[[], Store | None]) -> None:
        self._volume = volume
        self._open = open_store
        self._store: Store | None = None
        self._lacking: dict[str, str] = {}

    @property
    def exists(self) -> bool:
        """Tell whether there is a store."""
        if self._store is None:
            self._store = self._open()
        return self._store is not None

    def begins_at(self) -> int | None:
        """Return the kafka_offset that the first segment begins at, None if there is none."""
        names = self._names()
        header = self._header(names[0]) if names else None
        return None if header is None else header.origin.first_kafka_offset

    def lacks(self, place: Place, topic_id: str, bounds: tuple[int, int]) -> str | None:
        """Return why the segments do not lead from `place` to a message that the journal of this id and these bounds still has; None if
        they do. Names and two headers are looked at; whatever turns out while reading makes the next answer."""
        if not self.exists:
            return "there is no store"
        names = self._names()
        if not names:
            return "the store has nothing of this volume"
        ahead = [name for name in names if name.last > place.position]
        last = place.position
        for name in ahead:
            if not self._joins(last, name):
                return self._because(f"the store has nothing between {last} and {name.first}")
            last = name.last
        header = self._header(names[-1])
        if header is None or header.name.last < place.position:
            return self._because(f"the store ends at {names[-1].last}")
        if not ahead and (header.name.last, header.coverage.digest_after) != (place.position, place.digest):
            return f"the store's history ends at {names[-1].last} with other records"
        start, end = bounds
        if header.origin.topic_id != topic_id:
            return "what is stored last came from a topic that was deleted since"
        if not start <= header.origin.next_kafka_offset <= end:
            return f"the store ends at {header.name.last}, kafka_offset {header.origin.next_kafka_offset}; the journal begins at {start}"
        return None

    def reaches(self, place: Place, topic_id: str, bounds: tuple[int, int]) -> int | None:
        """Return the kafka_offset up to which everything behind `place` is stored, None if it is not."""
        if self.lacks(place, topic_id, bounds) is not None:
            return None
        header = self._header(self._names()[-1])
        return None if header is None else header.origin.next_kafka_offset

    def entries(self, place: Place, topic_id: str) -> Iterator[tuple[StoredEntry, Place]]:
        """Yield what is stored behind `place` now, with the place after each. Raises ResyncError where the segments turn out to lack
        something."""
        for name in self._names():
            if name.last >= place.position:
                try:
                    place = yield from self._segment(name, place, topic_id)
                except IntegrityError as error:
                    self._lacking[str(name)] = error.sentence
                    raise ResyncError(
                        f"The store's segment {name} can't be used: {error.sentence}",
                        hint="Keep the file as it is; the missing extents are copied again.",
                        **error.facts,
                    ) from error

    def _segment(self, name: SegmentName, place: Place, topic_id: str) -> Generator[tuple[StoredEntry, Place], None, Place]:
        """Yield what a segment holds behind `place`; return where its end stands."""
        assert self._store is not None, "a segment without a store"
        reader = SegmentReader(self._store, name)
        header = reader.header
        if header.origin.topic_id != topic_id:
            raise IntegrityError("it came from a topic that was deleted since", path=str(name))
        gaps = [gap for gap in header.gaps if gap.position >= place.position and gap.kafka_offset >= place.kafka_offset]
        for index, block in enumerate(header.blocks):
            if block.last <= place.position:
                continue
            stored = reader.batch(index)
            while gaps and gaps[0].kafka_offset <= stored.kafka_offset:
                found, place = _noted(gaps.pop(0), place)
                yield found, place
            _prove(stored, place)
            entry = stored.entry
            whole = block is not header.blocks[-1] or header.origin.next_kafka_offset > stored.kafka_offset
            place = Place(block.last, entry.state.digest, stored.kafka_offset + whole, entry.writer)
            timestamp_ms = block.last_capture_time_ns // 1_000_000
            yield StoredEntry(stored.kafka_offset, place.kafka_offset, entry, value=entry.packed, timestamp_ms=timestamp_ms), place
        for gap in gaps:
            found, place = _noted(gap, place)
            yield found, place
        origin = header.origin
        if origin.next_kafka_offset >= place.kafka_offset:
            place = replace(place, kafka_offset=origin.next_kafka_offset, fence=max(place.fence, origin.fence))
            yield StoredEntry(place.kafka_offset, place.kafka_offset, None, fence=place.fence), place
        return place

    def _joins(self, last: Position, name: SegmentName) -> bool:
        """Tell whether a segment goes on behind `last`; its header is read only where the names do not tell."""
        if name.first <= last or name.first == last.next():
            return True
        header = self._header(name)
        return header is not None and (header.coverage.follows == last or any(gap.position == last for gap in header.gaps))

    def _header(self, name: SegmentName) -> SegmentHeader | None:
        """Return a segment's header, None if it is damaged."""
        assert self._store is not None, "a header without a store"
        try:
            return SegmentReader(self._store, name).header
        except IntegrityError as error:
            self._lacking[str(name)] = error.sentence
            return None

    def _names(self) -> Sequence[SegmentName]:
        if not self.exists:
            return []
        assert self._store is not None
        return [name for name in list_segments(self._store, self._volume) if str(name) not in self._lacking]

    def _because(self, sentence: str) -> str:
        """Name a segment that is lacking because it is damaged: it is likely the reason."""
        for path, why in self._lacking.items():
            return f"{sentence}; segment {path} can't be used: {why}"
        return sentence


def _noted(gap: StoredGap, place: Place) -> tuple[StoredEntry, Place]:
    """Return a recorded gap as an entry. One that persist noted shares its kafka_offset with the message behind it."""
    hole = gap.reason in HOLES
    after = gap.kafka_offset if hole else gap.kafka_offset + 1
    place = replace(place, kafka_offset=after, fence=NO_FENCE if hole else place.fence, gap=True)
    return StoredEntry(gap.kafka_offset, after, gap), place


def _prove(stored: StoredBatch, place: Place) -> None:
    """Raise IntegrityError unless the batch is what was written and goes on from `place`."""
    entry = stored.entry
    batch = stored.unpack()
    if stored.kafka_offset < place.kafka_offset or entry.writer < place.fence:
        raise IntegrityError("it stands before what was read already", path=stored.path, kafka_offset=stored.kafka_offset)
    if place.gap:
        return
    if batch.first <= place.position:
        rest = batch.after(place.position.sequence)
        assert rest is not None, "a batch that ends behind a position has records behind it"
        goes_on = chain_digest(place.digest, rest) == entry.state.digest
    else:
        goes_on = (entry.follows, entry.digest_before) == (place.position, place.digest)
    if not goes_on:
        raise IntegrityError("its records do not continue those before", path=stored.path, position=batch.first, expected=place.position)
