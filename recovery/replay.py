"""Replay: a range of a volume's topic applied again into a scratch volume, as a test of recovery by Kafka alone.

Called by `hostoffload replay`. 1. The topic is read once to find the range (`topic_range`) · 2. the scratch volume is empty, or an image
at the range's begin · 3. the topic is read again from there, and its records are applied in order (`topic_order`), at full speed or as
they were captured · 4. fdatasync. Whoever has an image of the range's end compares (`comparison`). The store is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from nbd.blockfile import BlockFile
from recovery.point import Wanted
from recovery.scratch_volume import ScratchVolume
from recovery.topic_order import JournalOrder, TopicOrder, WritesOrder
from recovery.topic_range import Messages, TopicRange, find_range
from stream.errors import IntegrityError, RecoveryError
from stream.position import Position
from stream.record import Batch
from stream.topics import journal_topic, writes_topic

WRITES, JOURNAL = "writes", "journal"
TOPICS = (WRITES, JOURNAL)
PACE_SLACK_S = 0.002
SLEEP_S_MAX = 1.0
UNFILLED_MAX = 1024


class Clock(Protocol):
    """Tells the time and waits."""

    def now_s(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The machine's clock."""

    now_s = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


REAL_CLOCK = RealClock()


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. `captured_s` is how long the records took to be written, `applied_s` how long to be applied."""

    start: Position
    end: Position
    end_time_ns: int
    size_bytes: int
    records: int
    written_bytes: int
    zeroed_bytes: int
    captured_s: float
    applied_s: float


class Replay:
    """A replay of a volume's topic; `messages` reads it, the same stretch of log each time."""

    def __init__(self, volume: str, kind: str, messages: Messages) -> None:
        assert kind in TOPICS, kind
        self._volume = volume
        self._kind = kind
        self._messages = messages

    def find(self, start: Wanted | None, end: Wanted, now_ns: int) -> TopicRange:
        """Find the range; `start` None is the topic's beginning. Raises RecoveryError, IntegrityError, RetryError.

        Records that are missing from the writes topic and never come begin a gap. Whether they come is known at the log's end only, so the
        topic is then read again.
        """
        unfilled: frozenset[int] = frozenset()
        while True:
            order = self._order(unfilled)
            try:
                found, conflict = find_range(self._messages, order, start, end, now_ns=now_ns, volume=self._volume), None
            except RecoveryError as error:
                found, conflict = None, error
            if order.hole is None or len(unfilled) == UNFILLED_MAX:
                break
            unfilled |= {order.hole}
        if found is None:
            assert conflict is not None
            raise conflict
        return found

    def apply(
        self,
        found: TopicRange,
        file: BlockFile,
        *,
        speed: float | None = None,
        clock: Clock = REAL_CLOCK,
        watch: Callable[[Batch], None] = lambda batch: None,
    ) -> Replayed:
        """Apply the range to a volume that is at its start; `speed` 1.0 is the pace of the capture, None as fast as it goes. `watch` is
        shown what was applied. Raises IntegrityError, RetryError, OSError."""
        volume, pace = ScratchVolume(file), _Pace(speed, clock)
        began_s = clock.now_s()
        first_ns: int | None = None
        for batch in self._batches(found):
            first_ns = batch.capture_time_ns if first_ns is None else first_ns
            for part in pace.parts(batch):
                volume.apply(part)
                watch(part)
        volume.sync()
        captured_s = 0.0 if first_ns is None else (found.end_time_ns - first_ns) / 1e9
        told = (volume.size_bytes, volume.records, volume.written_bytes, volume.zeroed_bytes)
        return Replayed(found.start, found.end, found.end_time_ns, *told, captured_s, clock.now_s() - began_s)

    def _batches(self, found: TopicRange) -> Iterator[Batch]:
        """Yield the records above the start, up to the end."""
        if found.start == found.end:
            return
        order = found.snapshot.order.copy()
        for message in self._messages(found.snapshot.kafka_offset):
            for portion in order.accept(message):
                if portion.batch.last <= found.start:
                    continue
                batch = portion.load()
                if batch.first <= found.start:
                    batch = batch.slice(found.start.sequence + 1 - batch.first_sequence, batch.count)
                if batch.last >= found.end:
                    yield batch.slice(0, found.end.sequence + 1 - batch.first_sequence)
                    return
                yield batch
        raise IntegrityError(f"The topic of {self._volume} ended before {found.end}", volume=self._volume, position=found.end)

    def _order(self, unfilled: frozenset[int]) -> TopicOrder:
        if self._kind == WRITES:
            return WritesOrder(self._volume, writes_topic(self._volume), unfilled)
        return JournalOrder(self._volume, journal_topic(self._volume))


class _Pace:
    """Gives records when they are due, counted from the first."""

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed = speed
        self._clock = clock
        self._began: tuple[int, float] | None = None

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch in parts, each as soon as its first record is due."""
        if self._speed is None:
            yield batch
            return
        if self._began is None:
            self._began = batch.capture_time_ns, self._clock.now_s()
        start = 0
        while start < batch.count:
            while (early_s := self._due_s(batch, start) - self._clock.now_s()) > PACE_SLACK_S:
                self._clock.sleep(min(early_s, SLEEP_S_MAX))
            stop = start + 1
            now_s = self._clock.now_s()
            while stop < batch.count and self._due_s(batch, stop) <= now_s:
                stop += 1
            yield batch.slice(start, stop)
            start = stop

    def _due_s(self, batch: Batch, index: int) -> float:
        assert self._began is not None and self._speed is not None
        first_ns, began_s = self._began
        return began_s + (batch.capture_time_ns + batch.ages_ns[index] - first_ns) / 1e9 / self._speed
