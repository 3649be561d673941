"""Random histories for the tests of images, folds and retention: a journal made of steps, stored in segments, and its oracle.

The oracle is a list of records applied one by one to a bytearray (`tests.journal_maker.image`); it knows no segment, index or fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from history.builder import SegmentBuilder, Start
from history.chain import Chain
from history.image import LayerPiece
from history.store import Store
from stream.journal import OpenGap
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, Told, flush, image, mark, write, zero

VOLUME_BYTES = 8192
PIECE_BYTES_MAX = 96
_data = st.binary(min_size=1, max_size=PIECE_BYTES_MAX)
_offset = st.integers(0, VOLUME_BYTES - PIECE_BYTES_MAX)


@st.composite
def steps(draw) -> list[Told]:
    """One step of a volume: a write, a split write or half of one, a zero, a flush, a mark, another size."""
    kind = draw(st.sampled_from(["write"] * 4 + ["split", "given_up", "zero", "zero", "flush", "mark", "gap", "resync", "resize"]))
    if kind == "write":
        return [write(draw(_offset), draw(_data))]
    if kind in ("split", "given_up"):
        at, told = draw(st.integers(0, VOLUME_BYTES - 4 * PIECE_BYTES_MAX)), []
        for piece in draw(st.lists(_data, min_size=2, max_size=4)):
            told.append(write(at, piece, more=True))
            at += len(piece)
        if kind == "split":
            told[-1] = write(told[-1].offset, told[-1].data)
            return told
        return [*told, flush()]
    if kind == "zero":
        return [zero(draw(st.integers(0, VOLUME_BYTES - 2048)), draw(st.integers(1, 2048)))]
    if kind == "resize":
        return [mark(Kind.RESIZE, size_bytes=str(draw(st.sampled_from([VOLUME_BYTES, VOLUME_BYTES // 2, 5000]))))]
    if kind == "gap":
        return [mark(Kind.GAP_BEGIN, reason="overflow")]
    if kind == "resync":
        return [mark(Kind.SYNC_END)]
    return [flush() if kind == "flush" else mark(draw(st.sampled_from([Kind.BOOKMARK, Kind.VERIFY, Kind.HEARTBEAT])), label="b")]


@st.composite
def journals(draw, steps_max: int = 40) -> JournalMaker:
    """A journal of random steps in random batches: an epoch_start first, gaps that open and close, later epochs among them.

    What was written behind the end of a volume that shrank may never be shown again.
    """
    maker = JournalMaker(codec=draw(st.sampled_from(["none", "snappy"])))
    waiting = [mark(Kind.EPOCH_START, clean="true", size_bytes=str(VOLUME_BYTES))]
    size = VOLUME_BYTES
    for step in draw(st.lists(steps(), max_size=steps_max)):
        for told in step:
            size = int((told.attributes or {}).get("size_bytes", size))
            one = told if told.offset + told.length <= size else replace(told, offset=told.offset % (size - told.length))
            if one.kind in (Kind.GAP_BEGIN, Kind.SYNC_END) or draw(st.booleans()):
                _send(maker, waiting)
                waiting = []
            if one.kind == Kind.GAP_BEGIN:
                at = Position(maker.epoch, maker.sequence + 1)
                maker.open_gaps = (*maker.open_gaps, OpenGap(at, "overflow", maker.time_ns))
                maker.batch(one)
            elif one.kind == Kind.SYNC_END:
                closes = ",".join(str(gap.position) for gap in maker.open_gaps)
                maker.open_gaps = ()
                maker.batch(mark(Kind.SYNC_END, closes=closes))
            else:
                waiting.append(one)
        if draw(st.integers(0, 15)) == 0:
            _send(maker, waiting)
            maker.epoch, size = maker.epoch + 1, VOLUME_BYTES
            waiting = [mark(Kind.EPOCH_START, clean="true", size_bytes=str(VOLUME_BYTES))]
    _send(maker, waiting)
    return maker


def _send(maker: JournalMaker, waiting: Sequence[Told]) -> None:
    if waiting:
        maker.batch(*waiting)


def store_all(maker: JournalMaker, store: Store, seal_at: set[int], *, from_message: int = 0, start: Start | None = None) -> Position:
    """Store the journal in segments that end behind the messages named, if they can, and behind the last; return where the last ends.

    With `start` as another persister would that resumed there: what it stores overlaps what is there.
    """
    start = start or Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0)
    chain = Chain(maker.volume, start.position, start.digest, fence=start.fence, open_gaps=start.open_gaps)
    builder = SegmentBuilder(start)
    reached = start.position
    for message, entry in list(zip(maker.messages, maker.entries, strict=True))[from_message:]:
        kept = chain.accept(entry, message.kafka_offset)
        for one in kept:
            builder.append(one, message.kafka_offset, chain.fence, chain.open_gaps)
        if not kept:
            builder.skip(message.kafka_offset, chain.fence)
        if (message.kafka_offset in seal_at or message is maker.messages[-1]) and builder.sealable:
            sealed, builder = builder.seal()
            store.put(sealed.name, sealed.parts)
            reached = sealed.header.name.last
    return reached


def moments(maker: JournalMaker, through: Position | None = None) -> list[Position]:
    """Return the positions that no split write is open at and no gap, up to one."""
    found: list[Position] = []
    open_gaps = 0
    for position, _, told in maker.records:
        if told.kind == Kind.GAP_BEGIN:
            open_gaps += 1
        elif told.kind == Kind.SYNC_END:
            open_gaps = 0
        if not told.more and not open_gaps and (through is None or position <= through):
            found.append(position)
    return found


def oracle(maker: JournalMaker, position: Position) -> bytes:
    """Return what the volume holds at a position."""
    return bytes(image([one for one in maker.records if one[0] <= position], VOLUME_BYTES))


class ListLayer:
    """A layer of plain records, as the tail of a journal is one: what they wrote, applied to a bytearray."""

    def __init__(self, records: Sequence[tuple[Position, int, Told]]) -> None:
        self.written = bytearray(VOLUME_BYTES)
        self.marked = bytearray(VOLUME_BYTES)
        held: list[Told] = []
        for _, _, told in records:
            if told.kind == Kind.WRITE:
                held.append(told)
                if told.more:
                    continue
                for one in held:
                    self._write(one.offset, one.data, 1)
            elif told.kind == Kind.ZERO:
                self._write(told.offset, bytes(told.length), 2)
            elif told.attributes and "size_bytes" in told.attributes:
                size = int(told.attributes["size_bytes"])
                self._write(size, bytes(VOLUME_BYTES - size), 2)
            held = []

    def _write(self, offset: int, data: bytes, how: int) -> None:
        self.written[offset : offset + len(data)] = data
        self.marked[offset : offset + len(data)] = bytes([how]) * len(data)

    def pieces(self, start_bytes: int, end_bytes: int) -> list[LayerPiece]:
        found: list[LayerPiece] = []
        at = start_bytes
        while at < end_bytes:
            how, begin = self.marked[at] if at < VOLUME_BYTES else 0, at
            while at < end_bytes and (self.marked[at] if at < VOLUME_BYTES else 0) == how:
                at += 1
            if how:
                found.append(LayerPiece(begin, at, how == 2, (begin,)))
        return found

    outline = pieces

    def read(self, piece: LayerPiece, into: memoryview) -> None:
        assert len(into) == piece.end_bytes - piece.start_bytes
        into[:] = self.written[piece.reference[0] : piece.reference[0] + len(into)]


def long_journal(seed: int, count: int) -> JournalMaker:
    """Return a journal of about `count` steps such as `journals` makes, from a seed: longer than Hypothesis draws them."""
    rng = Random(seed)
    maker = JournalMaker(codec=rng.choice(["none", "snappy"]))
    waiting = [mark(Kind.EPOCH_START, clean="true", size_bytes=str(VOLUME_BYTES))]
    for _ in range(count):
        kind = rng.choices(["some", "gap", "epoch", "resync"], [92, 2, 2, 10 if maker.open_gaps else 0])[0]
        if kind == "some":
            waiting += _some(rng)
        if kind != "some" or rng.random() < 0.5:
            _send(maker, waiting)
            waiting = []
        if kind == "gap" and not maker.open_gaps:
            maker.open_gaps = (OpenGap(Position(maker.epoch, maker.sequence + 1), "overflow", maker.time_ns),)
            maker.batch(mark(Kind.GAP_BEGIN, reason="overflow"))
        elif kind == "resync":
            closes, maker.open_gaps = str(maker.open_gaps[0].position), ()
            maker.batch(mark(Kind.SYNC_END, closes=closes))
        elif kind == "epoch":
            maker.epoch += 1
            waiting = [mark(Kind.EPOCH_START, clean="true", size_bytes=str(VOLUME_BYTES))]
    _send(maker, waiting)
    return maker


def _some(rng: Random) -> list[Told]:
    """Return a write, whole or split, a zero, a flush or a bookmark."""
    at = rng.randrange(VOLUME_BYTES - 4 * PIECE_BYTES_MAX)
    kind = rng.choices(["write", "split", "zero", "flush", "bookmark"], [60, 8, 12, 8, 5])[0]
    if kind == "write":
        return [write(at, rng.randbytes(rng.randrange(1, PIECE_BYTES_MAX)))]
    if kind == "split":
        return [write(at + 64 * number, rng.randbytes(64), more=number < 2) for number in range(3)]
    if kind == "zero":
        return [zero(at, rng.randrange(1, VOLUME_BYTES - at))]
    return [flush() if kind == "flush" else mark(Kind.BOOKMARK, label="b")]
