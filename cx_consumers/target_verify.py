"""Verification of a replica: what `verify` marks say, and what comparing them comes to (design rule 26). Pure.

The agent says the digest of a chunk as it is at one position; the target compares its own at that very position. What a mark comes to:

    equal        the chunk is proved; an open repair of it is done
    different    counted, and its extent must be copied again: a repair, open until every byte of it was written anew by the stream
    not compared a gap is open, the first copy runs, or the replica may hold bytes of later records (after a crash)

A round is the marks from offset 0 in rising order to the one that says `last`, without a hole, in one epoch and without a gap in
between, all compared by one session. Only such a round proves anything; any other ends as not complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cx_consumers.target_chain import ChainState
from stream.extent import Extent, ExtentSet
from stream.position import Position
from stream.record import DIGEST_BYTES, Batch, Kind

VERIFY_BYTES_MAX = 16 << 20
ROUND_CHARS_MAX = 256
ENDED_MAX = 8
OFFSETS_TOLD_MAX = 16
REPAIR_EXTENTS_MAX = 4096

Spans = tuple[tuple[int, int], ...]
"""Extents as `(start, end)` in bytes, sorted and disjoint."""


@dataclass(frozen=True, slots=True)
class VerifyMark:
    """The digest (xxh3_128) of the source's bytes `[offset_bytes, end_bytes)` as they are at `position`."""

    position: Position
    offset_bytes: int
    length_bytes: int
    digest: bytes
    round: str
    last: bool

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A round that is over, at the position of its last mark. `complete`: all of it was compared; `offsets` are the first that differed."""

    round: str
    position: Position
    complete: bool
    mismatches: int = 0
    offsets: tuple[int, ...] = ()

    def told(self) -> Mapping[str, Any]:
        """Return the facts as a report carries them."""
        position, offsets = str(self.position), list(self.offsets)
        return {
            "round": self.round,
            "position": position,
            "complete": self.complete,
            "mismatches": self.mismatches,
            "offsets": offsets,
        }


@dataclass(frozen=True, slots=True)
class VerifyState:
    """What is known of a replica by verification; it stands in the checkpoint.

    `mismatches` counts since the replica was made; `done` is the last complete round, `ended` the last ones of any outcome. `repairs`
    are the extents known to differ and not yet written anew; `unasked` those of them that no resync was asked for, first found at
    `unasked_at`.
    """

    mismatches: int = 0
    proved_position: Position | None = None
    done: Ended | None = None
    ended: tuple[Ended, ...] = ()
    repairs: Spans = ()
    unasked: Spans = ()
    unasked_at: Position | None = None

    def facts(self) -> Mapping[str, Any]:
        """Return what `VolumeFacts` tells of it while no round runs."""
        done = self.done
        return {
            "proved_position": self.proved_position,
            "verify_round": self.ended[-1].round if self.ended else None,
            "verify_percent": None,
            "verify_done": None if done is None else done.round,
            "round_mismatches": None if done is None else done.mismatches,
            "verify_mismatches": self.mismatches,
            "verify_ended": self.ended,
            "repairs_open": len(self.repairs),
        }

    def asked(self) -> VerifyState:
        """Return the state after a resync of everything `unasked` was asked for."""
        return replace(self, unasked=(), unasked_at=None)

    def written(self, extents: Iterable[tuple[int, int]]) -> VerifyState:
        """Return the state after the stream wrote these `(offset, length)` anew."""
        if not self.repairs:
            return self
        left = _set(self.repairs)
        for offset, length in extents:
            left.remove(offset, offset + length)
        return replace(self, repairs=_spans(left))

    def resized(self, size_bytes: int) -> VerifyState:
        """Return the state of a volume of this size: what lies behind its end needs no repair."""
        if not any(end > size_bytes for _, end in (*self.repairs, *self.unasked)):
            return self
        unasked = _cut(self.unasked, size_bytes)
        return replace(self, repairs=_cut(self.repairs, size_bytes), unasked=unasked, unasked_at=self.unasked_at if unasked else None)


@dataclass(frozen=True, slots=True)
class Round:
    """The round whose marks come now. `broken`: a part of it was not compared, or may not count; it proves nothing."""

    id: str
    epoch: int
    gaps: int
    next_offset: int = 0
    mismatches: int = 0
    offsets: tuple[int, ...] = ()
    broken: bool = False

    def percent(self, size_bytes: int) -> float:
        return round(100.0 * min(self.next_offset, size_bytes) / size_bytes, 2) if size_bytes else 100.0


def verify_mark(batch: Batch, index: int) -> VerifyMark | None:
    """Return what record `index` says if it is a verify mark, None if it is another record or none that can be compared."""
    if batch.kinds[index] != Kind.VERIFY:
        return None
    told = batch.marks.get(index, {})
    offset, length = _number(told.get("offset_bytes", "")), _number(told.get("length_bytes", ""))
    digest, name = _digest(told.get("digest", "")), told.get("round", "")
    if offset is None or not length or length > VERIFY_BYTES_MAX or digest is None or not 0 < len(name) <= ROUND_CHARS_MAX:
        return None
    position = Position(batch.epoch, batch.first_sequence + index)
    return VerifyMark(position, offset, length, digest, name, told.get("last") == "true")


def compared(
    state: VerifyState, running: Round | None, mark: VerifyMark, at: ChainState, *, equal: bool | None, size_bytes: int
) -> tuple[VerifyState, Round | None]:
    """Return what is known, and the round that runs, after a mark; `equal` is None if it was not compared."""
    state, running = _joined(state, running, mark, at)
    follows = (mark.offset_bytes, at.position.epoch, at.gaps) == (running.next_offset, running.epoch, running.gaps)
    running = replace(running, next_offset=mark.end_bytes, broken=running.broken or not follows or equal is None)
    if equal is True:
        state = state.written([(mark.offset_bytes, mark.length_bytes)])
    elif equal is False:
        state = _differs(state, mark, size_bytes)
        offsets = (*running.offsets, mark.offset_bytes)[:OFFSETS_TOLD_MAX]
        running = replace(running, mismatches=running.mismatches + 1, offsets=offsets)
    if not mark.last:
        return state, running
    return _end(state, running, mark.position, complete=not running.broken and mark.end_bytes == size_bytes), None


def _joined(state: VerifyState, running: Round | None, mark: VerifyMark, at: ChainState) -> tuple[VerifyState, Round]:
    """Return the round that the mark belongs to; one that it interrupts ends here."""
    begins = mark.offset_bytes == 0
    if running is not None and running.id == mark.round and not begins:
        return state, running
    if running is not None and running.id != mark.round:
        state = _end(state, running, mark.position, complete=False)
    return state, Round(mark.round, at.position.epoch, at.gaps, broken=not begins)


def _end(state: VerifyState, running: Round, at: Position, *, complete: bool) -> VerifyState:
    ended = Ended(running.id, at, complete, running.mismatches, running.offsets)
    state = replace(state, ended=(*state.ended, ended)[-ENDED_MAX:])
    if not complete:
        return state
    return replace(state, done=ended, proved_position=state.proved_position if running.mismatches else at)


def _differs(state: VerifyState, mark: VerifyMark, size_bytes: int) -> VerifyState:
    spans = []
    for known in (state.repairs, state.unasked):
        more = _set(known)
        more.add(mark.offset_bytes, mark.end_bytes)
        spans.append(_spans(more) if len(more) <= REPAIR_EXTENTS_MAX else ((0, size_bytes),))
    at = state.unasked_at or mark.position
    return replace(state, mismatches=state.mismatches + 1, repairs=spans[0], unasked=spans[1], unasked_at=at)


def spans_text(spans: Spans) -> str:
    """Return extents as a request names them: `start-end,start-end`."""
    return ",".join(f"{start}-{end}" for start, end in spans)


def spans_of(text: str) -> Spans:
    """Read what `spans_text` writes. Raises ValueError for anything else, and unless the extents are sorted, disjoint and not empty."""
    spans, before = [], 0
    for one in text.split(",") if text else ():
        start, dash, end = one.partition("-")
        first, last = _number(start), _number(end)
        if not dash or first is None or last is None or not before <= first < last:
            raise ValueError(f"{one!r} is no extent, or stands in the wrong place")
        spans.append((first, last))
        before = last
    return tuple(spans)


def _set(spans: Spans) -> ExtentSet:
    return ExtentSet(Extent(start, end - start) for start, end in spans)


def _spans(extents: ExtentSet) -> Spans:
    return tuple((one.offset_bytes, one.end_bytes) for one in extents)


def _cut(spans: Spans, size_bytes: int) -> Spans:
    return tuple((start, min(end, size_bytes)) for start, end in spans if start < size_bytes)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _digest(text: str) -> bytes | None:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES else None
