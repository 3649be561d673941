"""The ordered producer: one topic, one partition, no hole.

Used by the publisher (one for each volume) and by the order worker. The settings that carry the guarantee are constants:
acks=all, idempotence, no time-out of a message (a message that times out leaves a hole without a fatal error), gapless.

After the first failure the producer is poisoned: every call raises. Its owner closes it, reads the log's end, and publishes again from the
first position that was not acknowledged, with the same positions, through a new one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream.config import KafkaConfig
from stream.errors import FencedError, HostoffloadError, RetryError
from stream.kafka import client_settings, translate
from stream.schema import MESSAGE_BYTES_MAX

IN_FLIGHT_REQUESTS_MAX = 5
REQUEST_TIMEOUT_MS = 10_000
QUEUE_MESSAGES_MAX = 10_000
CLOSE_TIMEOUT_S = 5.0
MESSAGES_JOINED_MAX = 10_000
POLL_S_MAX = 0.1
CAUSE_WAIT_S = 2.0
CAUSE_POLL_S = 0.05

Headers = Sequence[tuple[str, bytes]]
Delivered = Callable[[object, int | None], None]


class OrderedProducer:
    """Publish messages to one partition in order.

    `on_delivered(tag, kafka_offset)` is called from `poll` in the order of `produce`, once for each message that is durable on
    `min.insync.replicas` brokers; kafka_offset is None in the rare case that the broker told none after a retry. One thread
    may produce while another polls.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        on_delivered: Delivered,
        *,
        queue_bytes_max: int,
        linger_ms: float = 0,
        messages_joined_max: int = MESSAGES_JOINED_MAX,
    ) -> None:
        """Connect. `messages_joined_max` is how many messages may travel as one batch: what a topic's size limit measures is that."""
        self.refused: object = None
        """The tag of the first message that could not be delivered, None as long as there is none."""
        self._topic = topic
        self._on_delivered = on_delivered
        self._failure: HostoffloadError | None = None
        self._producer = Producer(
            client_settings(config)
            | {
                "acks": "all",
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "delivery.timeout.ms": 0,
                "max.in.flight.requests.per.connection": IN_FLIGHT_REQUESTS_MAX,
                "request.timeout.ms": REQUEST_TIMEOUT_MS,
                "retry.backoff.ms": 50,
                "linger.ms": linger_ms,
                "batch.num.messages": messages_joined_max,
                "message.max.bytes": MESSAGE_BYTES_MAX,
                "queue.buffering.max.kbytes": max(1, queue_bytes_max >> 10),
                "queue.buffering.max.messages": QUEUE_MESSAGES_MAX,
                "error_cb": self._on_error,
            }
        )

    def produce(self, value: bytes, headers: Headers, tag: object, *, key: str | None = None) -> None:
        """Queue one message. Raises BufferError when the queue is full (poll and try again), and the failure that poisoned it."""
        if self._failure is not None:
            raise self._failure
        try:
            self._producer.produce(
                self._topic,
                value,
                key,
                partition=0,
                headers=headers,
                on_delivery=lambda error, message: self._delivered(tag, error, message),
            )
        except KafkaException as error:
            failure = translate(error, "A message was refused", topic=self._topic, bytes=len(value))
            if error.args[0].code() != KafkaError._FATAL:  # that one only says that there is a failure; `poll` tells which
                self._fail(failure, tag)
            raise failure from error

    def poll(self, timeout_s: float) -> int:
        """Serve delivery reports for at most that long. Raises the failure that poisoned the producer."""
        return self._serve(timeout_s)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged; tell whether it is. Raises the failure that poisoned the producer."""
        deadline_s = time.monotonic() + timeout_s
        self._serve(0)
        while len(self._producer) and (left_s := deadline_s - time.monotonic()) > 0:
            self._serve(min(left_s, POLL_S_MAX))
        return not len(self._producer)

    def __len__(self) -> int:
        return len(self._producer)

    def close(self) -> None:
        """Throw away what is queued and stop; what was sent already may still become durable."""
        self._failure = self._failure or RetryError("The producer is closed", topic=self._topic)
        self._on_delivered = _ignore
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while len(self._producer) and time.monotonic() < deadline_s:
            with contextlib.suppress(KafkaException):  # it tells that it failed: that is why it is closed
                self._producer.poll(POLL_S_MAX)

    def _serve(self, timeout_s: float) -> int:
        """Serve delivery reports. Raises the failure that poisoned the producer.

        librdkafka raises a fatal error before it reports the messages that were lost by it; the first report says what happened. Its own
        flush would call for those reports with that error pending, which Python does not bear: so nothing here calls it.
        """
        try:
            served = self._producer.poll(timeout_s)
        except KafkaException as error:
            deadline_s = time.monotonic() + CAUSE_WAIT_S
            while self._failure is None and time.monotonic() < deadline_s:
                with contextlib.suppress(KafkaException):
                    self._producer.poll(CAUSE_POLL_S)
            self._fail(translate(error, "The producer failed for good", topic=self._topic))
            raise self._failure from error
        if self._failure is not None:
            raise self._failure
        return served

    def _fail(self, failure: HostoffloadError, tag: object = None) -> None:
        """Be poisoned; the first failure stands. A producer has no name that another could take: what Kafka calls fenced is replaced."""
        if isinstance(failure, FencedError):
            failure = RetryError(failure.sentence, hint="It is replaced, and goes on from what the log has.", **failure.facts)
        if self._failure is None:
            self._failure, self.refused = failure, tag

    def _delivered(self, tag: object, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._fail(translate(error, "A message could not be delivered", topic=self._topic, bytes=len(message)), tag)
        if self._failure is not None:
            return  # what follows a failure is not counted: the owner reads the log instead
        kafka_offset = message.offset()
        self._on_delivered(tag, kafka_offset if kafka_offset is not None and kafka_offset >= 0 else None)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fail(translate(error, "The producer failed for good", topic=self._topic))


def _ignore(tag: object, kafka_offset: int | None) -> None:
    """Take the place of the owner's callback once the producer is closed."""
