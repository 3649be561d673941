"""The journal topic of one volume as the target's session reads it; the border to Kafka.

One thread uses a `JournalLog`. What it raises says what to do: RetryError while the broker does not answer or the topic is not there
(yet), ResyncError for a position that is gone, IntegrityError for a damaged message.
"""

from __future__ import annotations

from stream.codec import decode_journal
from stream.config import KafkaConfig
from stream.consumer import PartitionReader, StoredMessage
from stream.errors import ResyncError, RetryError
from stream.journal import JournalEntry
from stream.topics import Topics, journal_topic


class JournalLog:
    """Read `ho.<volume>.journal` from a given kafka_offset on; `topics` is shared by all volumes."""

    def __init__(self, config: KafkaConfig, volume: str, topics: Topics) -> None:
        self.topic = journal_topic(volume)
        self._topics = topics
        self._reader = PartitionReader(config, self.topic)

    def topic_id(self) -> str:
        """Return Kafka's id of the topic. Raises RetryError while there is none."""
        found = self._topics.topic_id(self.topic)
        if found is None:
            raise RetryError(f"Topic {self.topic} does not exist (yet)", topic=self.topic, hint="The CX makes it when the volume is added.")
        return found

    def bounds(self) -> tuple[int, int]:
        """Return the log's first kafka_offset and the next one it will give."""
        try:
            return self._reader.bounds()
        except ResyncError as error:  # the topic went away since its id was read
            raise RetryError(error.sentence, topic=self.topic) from error

    def seek(self, kafka_offset: int) -> None:
        self._reader.seek(kafka_offset)

    def poll(self, timeout_s: float) -> list[StoredMessage]:
        """Return what arrives within the time, in order, at once when something is there."""
        return self._reader.poll(timeout_s)

    def decode(self, message: StoredMessage) -> JournalEntry:
        """Return the entry of a message. Raises IntegrityError that names topic and kafka_offset."""
        return decode_journal(message.value or b"", topic=self.topic, kafka_offset=message.kafka_offset)

    def close(self) -> None:
        self._reader.close()
