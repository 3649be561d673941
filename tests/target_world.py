"""A world for the target's session without Kafka and without a disk: a journal that is a list, a replica and a checkpoint that can lose
power.

Every write, sync, resize, save and request is one step; a power cut happens before a step that the test names. What was written since
the last sync then survives in part, as a seed says. Steps are counted over all lives of the session.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import xxhash

from cx_consumers.checkpoint import Checkpoint
from cx_consumers.target_digests import Inbox
from cx_consumers.target_facts import VolumeFacts
from cx_consumers.target_session import Session
from cx_consumers.target_store import StoredHistory
from cx_consumers.target_task import Surroundings, Task
from history.store import Store
from stream.codec import decode_journal
from stream.config import Config
from stream.consumer import StoredMessage
from stream.control import Answer, Request
from stream.errors import ResyncError
from stream.topics import journal_topic

PATH = "the-replica"


class PowerCut(BaseException):
    """The machine is off; nothing may catch this."""


@dataclass
class World:
    """Everything that outlives a session. A session is stopped cleanly when `idle_polls` brought nothing, or after `polls_max` polls.

    `proofs` has, for each new proof, the checkpoint that holds it and the replica's bytes at that moment.
    """

    size_bytes: int
    messages: list[StoredMessage]
    config: Config = field(default_factory=Config)
    volume: str = "v1"
    topic_id: str = "journal-1"
    log_start: int = 0
    log_end: int | None = None
    poll_messages_max: int = 3
    polls_max: int | None = None
    idle_polls: int = 1
    store: Store | None = None
    delay_s: float = 0.0
    seed: int = 0
    cut_before_step: int | None = None
    steps: int = 0
    checkpoint: Checkpoint | None = None
    durable: bytearray = field(init=False)
    cached: bytearray = field(init=False)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)
    history: list[tuple[str, object]] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    answered: list[Answer] = field(default_factory=list)
    inbox: Inbox = field(default_factory=Inbox)
    facts: VolumeFacts = field(default_factory=VolumeFacts)
    proofs: list[tuple[Checkpoint, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.durable = bytearray(self.size_bytes)
        self.cached = bytearray(self.size_bytes)
        self.restart()

    def restart(self) -> None:
        """Forget what a process knows of the store."""
        self._history = StoredHistory(self.volume, lambda: self.store)

    def live(self) -> None:
        """Run one session until it has read the journal's end, then stop it cleanly; a PowerCut leaves the durable part of the world."""
        stopped = threading.Event()
        around = Surroundings(
            self.config,
            _File(self),
            lambda: _Log(self, stopped),
            lambda path, sizes, identity: _Replica(self, sizes),
            self._put,
            self._publish,
            stopped,
            self.inbox,
            self._history,
        )
        try:
            Session(Task(self.volume, PATH, self.size_bytes, self.delay_s), around, self.facts).run()
        except PowerCut:
            self._lose_power()
            raise

    def step(self, what: str, detail: object) -> None:
        if self.cut_before_step is not None and self.steps >= self.cut_before_step:
            raise PowerCut
        self.steps += 1
        self.history.append((what, detail))

    def _put(self, entry: Request | Answer) -> None:
        self.step("put", entry)
        if isinstance(entry, Request) and entry.attributes["reason"] == "verify_mismatch":
            assert self.checkpoint.verify.unasked_at, "what is asked for is written down first"
        (self.asked if isinstance(entry, Request) else self.answered).append(entry)

    def _publish(self, facts: VolumeFacts) -> None:
        told = (facts.proved_position, facts.verify_mismatches, facts.repairs_open)
        durable = self.checkpoint.verify
        assert told == (durable.proved_position, durable.mismatches, len(durable.repairs)), "what is told of proofs survives a crash"
        self.facts = facts

    def _lose_power(self) -> None:
        chance = random.Random(self.seed)
        for offset, data in self.unsynced:
            survives = min(chance.choice((0, len(data) // 2, len(data))), max(0, len(self.durable) - offset))
            self.durable[offset : offset + survives] = data[:survives]
        self.unsynced.clear()
        self.cached[:] = self.durable


class _File:
    def __init__(self, world: World) -> None:
        self._world = world

    def load(self) -> Checkpoint | None:
        return self._world.checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        before = self._world.checkpoint
        self._world.step("checkpoint", checkpoint)
        self._world.checkpoint = checkpoint
        if checkpoint.verify.proved_position != (before.verify.proved_position if before is not None else None):
            self._world.proofs.append((checkpoint, bytes(self._world.cached)))


class _Replica:
    identity = "one"

    path = PATH

    def __init__(self, world: World, sizes: Sequence[int]) -> None:
        assert len(world.cached) in sizes, "the checkpoint does not know a size that a crash left"
        self._world = world
        self.size_bytes = len(world.cached)

    def check(self) -> None:
        assert len(self._world.cached) == self.size_bytes

    def write(self, writes: Sequence[tuple[int, int, list[memoryview] | None]]) -> None:
        for offset, length, pieces in writes:
            data = bytes(length) if pieces is None else b"".join(pieces)
            assert len(data) == length and offset + length <= self.size_bytes
            self._world.step("write", (offset, length))
            self._world.cached[offset : offset + length] = data
            self._world.unsynced.append((offset, data))

    def sync(self) -> None:
        self._world.step("sync", None)
        self._world.durable[:] = self._world.cached
        self._world.unsynced.clear()

    def digest(self, offset_bytes: int, length_bytes: int, *, from_disk: bool = False) -> bytes | None:
        return xxhash.xxh3_128_digest(bytes(self._world.cached[offset_bytes : offset_bytes + length_bytes]))

    def resize(self, size_bytes: int) -> None:
        if size_bytes == self.size_bytes:
            return
        self._world.step("resize", size_bytes)
        for held in (self._world.cached, self._world.durable):
            held[size_bytes:] = bytes(max(0, size_bytes - len(held)))
        self.size_bytes = size_bytes

    def close(self) -> None:
        self._world = None


class _Log:
    def __init__(self, world: World, stopped: threading.Event) -> None:
        self.topic = journal_topic(world.volume)
        self._world = world
        self._stopped = stopped
        self._at = 0
        self._polls = 0
        self._idle = 0

    def topic_id(self) -> str:
        return self._world.topic_id

    def bounds(self) -> tuple[int, int]:
        end = self._world.log_end
        return self._world.log_start, len(self._world.messages) if end is None else end

    def seek(self, kafka_offset: int) -> None:
        self._at = kafka_offset

    def poll(self, timeout_s: float) -> list[StoredMessage]:
        start, end = self.bounds()
        if not start <= self._at <= end:
            raise ResyncError("out of range")
        found = self._world.messages[self._at : min(end, self._at + self._world.poll_messages_max)]
        self._at += len(found)
        self._polls += 1
        self._idle += not found
        if self._idle == self._world.idle_polls or self._polls == self._world.polls_max:
            self._stopped.set()
        return found

    def decode(self, message: StoredMessage):
        return decode_journal(message.value or b"", topic=self.topic, kafka_offset=message.kafka_offset)

    def close(self) -> None:
        self._world = None


def stamped(messages: list[StoredMessage]) -> list[StoredMessage]:
    """Return the messages with their index as kafka_offset and a broker's time that grows."""
    return [replace(one, kafka_offset=index, timestamp_ms=1_700_000_000_000 + index) for index, one in enumerate(messages)]
