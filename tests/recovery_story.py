"""A volume's history told record by record, with the truth beside it: which of its positions are recovery points, counted here by the words
of the wire specification and by nothing of the product.

Used by the tests of planner and timeline. `Story.stored` makes the segments that a test wants of it, as facts that a planner asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from history.builder import SegmentBuilder, Start
from history.chain import Chain
from history.doubts import Doubt
from history.extent_index import ExtentIndex
from history.segment import SegmentHeader, SegmentName
from stream.codec import unpack
from stream.errors import IntegrityError
from stream.journal import JournalBatch, OpenGap
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Batch, Kind
from tests.journal_maker import BEGUN_NS, JournalMaker, Told, flush, mark, write, zero

SIZE_BYTES = 4096
AGENT = "agent"
ORDER = "retention"


@dataclass(repr=False)
class Story:
    """`maker.records` is all that happened; `good[i]` tells whether record i is a recovery point of the history, stored or not."""

    maker: JournalMaker = field(default_factory=lambda: JournalMaker(codec="none"))
    good: list[bool] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # how many records there were after each batch
    gaps: dict[Position, str] = field(default_factory=dict)  # open now: by whom they were begun
    closed: list[tuple[Position, Position]] = field(default_factory=list)  # under which position a gap was open, and what closed it

    def __repr__(self) -> str:
        return "\n".join(f"{number} {position} {told}" for number, (position, _, told) in enumerate(self.maker.records))

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(repr(self))

    def tell(self, *told: Told) -> None:
        """Append one batch."""
        maker = self.maker
        for number, one in enumerate(told, maker.sequence + 1):
            position, before = Position(maker.epoch, number), dict(self.gaps)
            if one.kind == Kind.SYNC_END:
                for text in (one.attributes or {})["closes"].split(","):
                    self.gaps = {gap: by for gap, by in self.gaps.items() if str(gap) != text}
            elif one.kind == Kind.GAP_BEGIN:
                self.gaps[position] = AGENT
            elif one.kind == Kind.EPOCH_START and (one.attributes or {}).get("clean") != "true":
                self.gaps = {gap: by for gap, by in self.gaps.items() if by == ORDER} | {position: AGENT}
            self.good.append(not self.gaps and not one.more)
            self.closed += [(gap, position) for gap in before if gap not in self.gaps]
        maker.open_gaps = tuple(OpenGap(gap, "overflow" if by == AGENT else ORDER, BEGUN_NS) for gap, by in sorted(self.gaps.items()))
        maker.batch(*told)
        self.ends.append(len(maker.records))

    def lose(self, count: int) -> None:
        """Append a JournalGap: so many records never came."""
        self.gaps[self.maker.last] = ORDER
        self.maker.open_gaps = tuple(OpenGap(gap, AGENT if by == AGENT else ORDER, BEGUN_NS) for gap, by in sorted(self.gaps.items()))
        self.maker.gap(open_it=False)
        self.maker.sequence += count

    def closes(self) -> str:
        return ",".join(map(str, sorted(self.gaps)))

    def positions(self) -> list[Position]:
        return [position for position, _, _ in self.maker.records]

    def times(self) -> list[int]:
        return [time_ns for _, time_ns, _ in self.maker.records]


@dataclass(repr=False)
class Held:
    """One segment of a story: the records `[low, high)` by their place in it, and its header."""

    low: int
    high: int
    header: SegmentHeader
    batches: list[Batch]

    @property
    def name(self) -> SegmentName:
        return self.header.name

    def __repr__(self) -> str:
        return f"{self.name}: records {self.low} to {self.high - 1}"

    def _repr_pretty_(self, printer, cycle: bool) -> None:
        printer.text(repr(self))


class HeldFacts:
    """The facts of some segments of a story; those in `damaged` can't be read."""

    volume = "v1"

    def __init__(self, held: list[Held]) -> None:
        self.held = {one.name: one for one in held}
        self.damaged: set[SegmentName] = set()
        self.doubtful: list[Doubt] = []
        self.asked: list[SegmentName] = []

    def names(self) -> list[SegmentName]:
        return list(self.held)

    def doubts(self) -> list[Doubt]:
        return self.doubtful

    def header(self, name: SegmentName) -> SegmentHeader:
        self.asked.append(name)
        self._check(name)
        return self.held[name].header

    def columns(self, name: SegmentName, block: int) -> Batch:
        self._check(name)
        return self.held[name].batches[block]

    def _check(self, name: SegmentName) -> None:
        if name in self.damaged:
            raise IntegrityError("A block of a segment does not match its checksum", path=str(name))


def hold(story: Story, first: int, last: int, level: int = 0) -> Held | None:
    """Return the segment of the story's messages `[first, last)`, as persist would seal it; None if there is nothing to seal.

    At a level above 0 it stands in for a fold of them: a planner looks at its header alone.
    """
    maker = story.maker
    chain = Chain(maker.volume, ZERO, DIGEST_START)
    for offset in range(first):
        chain.accept(maker.entries[offset], offset)
    builder = SegmentBuilder(Start(maker.volume, chain.position, chain.digest, "journal-id", first, chain.fence, chain.open_gaps))
    batches = []
    for offset in range(first, last):
        for entry in chain.accept(maker.entries[offset], offset):
            builder.append(entry, offset, chain.fence, chain.open_gaps)
            if isinstance(entry, JournalBatch):
                batches.append(unpack(entry))
    if not builder.sealable:
        return None
    sealed, _ = builder.seal()
    header = sealed.header
    if level and header.coverage.open_gaps:
        return None  # no fold ends in a gap
    if level:
        marks = tuple(replace(mark, record=-1) for mark in header.marks)
        name = replace(header.name, level=level)
        header = replace(header, name=name, marks=marks, flushes=(), blocks=(), extents=ExtentIndex.of(()))
    positions = story.positions()
    return Held(positions.index(header.name.first), positions.index(header.name.last) + 1, header, batches)


STEPS = ("write", "write", "split", "given_up", "flush", "zero", "gap", "sync", "clean", "unclean", "lost", "bookmark")


@st.composite
def told_by(draw, step: str) -> list[Told]:
    """The records of a step that stands within an epoch."""
    if step in ("split", "given_up"):
        parts = [write(64 * part, b"s" * 64, more=True) for part in range(draw(st.integers(1, 3)))]
        return [*parts, write(256, b"s" * 8) if step == "split" else flush()]
    return {
        "write": [write(draw(st.integers(0, 4000)), b"w" * draw(st.integers(1, 64)))],
        "flush": [flush()],
        "zero": [zero(100, 300)],
        "gap": [mark(Kind.GAP_BEGIN, reason="overflow")],
        "bookmark": [mark(Kind.BOOKMARK, label=draw(st.sampled_from("abc")))],
    }[step]


@st.composite
def stories(draw) -> Story:
    """A history that begins with a first copy, in batches of random length, with gaps, epochs and split writes."""
    story = Story()
    waiting = [mark(Kind.EPOCH_START, first="true", size_bytes=str(SIZE_BYTES)), write(0, b"x" * 64)]
    for step in ["sync", *draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=25))]:
        within = step not in ("sync", "clean", "unclean", "lost")
        if within:
            waiting += draw(told_by(step))
        if waiting and (not within or draw(st.booleans())):
            story.tell(*waiting)
            waiting = []
        if step == "sync":
            story.tell(mark(Kind.SYNC_END, closes=story.closes()))
        elif step == "lost":
            story.lose(draw(st.integers(0, 3)))
        elif not within:
            story.maker.epoch += 1
            story.tell(mark(Kind.EPOCH_START, clean=str(step == "clean").lower(), size_bytes=str(SIZE_BYTES)))
    if waiting:
        story.tell(*waiting)
    return story


@st.composite
def stored(draw, story: Story) -> list[Held]:
    """Some segments of a story: of level 0 from random seals, overlapping here and there, and folds; any of them may be missing."""
    count = len(story.maker.messages)
    cuts = sorted(draw(st.sets(st.integers(1, count), max_size=6)) | {count})
    held: dict[SegmentName, Held] = {}
    wanted = [(max(0, low - draw(st.integers(0, 2))), high, 0) for low, high in zip([0, *cuts], cuts, strict=False)]
    wanted += [
        (min(pair), max(pair), level)
        for level in draw(st.lists(st.integers(1, 4), max_size=4))
        for pair in [(draw(st.integers(0, count)), draw(st.integers(0, count)))]
    ]
    for low, high, level in wanted:
        one = hold(story, low, high, level) if low < high else None
        if one is not None and draw(st.integers(0, 9)):
            held[one.name] = one
    return list(held.values())
