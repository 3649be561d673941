"""The partition reader: a plain consumer that starts where it is told and never jumps.

Used by target, catch-up reads of the CX, persist, replay, and by whoever reads a log's end. No group, no commits,
`auto.offset.reset=error`: a position that Kafka no longer has raises ResyncError, it is never replaced by another.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from stream.config import KafkaConfig
from stream.errors import HostoffloadError, ResyncError, RetryError
from stream.kafka import client_settings, translate
from stream.roles import READER_GROUPS
from stream.schema import MESSAGE_BYTES_MAX

QUERY_TIMEOUT_S = 10.0
STALL_S = 5.0
STALL_QUERY_S = 1.0
UNANSWERED_MAX = 3
QUEUED_KBYTES = 16 << 10
QUEUED_KBYTES_MAX = 64 << 10
FETCH_WAIT_MS = 10
POLL_MESSAGES_MAX = 256


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message as the log holds it; `timestamp_ms` is the broker's (LogAppendTime)."""

    topic: str
    kafka_offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    timestamp_ms: int


class PartitionReader:
    """Read partition 0 of a topic from a given kafka_offset on. One thread uses it."""

    def __init__(self, config: KafkaConfig, topic: str, *, queued_kbytes: int = QUEUED_KBYTES) -> None:
        self._topic = topic
        self._next = 0
        self._heard_s = time.monotonic()
        self._stalled = False
        self._unanswered = 0
        self._consumer = Consumer(
            client_settings(config)
            | {
                "group.id": f"{READER_GROUPS}{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": False,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "fetch.queue.backoff.ms": 10,
                "fetch.message.max.bytes": MESSAGE_BYTES_MAX,
                "queued.max.messages.kbytes": min(queued_kbytes, QUEUED_KBYTES_MAX),
                "check.crcs": False,
                "isolation.level": "read_uncommitted",
            }
        )

    def __enter__(self) -> PartitionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bounds(self, timeout_s: float = QUERY_TIMEOUT_S) -> tuple[int, int]:
        """Return `(start, end)` of the log: the first kafka_offset it has and the next one it will give."""
        try:
            found = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=timeout_s, cached=False)
        except KafkaException as error:
            raise translate(error, f"The bounds of {self._topic} can't be read", topic=self._topic) from error
        if found is None:
            raise RetryError(f"The bounds of {self._topic} can't be read in time", topic=self._topic)
        return found

    def seek(self, kafka_offset: int | None) -> None:
        """Read from this kafka_offset on; None means the log's start."""
        wanted = OFFSET_BEGINNING if kafka_offset is None else kafka_offset
        self._next, self._stalled = kafka_offset or 0, False
        self._heard_s = time.monotonic()
        try:
            self._consumer.assign([TopicPartition(self._topic, 0, wanted)])
        except KafkaException as error:
            raise translate(error, f"{self._topic} can't be read", topic=self._topic) from error

    def poll(self, timeout_s: float, *, messages_max: int = POLL_MESSAGES_MAX) -> list[StoredMessage]:
        """Return what arrives within the time, in order, at once when something is there.

        Raises ResyncError: the position is gone; RetryError: the log has more, and nothing arrives (a client that was connected while its
        broker died has been seen to wait for ever).
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._look_for_a_stall()
            return []
        rest = self._consumer.consume(messages_max - 1, 0) if messages_max > 1 else []
        self._unanswered = 0
        stored = [self._stored(message) for message in [first, *rest]]
        self._next, self._stalled, self._heard_s = stored[-1].kafka_offset + 1, False, time.monotonic()
        return stored

    def read_range(self, start: int, end: int, *, idle_s_max: float = 30.0) -> Iterator[StoredMessage]:
        """Yield the messages of `[start, end)` and stop. Raises RetryError when nothing comes for `idle_s_max`."""
        if start >= end:
            return
        low, high = self.bounds()
        if start < low or end > high:
            raise ResyncError(f"{self._topic} no longer has what is to be read", topic=self._topic, expected=(start, end), got=(low, high))
        self.seek(start)
        wanted = start
        while wanted < end:
            messages = self.poll(idle_s_max)
            if not messages:
                raise RetryError(f"{self._topic} gave nothing for {idle_s_max:.0f} s", topic=self._topic, kafka_offset=wanted)
            for message in messages:
                if message.kafka_offset >= end:
                    return
                yield message
                wanted = message.kafka_offset + 1

    def close(self) -> None:
        self._consumer.close()

    def _look_for_a_stall(self) -> None:
        """Look now and then, when nothing arrives, whether the log has more; twice in a row is a stall."""
        now_s = time.monotonic()
        if now_s - self._heard_s < STALL_S:
            return
        self._heard_s = now_s
        try:
            start, end = self.bounds(STALL_QUERY_S)
        except HostoffloadError:  # the broker is away, or this client never finds it again: its owner takes a new one by and by
            self._unanswered += 1
            if self._unanswered >= UNANSWERED_MAX:
                raise
            return
        self._unanswered = 0
        if max(start, self._next) >= end:
            self._stalled = False
        elif not self._stalled:
            self._stalled = True
        else:
            raise RetryError(f"{self._topic} has more and nothing arrives", topic=self._topic, expected=self._next, got=f"{start}..{end}")

    def _stored(self, message) -> StoredMessage:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                raise RetryError("End of partition", topic=self._topic)
            raise translate(error, f"{self._topic} can't be read", topic=self._topic)
        return StoredMessage(
            message.topic(), message.offset(), message.key(), message.value(), dict(message.headers() or ()), message.timestamp()[1]
        )
