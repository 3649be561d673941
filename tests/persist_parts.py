"""What the persister is tried with: a journal in memory, a store with faults, a bench that runs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from cx_consumers.persist import Persister
from history.reader import SegmentReader, list_segments
from history.segment import SegmentHeader
from history.store import Store, StoredObject, open_store
from stream.config import Config, CxConfig
from stream.consumer import StoredMessage
from stream.errors import ResyncError
from stream.journal import OpenGap
from stream.position import ZERO
from tests.journal_maker import JournalMaker, seen

SEGMENT_BYTES = 1 << 20
SEGMENT_AGE_S = 5.0


class Stop(threading.Event):
    """An event that nobody waits for: a wait without an end is where a parked volume would stay, so the test ends there."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            self.set()
        return self.is_set()


class Journal:
    """A journal in memory, with a retention, an identity and faults."""

    def __init__(self, maker: JournalMaker) -> None:
        self.messages = maker.messages
        self.low = 0
        self.id = "journal-id"
        self.faults: list[Exception] = []
        self.when_dry: Callable[[], None] = lambda: None
        self.read = 0
        self._next = 0

    def topic_id(self) -> str:
        return self.id

    def bounds(self) -> tuple[int, int]:
        return self.low, len(self.messages)

    def seek(self, kafka_offset: int) -> None:
        assert self.low <= kafka_offset <= len(self.messages), "a position that the journal does not have"
        self._next = kafka_offset

    def poll(self, timeout_s: float) -> list[StoredMessage]:
        if self.faults:
            raise self.faults.pop(0)
        if self._next < self.low:
            raise ResyncError("offset out of range")
        found = self.messages[self._next : self._next + 4]
        self._next += len(found)
        self.read += len(found)
        if not found:
            self.when_dry()
        return found

    def close(self) -> None:
        pass


class Faulty:
    """A store whose next puts fail."""

    def __init__(self, store: Store, faults: Sequence[Exception] = ()) -> None:
        self._store = store
        self.url = store.url
        self.faults = list(faults)
        self.puts: list[str] = []

    def put(self, name: str, parts: Sequence[bytes]) -> bool:
        if self.faults:
            raise self.faults.pop(0)
        self.puts.append(name)
        return self._store.put(name, parts)

    def get_range(self, name: str, start: int, end: int) -> bytes:
        return self._store.get_range(name, start, end)

    def list(self, prefix: str = "") -> list[StoredObject]:
        return self._store.list(prefix)


class Bench:
    """A persister with everything around it in the test's hands."""

    def __init__(self, maker: JournalMaker, store: Store | None = None) -> None:
        self.store = store or open_store("memory:///")
        self.journal = Journal(maker)
        self.now_s = 0.0
        self.asked: list[OpenGap] = []
        self.asked_again: list[tuple[OpenGap, OpenGap]] = []
        self.stop = Stop()
        self.persister = self.new()

    def new(self) -> Persister:
        config = Config(cx=replace(CxConfig(), segment_bytes_max=SEGMENT_BYTES, segment_age_s_max=SEGMENT_AGE_S))
        return Persister("v1", config, self.store, journal=self.journal, ask_resync=self._ask, clock=lambda: self.now_s)

    def _ask(self, gap: OpenGap, newest: OpenGap) -> None:
        if newest == gap:
            self.asked.append(gap)
        else:
            self.asked_again.append((gap, newest))

    def run(self, when_dry: Callable[[], None] | None = None) -> dict:
        """Run until the journal is dry (or whatever the test does then); return the facts."""
        self.stop.clear()
        self.journal.when_dry = when_dry or self.stop.set
        self.persister.run(self.stop)
        return self.persister.facts()

    def headers(self) -> list[SegmentHeader]:
        return [SegmentReader(self.store, name).header for name in list_segments(self.store, "v1")]

    def records(self) -> list:
        """Read the whole history as a recovery would: each segment contributes what is above those before it."""
        found, covered = [], ZERO
        for name in list_segments(self.store, "v1"):
            reader = SegmentReader(self.store, name)
            reader.check()
            found += [one for batch in reader.batches(covered) for one in seen(batch.unpack()) if one[0] > covered]
            covered = name.last
        return found
