"""A journal with everything that happens to one: splits, duplicates, overlaps, late writers, gaps, new epochs; told by `JournalMaker`.

Used by the target's tests. `Script` keeps the maker's gaps by its own bookkeeping, so the maker's `records` stay the oracle.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace

import xxhash

from stream.journal import JournalBatch, OpenGap
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import JournalMaker, Told, image, mark, write, zero


@dataclass
class Script:
    """Write a journal of random content; what happens is told by the calls, what is written by the seed."""

    maker: JournalMaker
    size_bytes: int
    chance: random.Random
    write_bytes_max: int = 300
    rounds: int = 0
    proved: Position | None = None  # the last mark of the last round that nothing interrupted

    def told(self) -> Told:
        length = self.chance.randint(1, self.write_bytes_max)
        offset = self.chance.randint(0, self.size_bytes - length)
        if self.chance.random() < 0.2:
            return zero(offset, length)
        return write(offset, self.chance.randbytes(length))

    def batch(self, *extra: Told) -> None:
        self.maker.batch(*extra, *(self.told() for _ in range(self.chance.randint(0 if extra else 1, 5))))

    def split(self, *, finish: bool = True) -> None:
        """A write in fragments that batches divide at random."""
        pieces = self.chance.randint(2, 7)
        each = self.chance.randint(1, self.write_bytes_max)
        at = self.chance.randint(0, self.size_bytes - pieces * each)
        told = [self.told()] * self.chance.randint(0, 1)
        for index in range(pieces):
            told.append(write(at + index * each, self.chance.randbytes(each), more=index < pieces - 1 or not finish))
            if self.chance.random() < 0.4:
                self.maker.batch(*told)
                told = []
        told += [self.told()] * (self.chance.randint(0, 1) if finish else 0)
        if told:
            self.maker.batch(*told)

    def duplicate(self) -> None:
        """The last batch once more."""
        if isinstance(self.maker.entries[-1], JournalBatch):
            self.maker.repeat(self.maker.entries[-1])

    def overlap(self) -> None:
        """A batch, then the same batch joined with what follows it."""
        before = self.fork()
        first = [self.told() for _ in range(self.chance.randint(1, 4))]
        more = [self.told() for _ in range(self.chance.randint(1, 4))]
        self.maker.batch(*first)
        joined = before.make(*first, *more)
        self.maker.make(*more)
        self.maker.repeat(replace(joined, writer=self.maker.writer, state=replace(joined.state, digest=self.maker.digest)))

    def takeover(self) -> None:
        """Another worker takes the volume; the old one writes on, late, and nobody may read it."""
        late = self.fork()
        self.batch()
        self.maker.fence()
        entries = [late.make(self.told(), self.told()) for _ in range(self.chance.randint(0, 2))]
        for index, entry in enumerate(entries):
            self.maker.repeat(entry)
            if index == 0:
                self.batch()

    def gap(self, *, close: bool = True, inside: bool = False) -> None:
        """Order is lost and found again: `gap_begin`, copies, `sync_end`."""
        if self.maker.writer < 0:
            self.maker.fence()
        lead = [self.told() for _ in range(self.chance.randint(0, 2))]
        position = self.position(len(lead))
        self.open(position, "buffer_full")
        self.maker.batch(*lead, mark(Kind.GAP_BEGIN, reason="buffer_full"), *[self.told()] * inside)
        for _ in range(self.chance.randint(0, 4)):
            self.batch()
        if close:
            self.close(position)

    def open(self, position: Position, reason: str) -> None:
        self.maker.open_gaps = (*self.maker.open_gaps, OpenGap(position, reason, self.maker.time_ns))

    def close(self, *positions: Position) -> None:
        """Resync: begin a copy, and end it, which closes these gaps."""
        self.maker.batch(mark(Kind.SYNC_BEGIN))
        self.maker.open_gaps = tuple(gap for gap in self.maker.open_gaps if gap.position not in positions)
        self.maker.batch(mark(Kind.SYNC_END, closes=",".join(map(str, positions))), *[self.told()] * self.chance.randint(0, 1))

    def epoch(self, *, clean: bool, first: bool = False, close: bool = True) -> None:
        """The agent begins anew."""
        self.maker.epoch += 1
        position = self.position(0)
        if not clean:
            self.open(position, "first_copy" if first else "unclean_stop")
        told = {"clean": "true" if clean else "false", "first": "true" if first else "false", "size_bytes": str(self.size_bytes)}
        self.maker.batch(mark(Kind.EPOCH_START, **told), *[self.told()] * self.chance.randint(0, 2))
        if not clean:
            self.batch()
            if close:
                self.close(position)

    def verify(self, *, interrupt: str = "", chunk_bytes: int = 2048) -> None:
        """A round of verify marks among writes, each true of the records before it; in its middle something may happen."""
        self.rounds += 1
        offsets = range(0, self.size_bytes, chunk_bytes)
        for index, offset in enumerate(offsets):
            if index == len(offsets) // 2 and interrupt:
                play(self, interrupt)
            lead = [self.told() for _ in range(self.chance.randint(0, 2))]
            told = self.digest_mark(offset, min(chunk_bytes, self.size_bytes - offset), lead, last=offset == offsets[-1])
            last = self.position(len(lead))
            self.maker.batch(*lead, told, *[self.told()] * self.chance.randint(0, 1))
        if not interrupt:
            self.proved = last

    def digest_mark(self, offset: int, length: int, lead: list[Told], *, last: bool = False, wrong: bool = False) -> Told:
        """Return the verify mark of an extent as it is behind all records and `lead`."""
        records = [*self.maker.records, *((self.position(0), 0, one) for one in lead)]
        digest = xxhash.xxh3_128(bytes(image(records, self.size_bytes)[offset : offset + length]) + b"x" * wrong).hexdigest()
        told = {"offset_bytes": str(offset), "length_bytes": str(length), "digest": digest, "round": f"b{self.rounds}"}
        return mark(Kind.VERIFY, **told, last="true" if last else "false")

    def verify_in_gap(self) -> None:
        """A round of digests that nobody may look at: order is lost before it and found after it."""
        self.rounds += 1
        position = self.position(0)
        if self.maker.writer < 0:
            self.maker.fence()
        self.open(position, "buffer_full")
        self.maker.batch(mark(Kind.GAP_BEGIN, reason="buffer_full"), self.digest_mark(0, self.size_bytes, [], last=True, wrong=True))
        self.batch()
        self.close(position)

    def resize(self) -> None:
        """The volume grows or shrinks, and may do so again at once; writes stand on both sides in the same batch."""
        told: list[Told] = []
        for _ in range(self.chance.randint(1, 2)):
            told += [self.told() for _ in range(self.chance.randint(0, 2))]
            self.size_bytes = self.chance.choice((6144, 8192, 10000, 12288))
            told.append(mark(Kind.RESIZE, size_bytes=str(self.size_bytes)))
        self.maker.batch(*told, *(self.told() for _ in range(self.chance.randint(0, 2))))

    def position(self, index: int) -> Position:
        """Return the position that record `index` of the next batch will have."""
        return Position(self.maker.epoch, self.maker.sequence + 1 + index)

    def fork(self) -> JournalMaker:
        """Return a maker in the same state, with lists of its own."""
        if self.maker.writer < 0:
            self.maker.fence()
        return copy.deepcopy(self.maker)

    def image(self, at: Position | None = None) -> bytearray:
        """Return the volume at a position, from the list of records."""
        records = [one for one in self.maker.records if at is None or one[0] <= at]
        return image(records, self.size_bytes)


def script(size_bytes: int, seed: int, *, volume: str = "v1", codec: str = "snappy") -> Script:
    """Return a script whose journal begins with a first copy that is done."""
    made = Script(JournalMaker(volume, codec, epoch=0), size_bytes, random.Random(seed))
    made.epoch(clean=False, first=True)
    return made


EVENTS = ("batch", "batch", "batch", "split", "duplicate", "overlap", "takeover", "gap", "epoch", "given_up", "heartbeat")


VERIFIES = ("verify", "verify", "verify_in_gap", "broken_by_gap", "broken_by_epoch")
RESIZES = ("resize",)  # of volumes of some KiB


def play(made: Script, event: str) -> None:
    """Let one of `EVENTS` happen."""
    if event == "epoch":
        made.epoch(clean=made.chance.random() < 0.5)
    elif event == "given_up":
        made.split(finish=False)
        made.epoch(clean=False)
    elif event == "heartbeat":
        made.maker.batch(mark(Kind.HEARTBEAT))
    elif event == "gap":
        made.gap(inside=made.chance.random() < 0.5)
    elif event.startswith("broken_by_"):
        made.verify(interrupt=event.removeprefix("broken_by_"))
    else:
        getattr(made, event)()
