"""A volume's history in a store and a journal in memory, as persist left it, for what opens points of it; the records are the oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator

from history.store import Store, open_store
from recovery.opening import Opener
from stream.config import Config
from stream.consumer import StoredMessage
from stream.errors import ResyncError, RetryError
from stream.position import Position
from stream.record import Kind
from tests.history_maker import stored
from tests.journal_maker import JournalMaker, Told, flush, image, mark, write, zero

SIZE_BYTES = 1 << 20


class MemoryJournal:
    """The journal of a maker, from message `low` on; `away` stands for a broker that does not answer."""

    def __init__(self, maker: JournalMaker, low: int = 0) -> None:
        self.maker = maker
        self.low = low
        self.away = False
        self.id = "journal-id"
        self.opened = 0
        self.read_from: list[int] = []

    def open(self) -> MemoryJournal:
        self.opened += 1
        if self.away:
            raise RetryError("Kafka does not answer at nowhere:1")
        return self

    def topic_id(self) -> str:
        return self.id

    def bounds(self) -> tuple[int, int]:
        return self.low, len(self.maker.messages)

    def read(self, start: int, end: int) -> Iterator[StoredMessage]:
        if start < self.low:
            raise ResyncError("The journal no longer has what is to be read")
        self.read_from.append(start)
        yield from self.maker.messages[start:end]

    def close(self) -> None:
        self.opened -= 1


class RecoveryBench:
    """`maker` has what happened, `store` its first `persisted` messages in segments, `journal` all of it."""

    def __init__(self, maker: JournalMaker, persisted: int, *, seals: int = 3, store: Store | None = None) -> None:
        self.maker = maker
        self.store = store or open_store("memory:///")
        seals_at = sorted({persisted * (number + 1) // seals for number in range(seals)} - {0})
        if seals_at:
            stored(maker.messages[:persisted], seals_at, store=self.store)
        self.journal = MemoryJournal(maker)
        self.now_ns = maker.time_ns

    def opener(self) -> Opener:
        return Opener(Config(), self.maker.volume, store=self.store, journal=self.journal.open, now_ns=lambda: self.now_ns)

    def oracle(self, position: Position) -> bytes:
        """Return the volume's bytes at a position, applied record by record."""
        return bytes(image([one for one in self.maker.records if one[0] <= position], SIZE_BYTES))


def busy_history(seed: int, batches: int, *, size_bytes: int = SIZE_BYTES) -> JournalMaker:
    """Return a history of random writes of 512 bytes to 64 KiB, split writes, zeroes, flushes and some bookmarks, after a first copy."""
    dice, maker = random.Random(seed), JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, first="true", size_bytes=str(size_bytes)), write(0, b"first"))
    maker.batch(mark(Kind.SYNC_END, closes="00000001-0000000000000001"))
    for number in range(batches):
        told: list[Told] = []
        for _ in range(dice.randint(1, 12)):
            length = dice.choice([512, 4096, 4096, 20_000, 65_536])
            at = dice.randrange(0, size_bytes - length)
            kind = dice.random()
            if kind < 0.1:
                told.append(zero(at, length))
            elif kind < 0.2:
                half = length // 2
                told += [write(at, dice.randbytes(half), more=True), write(at + half, dice.randbytes(length - half))]
            elif kind < 0.3:
                told.append(flush())
            else:
                told.append(write(at, dice.randbytes(length)))
        if number % 5 == 0:
            told.append(mark(Kind.BOOKMARK, label=f"b{number}"))
        maker.batch(*told)
    return maker
