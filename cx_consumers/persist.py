"""Persist: one volume's journal into sealed segments of the object store.

`Persister` is hosted by the CX worker that has the volume: a thread runs `run` until it is told to stop. The durable state is the store's
listing alone: it resumes behind the newest segment, and two persisters of one volume are harmless, because segments may overlap (design
rule 27).

Order of things: 1. a message is read and its checksum, digest and place in the chain are proved · 2. records are collected until the
segment is large or old enough, never ending inside a split write · 3. the segment is put, atomic and durable · 4. only then the next one
begins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from history.builder import SealedSegment, SegmentBuilder, Start
from history.chain import HOLES, Chain
from history.reader import SegmentReader, list_segments
from history.resumption import resumed
from history.segment import StoredGap
from history.store import Store
from stream.codec import decode_journal
from stream.config import Config, KafkaConfig
from stream.consumer import PartitionReader, StoredMessage
from stream.errors import ConfigError, HostoffloadError, IntegrityError, ResyncError, RetryError
from stream.journal import JournalGap, OpenGap
from stream.log import Repeats, event
from stream.position import ZERO, Position
from stream.record import DIGEST_START
from stream.topics import Topics, journal_topic

BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
POLL_S = 0.2
SILENCE_S = 2.5  # longer than a heartbeat: a reader is told nothing of a topic that was made anew
CONFIG_RETRY_S = 5.0
POLL_MESSAGES_MAX = 16
QUEUED_KBYTES_MAX = 8 << 10

_log = logging.getLogger(__name__)
_repeats = Repeats()


class Journal(Protocol):
    """The journal as persist reads it. Every method may raise RetryError."""

    def topic_id(self) -> str:
        """Return the id of the topic as it is now."""
        ...

    def bounds(self) -> tuple[int, int]:
        """Return the first kafka_offset that the journal has and the next one it will give."""
        ...

    def seek(self, kafka_offset: int) -> None:
        """Read from there on."""
        ...

    def poll(self, timeout_s: float) -> list[StoredMessage]:
        """Return what arrives within the time, in order. Raises ResyncError when the position is gone."""
        ...

    def close(self) -> None:
        """Let go of the broker; any other method may be called again."""
        ...


class KafkaJournal:
    """A volume's journal topic."""

    def __init__(self, config: KafkaConfig, volume: str) -> None:
        self._config = config
        self._topic = journal_topic(volume)
        self._reader: PartitionReader | None = None

    def topic_id(self) -> str:
        try:
            found = Topics(self._config).topic_id(self._topic)
        except TimeoutError as error:
            raise RetryError(f"Topic {self._topic} can't be described in time", topic=self._topic) from error
        if found is None:
            raise RetryError(f"There is no topic {self._topic} yet", topic=self._topic, hint="The CX makes it when the volume is added.")
        return found

    def bounds(self) -> tuple[int, int]:
        return self._opened().bounds()

    def seek(self, kafka_offset: int) -> None:
        self._opened().seek(kafka_offset)

    def poll(self, timeout_s: float) -> list[StoredMessage]:
        return self._opened().poll(timeout_s, messages_max=POLL_MESSAGES_MAX)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _opened(self) -> PartitionReader:
        if self._reader is None:
            self._reader = PartitionReader(self._config, self._topic, queued_kbytes=QUEUED_KBYTES_MAX)
        return self._reader


class Persister:
    """Store one volume's history. `run` in one thread; `facts` from any.

    `ask_resync` is called with each gap that the journal does not know of itself, because it had lost messages before they were stored: at
    the moment it is noticed, and again whenever it is still open at a start; and with the gap that order began since, for what was to close
    the hole may be what is lost there.
    """

    def __init__(
        self,
        volume: str,
        config: Config,
        store: Store,
        *,
        journal: Journal | None = None,
        ask_resync: Callable[[OpenGap, OpenGap], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._store = store
        self._journal = journal or KafkaJournal(config.kafka, volume)
        self._ask_resync = ask_resync
        self._clock = clock
        self._segment_bytes_max = config.cx.segment_bytes_max
        self._segment_age_s_max = config.cx.segment_age_s_max
        self._chain = Chain(volume, ZERO, DIGEST_START)
        self._builder = SegmentBuilder(Start(volume, ZERO, DIGEST_START, "", 0))
        self._sealed: SealedSegment | None = None
        """Sealed, and not known to be in the store yet."""
        self._topic_id = ""
        self._begun_s: float | None = None
        self._heard_s = 0.0
        self._persisted: Position | None = None
        self._segments = 0
        self._bytes = 0
        self._error: HostoffloadError | None = None
        self._holes: tuple[OpenGap, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return what the CX reports: `persisted` (position; None until the store was read), `segments`, `segment_bytes` (put since the
        start), `error` (sentence, or None) and `error_hint`."""
        error, persisted, holes = self._error, self._persisted, self._holes
        if error is None and holes:
            gap = holes[0]
            error = ResyncError(
                f"History is not continuous after {gap.position}: {HOLES[gap.reason]}", hint="The volume is copied again by a resync."
            )
        return {
            "persisted": None if persisted is None else str(persisted),
            "segments": self._segments,
            "segment_bytes": self._bytes,
            "error": None if error is None else error.sentence,
            "error_hint": (error.hint or None) if error is not None else None,
        }

    def run(self, stop: threading.Event) -> None:
        """Persist until told to stop; block until then.

        Goes on by itself after errors of the infrastructure, from the store's listing, and looks again every `CONFIG_RETRY_S` after what
        isn't allowed (ConfigError), since the operator may have set it right. What can't be right (IntegrityError) parks the volume:
        nothing is stored any more, `facts` say why, and `run` waits to be told to stop (design rule 22).
        """
        backoff_s = BACKOFF_S
        while not stop.is_set():
            stored = self._bytes
            try:
                self._resume()
                self._follow(stop)
            except (RetryError, ResyncError) as error:  # a position that is gone is looked at by the next resume
                backoff_s = BACKOFF_S if self._bytes > stored else min(backoff_s * 2, BACKOFF_S_MAX)
                if isinstance(error, ResyncError):
                    self._keep()
                self._tell(error, logging.WARNING)
                self._journal.close()
                stop.wait(backoff_s)
            except HostoffloadError as error:
                self._journal.close()
                if self._made_anew(error):
                    self._keep()
                else:
                    self._tell(error, logging.ERROR)
                    stop.wait(CONFIG_RETRY_S if isinstance(error, ConfigError) else None)
        self._journal.close()

    def _resume(self) -> None:
        """Stand behind the newest segment, and see whether the journal still has what follows it."""
        segments = list_segments(self._store, self._volume)
        topic_id = self._journal.topic_id()
        low, high = self._journal.bounds()
        header = SegmentReader(self._store, segments[-1]).header if segments else None
        start, self._chain, reason = resumed(self._volume, header, topic_id, low, high)
        self._builder = SegmentBuilder(start)
        self._sealed = None
        self._topic_id = topic_id
        self._begun_s = None
        self._segments = len(segments)
        self._persisted = start.position
        self._error = None
        self._holes = ()
        self._see_holes()
        self._journal.seek(start.next_kafka_offset)
        event(
            _log,
            logging.INFO,
            "persist_resumed",
            volume=self._volume,
            position=start.position,
            kafka_offset=start.next_kafka_offset,
            reason=reason,
        )

    def _follow(self, stop: threading.Event) -> None:
        """Read and store until told to stop, then store what is there, once."""
        self._heard_s = self._clock()
        while not stop.is_set():
            for message in self._journal.poll(POLL_S):
                self._take(message)
                while self._builder.size_bytes >= self._segment_bytes_max and self._builder.sealable:
                    if not self._seal(stop):
                        return
            if self._clock() - self._heard_s >= SILENCE_S:
                self._check_topic()
            if self._begun_s is not None and self._clock() - self._begun_s >= self._segment_age_s_max and self._builder.sealable:
                self._seal(stop)
        self._keep()

    def _keep(self) -> None:
        """Store what was collected, once: the journal may not have it any more when it is resumed. If the store does not take it now, the
        next one who has the volume reads it from the journal."""
        sealed, self._sealed = self._sealed, None
        builder, self._builder = self._builder, SegmentBuilder(Start(self._volume, ZERO, DIGEST_START, "", 0))
        with suppress(RetryError):
            if sealed is not None:
                self._put(sealed)
            if builder.sealable:
                self._put(builder.seal()[0])

    def _take(self, message: StoredMessage) -> None:
        """Prove a message and collect what is to be kept of it."""
        if message.value is None:
            raise IntegrityError("A journal message is empty", topic=message.topic, kafka_offset=message.kafka_offset, volume=self._volume)
        entry = decode_journal(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
        stale = self._chain.stale
        kept = self._chain.accept(entry, message.kafka_offset)
        if self._chain.stale == stale:  # fences of another topic would hide all of this one
            self._heard_s = self._clock()
        for one in kept:
            self._builder.append(one, message.kafka_offset, self._chain.fence, self._chain.open_gaps)
        if not kept:
            self._builder.skip(message.kafka_offset, self._chain.fence)
        if self._begun_s is None and not self._builder.is_empty:
            self._begun_s = self._clock()
        if any(isinstance(one, StoredGap) for one in kept) or self._holes:
            self._see_holes()
        if isinstance(entry, JournalGap) and kept:
            self._ask_for(self._holes, OpenGap(entry.state.position, entry.reason, entry.at_ns))

    def _check_topic(self) -> None:
        """See whether the journal is still the topic that is read, after nothing came of it for a while. Raises ResyncError if not. While
        the broker is away that is told, and what was read stays good."""
        try:
            topic_id = self._journal.topic_id()
        except RetryError as error:
            self._tell(error, logging.WARNING)
        else:
            if topic_id != self._topic_id:
                raise ResyncError(
                    "The journal topic was made anew", topic=journal_topic(self._volume), expected=self._topic_id, got=topic_id
                )
            self._error = None
        self._heard_s = self._clock()

    def _seal(self, stop: threading.Event) -> bool:
        """Store the segment, however long that takes, and begin the next; return False when told to stop before it was stored."""
        self._sealed, self._builder = sealed, following = self._builder.seal()
        backoff_s = BACKOFF_S
        while True:
            try:
                self._put(sealed)
                break
            except RetryError as error:
                self._tell(error, logging.WARNING)
                if stop.wait(backoff_s):
                    return False
                backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)
        self._error = self._sealed = None
        self._begun_s = None if following.is_empty else self._clock()
        return True

    def _put(self, sealed: SealedSegment) -> None:
        begun_s = self._clock()
        header = sealed.header
        if not self._store.put(sealed.name, sealed.parts):
            there = SegmentReader(self._store, header.name).header
            if there.coverage.digest_after != header.coverage.digest_after:
                raise IntegrityError(
                    "The store has another segment of that name, with other bytes",
                    path=sealed.name,
                    expected=header.coverage.digest_after.hex(),
                    got=there.coverage.digest_after.hex(),
                    hint="Keep both the file and the journal topic; one of them is damaged.",
                )
        self._persisted = header.name.last
        self._segments += 1
        self._bytes += sealed.size_bytes
        event(
            _log,
            logging.DEBUG,
            "segment_stored",
            volume=self._volume,
            first=header.name.first,
            last=header.name.last,
            records=header.records,
            bytes=sealed.size_bytes,
            put_ms=round((self._clock() - begun_s) * 1000),
        )

    def _see_holes(self) -> None:
        """Tell of holes that are new, and forget those that a resync closed."""
        holes = self._chain.own_gaps
        new = tuple(gap for gap in holes if gap not in self._holes)
        for gap in new:
            event(_log, logging.ERROR, "history_hole", volume=self._volume, position=gap.position, reason=gap.reason)
        self._ask_for(new)
        self._holes = holes

    def _ask_for(self, holes: Iterable[OpenGap], newest: OpenGap | None = None) -> None:
        for gap in holes if self._ask_resync is not None else ():
            self._ask_resync(gap, newest or gap)

    def _made_anew(self, error: HostoffloadError) -> bool:
        """Tell whether the journal topic is no longer the one that was read: then its messages can't fit, and a resume sees the gap."""
        if not isinstance(error, IntegrityError) or not self._topic_id:
            return False
        try:
            return self._journal.topic_id() != self._topic_id
        except RetryError:
            return False

    def _tell(self, error: HostoffloadError, level: int) -> None:
        self._error = error
        _repeats.event(_log, level, f"persist_error_{type(error).__name__}", volume=self._volume, error=str(error), hint=error.hint or None)
