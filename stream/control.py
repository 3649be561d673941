"""The declared state: what `ho.control` and `ho.status` say, written and followed.

`ho.control` (compacted) holds volumes, groups, bookmarks, epochs, requests and answers; `ho.status` (compacted) the last report of every
process. A `Follower` keeps the newest entry of each key; there is no other database.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from stream.config import KafkaConfig
from stream.consumer import PartitionReader
from stream.errors import ConfigError, IntegrityError, RetryError
from stream.kafka import client_settings, translate
from stream.position import ZERO, Position
from stream.schema import decode, schema
from stream.topics import CONTROL_TOPIC, STATUS_TOPIC

PUT_TIMEOUT_S = 15.0
POLL_S = 0.1
CLOSE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A target's copy of a volume; `delay_s` after capture."""

    target: str
    path: str
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class VolumeDeclaration:
    """What a volume should be; `state` is active, paused or removed."""

    volume: str
    agent: str
    source: str
    size_bytes: int
    state: str = "active"
    flush_policy: str = "local"
    codec: str = "snappy"
    replicas: tuple[Replica, ...] = ()
    declared_at_ns: int = 0

    @property
    def key(self) -> str:
        return f"volume/{self.volume}"


@dataclass(frozen=True, slots=True)
class GroupDeclaration:
    """A consistency group: volumes of one agent that get their bookmarks at one instant, in the order of their names."""

    group: str
    agent: str
    volumes: tuple[str, ...]
    declared_at_ns: int = 0

    @property
    def key(self) -> str:
        return f"group/{self.group}"


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A bookmark that Kafka has: its label is taken for good in this volume. `group` is empty for one of the volume alone."""

    volume: str
    label: str
    group: str
    position: Position
    capture_time_ns: int

    @property
    def key(self) -> str:
        return bookmark_key(self.volume, self.label)


@dataclass(frozen=True, slots=True)
class EpochClaim:
    """The newest epoch of a volume and who claimed it, or is about to: then `first_sequence` is 0."""

    volume: str
    epoch: int
    incarnation: bytes
    agent: str
    topic_id: str
    first_sequence: int
    claimed_at_ns: int

    @property
    def key(self) -> str:
        return f"epoch/{self.volume}"

    @property
    def is_won(self) -> bool:
        """Tell whether its `epoch_start` is known to be the first of its number in the log."""
        return self.first_sequence > 0


@dataclass(frozen=True, slots=True)
class Request:
    """Something one service asks of another."""

    id: str
    kind: str
    volume: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    asked_by: str = ""
    asked_at_ns: int = 0

    @property
    def key(self) -> str:
        return f"request/{self.id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the request of that id."""

    id: str
    done: bool
    attributes: Mapping[str, str] = field(default_factory=dict)
    answered_by: str = ""
    answered_at_ns: int = 0

    @property
    def key(self) -> str:
        return f"answer/{self.id}"


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """One volume as a process sees it: its position there and facts by name."""

    volume: str
    position: Position = ZERO
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """The last report of a process."""

    kind: str
    instance: str
    host: str
    pid: int
    at_ns: int
    volumes: tuple[VolumeReport, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.instance}"


Entry = VolumeDeclaration | GroupDeclaration | Bookmark | EpochClaim | Request | Answer | ProcessReport
_KINDS = {
    kind.__name__: kind for kind in (VolumeDeclaration, GroupDeclaration, Bookmark, EpochClaim, Request, Answer, ProcessReport)
}


def bookmark_key(volume: str, label: str) -> str:
    """Return the key of the bookmark of that label."""
    return f"bookmark/{volume}/{label}"


def encode_entry(entry: Entry) -> bytes:
    """Return the message of an entry."""
    body: dict[str, Any] = {one.name: getattr(entry, one.name) for one in fields(entry)}
    if isinstance(entry, VolumeDeclaration):
        body["replicas"] = [asdict(replica) for replica in entry.replicas]
    elif isinstance(entry, GroupDeclaration):
        body["volumes"] = list(entry.volumes)
    elif isinstance(entry, Bookmark):
        body |= {"epoch": entry.position.epoch, "sequence": entry.position.sequence}
        del body["position"]
    elif isinstance(entry, ProcessReport):
        body["volumes"] = [
            {"volume": one.volume, "epoch": one.position.epoch, "sequence": one.position.sequence, "facts": dict(one.facts)}
            for one in entry.volumes
        ]
    return schema(type(entry).__name__).encode(body)


def decode_entry(value: bytes, *, topic: str = "", kafka_offset: int | None = None) -> Entry:
    """Return the entry of a message. Raises IntegrityError."""
    name, body = decode(value, topic=topic, kafka_offset=kafka_offset)
    kind = _KINDS.get(name)
    if kind is None:
        raise IntegrityError(f"A {name} stands in {topic}", topic=topic, kafka_offset=kafka_offset)
    body.pop("checksum")
    if kind is VolumeDeclaration:
        body["replicas"] = tuple(Replica(**one) for one in body["replicas"])
    elif kind is GroupDeclaration:
        body["volumes"] = tuple(body["volumes"])
    elif kind is Bookmark:
        body["position"] = Position(body.pop("epoch"), body.pop("sequence"))
    elif kind is ProcessReport:
        body["volumes"] = tuple(
            VolumeReport(one["volume"], Position(one["epoch"], one["sequence"]), one["facts"]) for one in body["volumes"]
        )
    return kind(**body)


class ControlWriter:
    """Put entries into `ho.control` and reports into `ho.status`. Thread-safe.

    A producer that failed for good (Kafka broke off in the middle of a sequence) is replaced, and so is one that could not deliver in time,
    which may have lost all brokers for ever (see `stream.topics.Topics`): what it held is lost, what comes next is not.
    """

    def __init__(self, config: KafkaConfig) -> None:
        timeout_ms = int(PUT_TIMEOUT_S * 1000)
        self._settings = client_settings(config) | {"acks": "all", "enable.idempotence": True, "delivery.timeout.ms": timeout_ms}
        self._mutex = threading.Lock()
        self._producer = Producer(self._settings)
        self._silent: Producer | None = None
        """The producer that could not deliver in time."""

    def put(self, entry: Entry) -> None:
        """Write one entry and wait until it is durable. Raises RetryError when it is not in time."""
        self._put(encode_entry(entry), entry.key)

    def remove(self, key: str) -> None:
        """Delete the entry of a key and wait until that is durable. Raises RetryError when it is not in time."""
        self._put(None, key)

    def _put(self, value: bytes | None, key: str) -> None:
        failed: list[Any] = []
        producer = self._producer
        try:
            producer.produce(CONTROL_TOPIC, value, key, partition=0, on_delivery=lambda error, _: failed.append(error))
            self._wait(producer, failed)
        except BufferError as error:
            raise RetryError("ho.control can't be written", hint="Check that the broker runs.", cause=str(error)) from error
        except KafkaException as error:
            self._replace_failed(producer, error)
            raise RetryError("ho.control can't be written", hint="Check that the broker runs.", cause=str(error)) from error
        if not failed or failed[0] is not None:
            self._note(producer, failed[0] if failed else None)
            self._replace_silent()
            raise translate(failed[0], "ho.control can't be written") if failed else RetryError("ho.control did not answer in time")

    def forget(self, key: str) -> None:
        """Delete the entry of a key (a tombstone); it is not waited for and may be lost while the broker is away."""
        self._send(CONTROL_TOPIC, None, key)

    def report(self, report: ProcessReport) -> None:
        """Send a report; it is not waited for and may be lost while the broker is away."""
        self._send(STATUS_TOPIC, encode_entry(report), report.key)

    def _send(self, topic: str, value: bytes | None, key: str) -> None:
        producer = self._producer
        try:
            with contextlib.suppress(BufferError):
                producer.produce(topic, value, key, partition=0, on_delivery=lambda error, _: error and self._note(producer, error))
            producer.poll(0)
        except KafkaException as error:
            self._replace_failed(producer, error)
        self._replace_silent()

    def _wait(self, producer: Producer, told: list[Any]) -> None:
        """Wait for a message's report. Not by librdkafka's flush: it reports on while an error is pending, which Python can't bear."""
        deadline_s = time.monotonic() + PUT_TIMEOUT_S + 1
        while not told and time.monotonic() < deadline_s:
            producer.poll(POLL_S)

    def _note(self, producer: Producer, error: KafkaError | None) -> None:
        """Hear that a message was not delivered; without an error: that nothing is known of it in time."""
        if error is None or error.code() == KafkaError._MSG_TIMED_OUT:
            self._silent = producer

    def _replace_silent(self) -> None:
        """Take a new producer if this one does not deliver. Not by the one who hears of it: he is inside of it."""
        silent, self._silent = self._silent, None
        if silent is not None:
            self._replace(silent)

    def _replace_failed(self, producer: Producer, error: KafkaException) -> None:
        """Take a new producer if this one will never send again."""
        cause = error.args[0]
        if isinstance(cause, KafkaError) and (cause.fatal() or cause.code() == KafkaError._FATAL):
            self._replace(producer)

    def _replace(self, producer: Producer) -> None:
        with self._mutex:
            if self._producer is not producer:
                return
            self._producer = Producer(self._settings)
        with contextlib.suppress(KafkaException):
            producer.purge(in_queue=True, in_flight=True, blocking=False)

    def close(self) -> None:
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(KafkaException):  # it has failed for good: there is nothing to wait for
            while len(self._producer) and time.monotonic() < deadline_s:
                self._producer.poll(POLL_S)


class Follower:
    """Follow one compacted topic: `entries` holds the newest entry of each key. One thread uses it."""

    def __init__(self, config: KafkaConfig, topic: str = CONTROL_TOPIC) -> None:
        self._topic = topic
        self._reader = PartitionReader(config, topic, queued_kbytes=4096)
        self._next = 0
        self._assigned = False
        self.entries: dict[str, Entry] = {}

    def poll(self, timeout_s: float) -> list[tuple[str, Entry | None]]:
        """Return the changes that arrived within the time as `(key, entry or None)`, in order. Raises RetryError."""
        if not self._assigned:
            self._reader.seek(None)
            self._assigned = True
        changes: list[tuple[str, Entry | None]] = []
        for message in self._reader.poll(timeout_s):
            self._next = message.kafka_offset + 1
            name = (message.key or b"").decode()
            entry = None
            if message.value is not None:
                entry = decode_entry(message.value, topic=self._topic, kafka_offset=message.kafka_offset)
                self.entries[name] = entry
            else:
                self.entries.pop(name, None)
            changes.append((name, entry))
        return changes

    def catch_up(self, timeout_s: float = 15.0) -> None:
        """Read up to the log's end as it is now. Raises RetryError when the broker does not answer in time."""
        start, end = self._reader.bounds()
        while max(self._next, start) < end:
            if not self.poll(timeout_s) and self._next < end:
                raise RetryError(f"{self._topic} can't be read to its end in time", topic=self._topic)

    def volumes(self) -> dict[str, VolumeDeclaration]:
        """Return the declared volumes by name, removed ones included."""
        return {entry.volume: entry for entry in self.entries.values() if isinstance(entry, VolumeDeclaration)}

    def groups(self) -> dict[str, GroupDeclaration]:
        """Return the consistency groups by name."""
        return {entry.group: entry for entry in self.entries.values() if isinstance(entry, GroupDeclaration)}

    def volume(self, name: str) -> VolumeDeclaration:
        """Return a declared volume that is not removed. Raises ConfigError."""
        found = self.volumes().get(name)
        if found is None or found.state == "removed":
            known = ", ".join(sorted(one for one, told in self.volumes().items() if told.state != "removed")) or "none"
            raise ConfigError(f"There is no volume {name!r}", hint=f"Volumes: {known}.")
        return found

    def close(self) -> None:
        self._reader.close()
