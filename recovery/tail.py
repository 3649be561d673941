"""The tail of a volume's history: what the journal has and no segment of the store holds yet, as segments of its own on a scratch file.

Read by whoever opens the newest points. The journal's messages go through the same chain and builder as persist's, so a point in the tail
is planned, proved and read as one in the store is. Memory: one segment of `SEGMENT_BYTES` while it is made; the bytes lie in a file without
a name, which ends with the process. Nothing is written to Kafka or to the store, and no consumer group is joined.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from history.builder import SealedSegment, SegmentBuilder
from history.catalog import Catalog
from history.chain import Chain
from history.fold_writer import Spool
from history.resumption import resumed
from history.segment import SegmentHeader
from history.store import StoredObject
from stream.codec import decode_journal
from stream.config import KafkaConfig
from stream.errors import IntegrityError, RetryError
from stream.ping import ping
from stream.security import uses_tls
from stream.topic_names import journal_topic

if TYPE_CHECKING:
    from stream.consumer import StoredMessage

SEGMENT_BYTES = 8 << 20
HEADERS_BYTES_MAX = 16 << 20
TAIL_BYTES_MAX = 8 << 30
ANSWER_S = 1.0
QUERY_S = 5.0
IDLE_S = 10.0
QUEUED_KBYTES = 8 << 10


class JournalLog(Protocol):
    """The journal of one volume, as the tail reads it. Every method may raise RetryError."""

    def topic_id(self) -> str: ...

    def bounds(self) -> tuple[int, int]:
        """Return the first kafka_offset that it has and the next one it will give."""
        ...

    def read(self, start: int, end: int) -> Iterator[StoredMessage]:
        """Yield the messages of `[start, end)`. May raise ResyncError: they are gone since the bounds were asked for."""
        ...

    def close(self) -> None: ...


class KafkaJournal:
    """The journal topic in Kafka. Raises RetryError at once if no broker answers."""

    def __init__(self, config: KafkaConfig, volume: str) -> None:
        self._topic = journal_topic(volume)
        if not config.bootstrap or not ping(config.bootstrap, ANSWER_S, tls=uses_tls(config)):
            raise RetryError(f"Kafka does not answer at {config.bootstrap or 'any known address'}", topic=self._topic)
        from stream.consumer import PartitionReader  # 40 ms, which points of the store alone are spared
        from stream.topics import Topics

        self._topics = Topics(config)
        self._reader = PartitionReader(config, self._topic, queued_kbytes=QUEUED_KBYTES)

    def topic_id(self) -> str:
        found = self._topics.topic_id(self._topic)
        if found is None:
            raise RetryError(f"There is no topic {self._topic}", topic=self._topic)
        return found

    def bounds(self) -> tuple[int, int]:
        return self._reader.bounds(QUERY_S)

    def read(self, start: int, end: int) -> Iterator[StoredMessage]:
        return self._reader.read_range(start, end, idle_s_max=IDLE_S)

    def close(self) -> None:
        self._reader.close()


class Tail:
    """The tail behind the store's newest segment. One thread reads it, any number read what it holds through `catalog`."""

    def __init__(self, volume: str, newest: SegmentHeader | None, scratch: Path | None = None) -> None:
        """Stand behind the header of the newest segment of level 0, None if there is none; nothing is read yet."""
        self._volume = volume
        self._newest = newest
        self._store = ScratchStore(scratch)
        self._chain: Chain | None = None
        self._builder: SegmentBuilder | None = None
        self._topic_id = ""
        self._next = 0
        self.catalog = Catalog(self._store, volume, headers_bytes_max=HEADERS_BYTES_MAX)

    def read(self, log: JournalLog) -> None:
        """Read to the end that the journal has now; goes on where the last call ended.

        Raises RetryError, IntegrityError (bytes are wrong), ResyncError (the journal lost what was to be read meanwhile).
        """
        topic_id = log.topic_id()
        low, high = log.bounds()
        if self._builder is None or self._chain is None:
            start, self._chain, _ = resumed(self._volume, self._newest, topic_id, low, high)
            self._builder = SegmentBuilder(start)
            self._topic_id, self._next = topic_id, start.next_kafka_offset
        if topic_id != self._topic_id:
            raise RetryError("The journal topic was made anew meanwhile", topic=journal_topic(self._volume), hint="Try it again.")
        for message in log.read(self._next, high):
            self._take(message)
            if self._builder.size_bytes >= SEGMENT_BYTES and self._builder.sealable:
                self._seal()
        if self._builder.sealable:
            self._seal()
        self.catalog.refresh()

    def close(self) -> None:
        """Let go of the scratch file: nothing of the tail can be read any more."""
        self._store.close()

    def _take(self, message: StoredMessage) -> None:
        assert self._chain is not None and self._builder is not None
        if message.value is None:
            raise IntegrityError("A journal message is empty", topic=message.topic, kafka_offset=message.kafka_offset)
        entry = decode_journal(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
        kept = self._chain.accept(entry, message.kafka_offset)
        for one in kept:
            self._builder.append(one, message.kafka_offset, self._chain.fence, self._chain.open_gaps)
        if not kept:
            self._builder.skip(message.kafka_offset, self._chain.fence)
        self._next = message.kafka_offset + 1

    def _seal(self) -> None:
        assert self._builder is not None
        sealed, self._builder = self._builder.seal()
        self._keep(sealed)

    def _keep(self, sealed: SealedSegment) -> None:
        if self._store.size_bytes + sealed.size_bytes > TAIL_BYTES_MAX:
            raise RetryError(
                f"The store of {self._volume} is more than {TAIL_BYTES_MAX >> 30} GiB behind its journal",
                hint="Start the CX and wait until it has stored them; points that the store has can be opened.",
                volume=self._volume,
            )
        self._store.put(sealed.name, sealed.parts)


class ScratchStore:
    """A store of this process alone, in a file without a name: `put` and reading, nothing else. Thread-safe."""

    url = "scratch"

    def __init__(self, folder: Path | None) -> None:
        self._spool = Spool(folder)
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._spool.size_bytes

    def put(self, name: str, parts: Sequence[bytes]) -> bool:
        with self._lock:
            if name in self._places:
                return False
            begin = self._spool.size_bytes
            for part in parts:
                self._spool.append(part)
            self._places[name] = (begin, self._spool.size_bytes - begin)
            return True

    def get(self, name: str) -> bytes:
        return self.get_range(name, 0, self._place(name)[1])

    def get_range(self, name: str, start: int, end: int) -> bytes:
        begin, size = self._place(name)
        end = min(end, size)
        return self._spool.read(begin + start, end - start) if start < end else b""

    def list(self, prefix: str = "") -> list[StoredObject]:
        with self._lock:
            return sorted(
                (StoredObject(name, size) for name, (_, size) in self._places.items() if name.startswith(prefix)),
                key=lambda one: one.name,
            )

    def delete(self, name: str) -> None:
        with self._lock:
            self._places.pop(name, None)

    def close(self) -> None:
        self._spool.close()

    def _place(self, name: str) -> tuple[int, int]:
        found = self._places.get(name)
        if found is None:
            raise IntegrityError("An object of the scratch store is gone", name=name)
        return found
