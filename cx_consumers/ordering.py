"""Ordering: one hold of a volume, from the fence to the loss. Its inbox goes in, its journal comes out.

The order of things for a message: 1. decoded and ordered · 2. compressed and given to the journal's producer · 3. acknowledged right behind
the one before it · 4. the Faust event is acknowledged. Whoever dies anywhere, or loses its claim, leaves a journal from which the next one
goes on. What the intake delivers is only a hint: the journal's state says which kafka_offset comes next, and what the intake passed over is
read from the topic itself.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

from cx_consumers import takeover
from cx_consumers.asks import Asks
from cx_consumers.broker import Broker, Reader
from cx_consumers.compress import Joint, pack, parts
from cx_consumers.intake import Acknowledgements, Arrival, Inbox
from cx_consumers.journal_writer import STALL_HINT, JournalWriter
from cx_consumers.order import GapReason, Ordered, Piece, Tail, Verdict, gaps_to_ask_for, lacks_before, order
from cx_consumers.takeover import Missing
from stream.codec import decode_writes
from stream.errors import HostoffloadError, IntegrityError, RetryError
from stream.journal import JournalState
from stream.log import event
from stream.position import Position
from stream.topics import journal_topic, writes_topic

TAKE_S = 0.25
TAKE_BUSY_S = 0.002  # while acknowledgements are awaited
ROOM_S = 0.05
WATCH_INTERVAL_S = 2.0
READ_IDLE_S_MAX = 3.0
REPUBLISH_INTERVAL_S = 5.0
STOP_FLUSH_S = 2.0
STALL_S = 5.0
STALL_S_MAX = 30.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """What a volume's worker tells others, and what they tell it; each field is written by one side only."""

    durable: JournalState | None = None
    error: HostoffloadError | None = None
    fenced_dropped: int = 0
    duplicates: int = 0
    out_of_sequence: int = 0
    gaps: int = 0
    takeovers: int = 0
    journaled_bytes: int = 0
    refused: Position | None = None
    topic_id: str | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What the volumes of a process share."""

    broker: Broker
    worker: str
    asks: Asks
    acknowledgements: Acknowledgements
    clock: Callable[[], float] = time.monotonic


class StoppedError(Exception):
    """The worker was told to stop while it waited for something."""


class Ordering:
    """Hold one volume. One thread uses it, once."""

    def __init__(self, volume: str, codec: str, inbox: Inbox, shared: Shared, progress: Progress, stopped: Callable[[], bool]) -> None:
        self._volume = volume
        self._codec = codec
        self._inbox = inbox
        self._shared = shared
        self._progress = progress
        self._stopped = stopped
        self._topic = writes_topic(volume)
        self._writer = JournalWriter(shared.broker, volume, shared.worker, shared.clock)
        self._incarnation = 0
        self._tail = Tail(JournalState())
        self._joint = Joint()
        self._awaited: deque[tuple[int, Arrival]] = deque()
        self._asked: tuple[Position, float] | None = None
        self._seen_s = 0.0
        self._stalled = False
        self._bounds: Reader | None = None

    def hold(self) -> None:
        """Take the volume and order it until stopped; return then, everything acknowledged that could be.

        Raises RetryError and ResyncError (take it again), any other error of ours (park it), StoppedError.
        """
        try:
            self._take_over()
            self._inbox.open()
            while not self._stopped():
                self._check_topic()
                arrivals = self._inbox.take(TAKE_BUSY_S if self._awaited else TAKE_S)
                if arrivals:
                    self._handle(arrivals)
                elif not self._awaited:
                    self._watch()
                self._serve(0)
            self._finish()
        finally:
            self._inbox.close()
            self._writer.close()
            if self._bounds is not None:
                self._bounds.close()

    # -- taking over ---------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Fence, derive the state from the journal, write down what is missing, and read up to the end of the writes topic."""
        shared, began_s = self._shared, self._shared.clock()
        self._progress.topic_id = None
        self._incarnation = self._writer.claim(self._stopped)
        found = takeover.read_tail(shared.broker, self._volume, self._incarnation, self._progress.durable)
        log = shared.broker.look(self._volume)
        self._tail, missing = takeover.resume(found, log)
        self._progress.durable = self._tail.state
        self._progress.takeovers += 1
        if missing is not None:
            self._begin_gap(missing)
        self._ask_resyncs()
        event(
            _log, logging.INFO, "volume_taken", volume=self._volume, position=self._tail.state.position, incarnation=self._incarnation,
            kafka_offset=self._tail.state.next_kafka_offset, behind=log.end - self._tail.state.next_kafka_offset,
            took_ms=round((self._shared.clock() - began_s) * 1000),
        )  # fmt: skip
        self._read_to(log.end)
        self._progress.error = None

    def _begin_gap(self, missing: Missing) -> None:
        """Write down that something is missing; the resync that closes the gap is asked for by the caller."""
        entry = takeover.gap_entry(self._volume, self._incarnation, self._tail.state, missing, time.time_ns())
        self._flush()
        self._append_when_room(lambda: self._writer.append(entry))
        self._tail = Tail(entry.state, after_gap=True)
        self._progress.gaps += 1
        event(
            _log, logging.ERROR, "gap_begun", volume=self._volume, reason=entry.reason, missing=entry.missing, position=entry.state.position
        )

    def _ask_resyncs(self) -> None:
        """Ask for what closes the gaps that nobody else asks for."""
        gaps = gaps_to_ask_for(self._tail.state)
        for gap in gaps:
            self._shared.asks.resync(self._volume, gap, gaps[-1])

    # -- messages ------------------------------------------------------------------------------------------------------

    def _handle(self, arrivals: list[Arrival]) -> None:
        """Order what the intake delivered, and keep it until what became of it is durable."""
        for arrival in arrivals:
            if arrival.kafka_offset > self._tail.state.next_kafka_offset:
                self._read_to(arrival.kafka_offset)
            self._order(arrival.value, arrival.kafka_offset)
        self._flush()
        self._seen_s = self._shared.clock()
        self._awaited.extend((self._writer.appended, arrival) for arrival in arrivals)
        self._inbox.give_back(sum(arrival.size_bytes for arrival in arrivals))

    def _read_to(self, end: int) -> None:
        """Order what the writes topic holds from the wanted kafka_offset up to `end`, read by a plain consumer."""
        begin = self._tail.state.next_kafka_offset
        if begin >= end:
            return
        event(_log, logging.DEBUG, "intake_passed_over", volume=self._volume, begin=begin, end=end)
        with closing(self._shared.broker.reader(self._topic)) as reader:
            for message in reader.read_range(begin, end, idle_s_max=READ_IDLE_S_MAX):
                if message.kafka_offset != self._tail.state.next_kafka_offset:
                    raise RetryError("The writes topic lacks a kafka_offset", topic=self._topic, kafka_offset=message.kafka_offset)
                self._order(message.value, message.kafka_offset)
                self._serve(0)
                if self._stopped():
                    raise StoppedError
        self._flush()

    def _order(self, value: bytes | None, kafka_offset: int) -> None:
        """Order one message; what it adds to the journal waits until it is flushed."""
        if kafka_offset < self._tail.state.next_kafka_offset:
            return
        batch, incarnation = decode_writes(value or b"", topic=self._topic, kafka_offset=kafka_offset)
        if batch.volume != self._volume:
            raise IntegrityError(
                f"A message of volume {batch.volume} stands in this topic",
                topic=self._topic,
                kafka_offset=kafka_offset,
                volume=self._volume,
            )
        cut = parts(batch)
        for part in cut:
            if lacks_before(self._tail, part):
                self._begin_gap(Missing(GapReason.BROKER_LOST_DATA, f"positions from {self._tail.state.position.next()} to {part.first}"))
                self._ask_resyncs()
            self._take(order(self._tail, part, incarnation, kafka_offset, more=part is not cut[-1]))

    def _take(self, found: Ordered) -> None:
        """Go on from what became of a batch."""
        self._tail = found.tail
        progress = self._progress
        if found.piece is not None:
            if not self._joint.fits(found.piece):
                self._flush()
            self._joint.add(found.piece)
            progress.journaled_bytes += len(found.piece.batch.payload)
            progress.gaps += _opened(found.piece)
        elif found.verdict is Verdict.DUPLICATE:
            progress.duplicates += 1
        elif found.verdict is Verdict.FENCED:
            progress.fenced_dropped += 1
        elif found.verdict is Verdict.COPY_LOST:
            self._begin_gap(Missing(GapReason.BROKER_LOST_DATA, "the beginning of the copy that was to close the gap"))
            self._ask_resyncs()
        elif found.wanted is not None:
            progress.out_of_sequence += 1
            self._want(found.wanted)

    def _want(self, wanted: Position) -> None:
        """Ask the agent to publish again from `wanted` on, or begin a gap if it said that it no longer can."""
        if self._progress.refused == wanted:
            self._begin_gap(Missing(GapReason.BROKER_LOST_DATA, f"positions from {wanted} on, which the agent no longer holds"))
            self._ask_resyncs()
            return
        now_s = self._shared.clock()
        if self._asked is None or self._asked[0] != wanted or now_s >= self._asked[1]:
            self._asked = (wanted, now_s + REPUBLISH_INTERVAL_S)
            self._shared.asks.republish(self._volume, wanted)

    # -- the journal ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Give the waiting pieces to the journal as one batch."""
        if self._joint.pieces:
            entry = pack(self._joint.pieces, self._codec, self._incarnation)
            self._joint = Joint()
            self._append_when_room(lambda: self._writer.append(entry))

    def _append_when_room(self, append: Callable[[], None]) -> None:
        while not self._writer.has_room():
            if self._stopped():
                raise StoppedError
            self._serve(ROOM_S)
        append()

    def _serve(self, timeout_s: float) -> None:
        """Take acknowledgements of the journal, and acknowledge the events that need wait no longer."""
        writer = self._writer
        writer.poll(timeout_s)
        self._tell_stall(writer.stands_still_s)
        self._progress.durable = writer.durable or self._progress.durable
        done = []
        while self._awaited and self._awaited[0][0] <= writer.acknowledged:
            done.append(self._awaited.popleft()[1].done)
        self._shared.acknowledgements.add(done)

    def _tell_stall(self, stands_still_s: float) -> None:
        """Say so when the journal takes nothing: the producer tries for ever, and goes on by itself.

        Raises it after `STALL_S_MAX`, to go on with another producer: this one may have lost all brokers for ever (`stream.topics.Topics`).
        """
        told = self._progress.error
        if stands_still_s >= STALL_S:
            self._progress.error = stall = RetryError(
                f"The journal has taken nothing for {stands_still_s:.0f} s",
                topic=journal_topic(self._volume),
                hint=STALL_HINT,
            )
            if stands_still_s >= STALL_S_MAX:
                raise stall
        elif self._stalled:
            self._progress.error = None
        self._stalled = stands_still_s >= STALL_S
        if self._stalled and told is None:
            event(_log, logging.WARNING, "journal_stands_still", volume=self._volume, position=self._tail.state.position)

    def _finish(self) -> None:
        """Wait a moment for what is under way, so that the next owner of the volume need not read it again."""
        deadline_s = self._shared.clock() + STOP_FLUSH_S
        with suppress(RetryError):
            while self._awaited and self._shared.clock() < deadline_s:
                self._serve(ROOM_S)

    def _watch(self) -> None:
        """With nothing to do, look whether the intake passed over something or lost its place."""
        now_s = self._shared.clock()
        if now_s < self._seen_s + WATCH_INTERVAL_S:
            return
        self._seen_s = now_s
        wanted = self._tail.state.next_kafka_offset
        self._bounds = self._bounds or self._shared.broker.reader(self._topic)
        start, end = self._bounds.bounds()
        if not start <= wanted <= end:
            raise RetryError("The writes topic lacks what comes next", topic=self._topic, expected=wanted, got=f"{start}..{end}")
        self._read_to(end)

    def _check_topic(self) -> None:
        """Take the volume again when the writes topic is another one than the state speaks of (design rule 8)."""
        expected, got = self._tail.state.topic_id, self._progress.topic_id
        if got is not None and got != expected:
            raise RetryError("The writes topic was made anew", topic=self._topic, expected=expected, got=got)


def _opened(piece: Piece) -> int:
    """Count the gaps that a piece opened, first copies left out."""
    known = piece.before.open_gaps
    return sum(1 for gap in piece.after.open_gaps if gap not in known and gap.reason != "first_copy")
