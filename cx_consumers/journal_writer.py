"""The journal's writer: one worker's claim on a volume, and the test of every acknowledgement against it.

Used by the volume's worker, one instance for each time it takes the volume. `claim` appends a fence; its kafka_offset is the incarnation in
everything written afterwards. Each acknowledgement must follow the one before it in the journal: where it does not, what lies between is
read, and a fence there means that another worker took the volume (design rules 18 and 21). So does a message by which every reader drops
this worker's claim: one that names a fence at or behind itself. After any failure the writer is done with; the state is derived from the
journal again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import closing

from cx_consumers.broker import Broker
from cx_consumers.journal_tail import FENCE, IDLE_S_MAX, LATE_MESSAGES_MAX, writer_of
from stream.codec import encode_journal
from stream.errors import IntegrityError, RetryError
from stream.journal import JournalBatch, JournalFence, JournalGap, JournalState
from stream.producer import Headers
from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import journal_topic

IN_FLIGHT_MESSAGES_MAX = LATE_MESSAGES_MAX
IN_FLIGHT_BYTES_MAX = 16 << 20
QUEUE_BYTES_MAX = 2 * IN_FLIGHT_BYTES_MAX  # room for the last message above IN_FLIGHT_BYTES_MAX, so produce never refuses
CLAIM_TIMEOUT_S = 10.0
STALL_HINT = "Check that the broker runs and has room on its disk, and that min.insync.replicas brokers are in sync."
_POLL_S = 0.05


class DisplacedError(RetryError):
    """Another worker took the volume: claim it again after a pause, if it is still assigned to this one."""


class JournalWriter:
    """Append to the journal of one volume. One thread uses it."""

    def __init__(self, broker: Broker, volume: str, worker: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._broker = broker
        self._clock = clock
        self._volume = volume
        self._worker = worker
        self._topic = journal_topic(volume)
        self._producer = broker.producer(self._topic, self._on_delivered, QUEUE_BYTES_MAX)
        self._arrived: deque[tuple[int, JournalState | None, int | None]] = deque()
        self._expected: int | None = None
        self._bytes = 0
        self._moved_s = 0.0
        self.appended = 0
        self.acknowledged = 0
        self.durable: JournalState | None = None

    def claim(self, stopped: Callable[[], bool]) -> int:
        """Append a fence and wait until it is durable; return its kafka_offset, the incarnation. Raises RetryError."""
        fence = JournalFence(self._volume, self._worker, time.time_ns())
        self._produce(encode_journal(fence), [("volume", self._volume.encode()), ("kind", FENCE.encode())], None)
        deadline_s = self._clock() + CLAIM_TIMEOUT_S
        while not self._arrived:
            if stopped() or self._clock() > deadline_s:
                raise RetryError("The journal does not take a fence in time", topic=self._topic, hint=STALL_HINT)
            self._producer.poll(_POLL_S)
        _, _, kafka_offset = self._arrived[0]
        if kafka_offset is None:
            raise RetryError("The broker did not say where the fence stands", topic=self._topic)
        self._expected = kafka_offset
        self._count()
        return kafka_offset

    def has_room(self) -> bool:
        """Tell whether one more message may be appended now."""
        return self.appended - self.acknowledged < IN_FLIGHT_MESSAGES_MAX and self._bytes < IN_FLIGHT_BYTES_MAX

    @property
    def stands_still_s(self) -> float:
        """Tell for how long messages have been under way without an acknowledgement; 0 if none is."""
        return self._clock() - self._moved_s if self.appended > self.acknowledged else 0.0

    def append(self, entry: JournalBatch | JournalGap) -> None:
        """Queue one message; call only when there is room. Raises the failure that poisoned the writer, IntegrityError for a message that
        is too large."""
        state = entry.state
        first = entry.records.first if isinstance(entry, JournalBatch) else state.position
        headers = [
            ("volume", entry.volume.encode()),
            ("epoch", b"%d" % state.position.epoch),
            ("first", b"%d" % first.sequence),
            ("last", b"%d" % state.position.sequence),
            ("kind", b"journal" if isinstance(entry, JournalBatch) else b"gap"),
            ("writer", b"%d" % entry.writer),
        ]
        self._produce(encode_journal(entry), headers, state)

    def poll(self, timeout_s: float) -> None:
        """Serve acknowledgements. Raises DisplacedError when another worker took the volume, and the failure that poisoned the writer."""
        self._producer.poll(timeout_s)
        self._count()

    def close(self) -> None:
        """Stop; what was sent may still become durable."""
        self._producer.close()

    def _produce(self, value: bytes, headers: Headers, state: JournalState | None) -> None:
        if len(value) > MESSAGE_BYTES_MAX:  # refused by every broker, however often it is tried
            raise IntegrityError(
                f"A record of volume {self._volume} is larger than a message may be: {len(value)} bytes in the journal",
                topic=self._topic,
                expected=MESSAGE_BYTES_MAX,
                got=len(value),
                hint="No agent of ours writes such a record; look at who publishes this volume.",
            )
        self._producer.produce(value, headers, (len(value), state), key=self._volume)
        if self.appended == self.acknowledged:
            self._moved_s = self._clock()
        self.appended += 1
        self._bytes += len(value)

    def _on_delivered(self, tag: object, kafka_offset: int | None) -> None:
        size, state = tag  # type: ignore[misc]
        self._arrived.append((size, state, kafka_offset))

    def _count(self) -> None:
        while self._arrived:
            size, state, kafka_offset = self._arrived.popleft()
            if kafka_offset != self._expected:
                self._look_between(kafka_offset)
            assert kafka_offset is not None
            self._expected = kafka_offset + 1
            self._bytes -= size
            self.acknowledged += 1
            self._moved_s = self._clock()
            self.durable = state or self.durable

    def _look_between(self, kafka_offset: int | None) -> None:
        """Read what stands in the journal before an acknowledged message that does not follow ours."""
        expected = self._expected
        assert expected is not None
        if kafka_offset is None or kafka_offset < expected:
            raise RetryError(
                "An acknowledgement does not say where its message stands", topic=self._topic, expected=expected, got=kafka_offset
            )
        with closing(self._broker.reader(self._topic)) as reader:
            for message in reader.read_range(expected, kafka_offset, idle_s_max=IDLE_S_MAX):
                if message.headers.get("kind") == FENCE.encode():
                    told = "Another worker took the volume"
                elif writer_of(message) >= message.kafka_offset:
                    told = "A worker that has not noticed that the journal was made anew wrote into it"
                else:
                    continue
                raise DisplacedError(told, topic=self._topic, kafka_offset=message.kafka_offset, volume=self._volume)
