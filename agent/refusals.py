"""Refusals: messages that a topic does not take for their size, and what is sent instead (design rule 23).

Used by a publication's Kafka thread. The same records come in smaller messages; a single record waits until the topic takes it,
which is asked of the topic's settings and not by sending the refused bytes again.
"""

from __future__ import annotations

import logging
import threading
import time

from agent.messages import MessageLimit
from stream.config import KafkaConfig
from stream.errors import HostoffloadError, TooLargeError
from stream.log import event
from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import Topics

WAIT_S = 1.0
WAIT_S_MAX = 30.0
RESTORE_S = 30.0
MESSAGE_OVERHEAD_BYTES = 1024  # of Kafka's batch around one message with our headers
_log = logging.getLogger(__name__)


class Refusals:
    """The limit of one volume's messages, lowered by each refusal, restored when the topic is what it should be."""

    def __init__(self, config: KafkaConfig, topic: str) -> None:
        self.limit = MessageLimit()
        self._config = config
        self._topic = topic
        self._awaited_bytes = 0
        self._wait_s = WAIT_S
        self._restore_at_s = 0.0

    def take(self, error: TooLargeError, refused: tuple[int, int, int, int] | None) -> TooLargeError:
        """Hear of a refused message; return what is to be stated. `refused` is its first and last sequence, its bytes and its payload's;
        None for a claim."""
        first, last, size_bytes, payload_bytes = refused or (0, 0, error.facts["bytes"], 0)
        told = f"Topic {self._topic} takes no message of {size_bytes} bytes"
        put_right = f"Put its max.message.bytes back to {MESSAGE_BYTES_MAX}."
        self._restore_at_s = time.monotonic() + RESTORE_S
        if self.limit.lower(last - first + 1, payload_bytes):
            event(_log, logging.WARNING, "message_refused", topic=self._topic, bytes=size_bytes, records_max=self.limit.records_max)
            return TooLargeError(told, hint=f"Smaller ones are sent. {put_right}", topic=self._topic)
        self._awaited_bytes = size_bytes + MESSAGE_OVERHEAD_BYTES
        return TooLargeError(f"{told}, and it is a single record", hint=put_right, topic=self._topic)

    def wait(self, stop: threading.Event) -> None:
        """Wait until the topic may take what waits, longer each time; at once if smaller messages are to be tried."""
        while self._awaited_bytes and not stop.wait(self._wait_s):
            self._wait_s = min(self._wait_s * 2, WAIT_S_MAX)
            if self._taken_bytes() >= self._awaited_bytes:
                self._awaited_bytes = 0

    def be_well(self) -> None:
        """Hear that something was taken."""
        self._wait_s = WAIT_S

    def restore(self) -> None:
        """Now and then look whether the topic takes whole messages again; blocks for as long as the broker takes to answer."""
        if self.limit.lowered and time.monotonic() >= self._restore_at_s:
            self._restore_at_s = time.monotonic() + RESTORE_S
            if self._taken_bytes() >= MESSAGE_BYTES_MAX:
                self.limit.restore()

    def _taken_bytes(self) -> int:
        """Return how large a message the topic takes; the size of a whole one if that can't be known, for trying tells."""
        try:
            condition = Topics(self._config).condition(self._topic)
        except HostoffloadError:
            return MESSAGE_BYTES_MAX
        return MESSAGE_BYTES_MAX if condition is None else condition.message_bytes_max
