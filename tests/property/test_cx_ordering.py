"""Ordering over a broker in memory, killed, stopped and frozen at any call: one history, and no event acknowledged early.

The judge reads the writes topic and the journal record by record, by fences alone; it uses none of the code under test but the codec.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cx_consumers import journal_tail, journal_writer
from cx_consumers.intake import Arrival
from cx_consumers.ordering import Ordering, Progress, Shared, StoppedError
from stream.codec import decode_journal, encode_writes, unpack
from stream.errors import ResyncError, RetryError
from stream.journal import JournalFence, JournalGap
from stream.topics import journal_topic, writes_topic
from tests.cx_fake_broker import FakeBroker, KilledError
from tests.cx_history import One, Oracle, Sent, agents, interleaved

VOLUME = "v"
UNDER_WAY = 3


@pytest.fixture(autouse=True, scope="module")
def few_under_way():
    """Make the windows of the tail small, so that they matter."""
    before = journal_tail.LATE_MESSAGES_MAX, journal_tail.WINDOW_MESSAGES, journal_writer.IN_FLIGHT_MESSAGES_MAX
    journal_tail.LATE_MESSAGES_MAX = journal_writer.IN_FLIGHT_MESSAGES_MAX = UNDER_WAY
    journal_tail.WINDOW_MESSAGES = UNDER_WAY + 1
    yield
    journal_tail.LATE_MESSAGES_MAX, journal_tail.WINDOW_MESSAGES, journal_writer.IN_FLIGHT_MESSAGES_MAX = before


class Asked:
    """Take the requests that order makes."""

    def __init__(self, lossy: bool) -> None:
        self.republished: list[str] = []
        self._lossy = lossy

    def republish(self, volume: str, position: object) -> None:
        self.republished.append(str(position))

    def resync(self, volume: str, gap: object, newest: object) -> None:
        assert self._lossy, "nothing was lost"


class InTheLoop:
    """Acknowledge at once."""

    def add(self, done: list) -> None:
        for one in done:
            one()


@dataclass
class World:
    """Agents that publish, workers that come and go, one broker."""

    rng: random.Random
    to_publish: list[Sent]
    lossy: bool
    published: list[Sent] = field(default_factory=list)
    acknowledged: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        self.broker = FakeBroker(self.rng, VOLUME)
        self.broker.on_tick = self.on_tick
        self.shared = Shared(self.broker, "worker", Asked(self.lossy), InTheLoop(), self.broker.clock)
        self.calm = False

    def publish(self) -> None:
        if self.to_publish:
            message = self.to_publish.pop(0)
            self.published.append(message)
            self.broker.append(writes_topic(VOLUME), encode_writes(message.batch(), message.claim), [])

    def on_tick(self) -> None:
        """Let the planned thing happen at a call: a kill, or a freeze in which another worker takes the volume."""
        if self.calm:
            return
        luck = self.rng.random()
        if luck < 0.008:
            raise KilledError
        if luck < 0.03 and self.depth == 0:
            self.depth = 1
            with suppress(KilledError):
                self.work()
            self.depth = 0

    def work(self) -> None:
        """Run a worker from its take-over to its end, whatever ends it but a kill."""
        inbox = Inbox(self)
        with suppress(RetryError, ResyncError, StoppedError):
            Ordering(VOLUME, "snappy", inbox, self.shared, Progress(), inbox.stopped).hold()

    def check_acknowledged(self, kafka_offset: int) -> None:
        """Fail if an event was acknowledged whose records the journal does not hold yet."""
        self.acknowledged += 1
        oracle = judged(self.published[: kafka_offset + 1])
        assert len(believed(self.broker)) >= len(oracle.history)


class Inbox:
    """Bring what Faust would: mostly the next message, sometimes one again, sometimes one too far, sometimes nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next = world.rng.randint(0, len(world.published))
        self._left = world.rng.randint(1, 60)
        self.held_bytes = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def give_back(self, size_bytes: int) -> None:
        pass

    def take(self, timeout_s: float) -> list[Arrival]:
        world = self._world
        for _ in range(world.rng.randint(0, 3)):
            world.publish()
        luck = world.rng.random()
        if luck < 0.1:
            self._next = max(0, self._next - world.rng.randint(1, 5))
        elif luck < 0.2:
            self._next = min(len(world.published), self._next + world.rng.randint(1, 5))
        until = min(len(world.published), self._next + world.rng.randint(0, 4))
        arrivals = [self._arrival(kafka_offset) for kafka_offset in range(self._next, until)]
        self._next = until
        return arrivals

    def stopped(self) -> bool:
        """Stop at a random time; in the end, when nothing is left to publish or to read."""
        world = self._world
        self._left -= 1
        if world.calm:
            return not world.to_publish and self._left < -400
        return self._left <= 0

    def _arrival(self, kafka_offset: int) -> Arrival:
        value = self._world.broker.logs[writes_topic(VOLUME)][kafka_offset].value
        return Arrival(kafka_offset, value, lambda: self._world.check_acknowledged(kafka_offset))


def believed(broker: FakeBroker) -> list[One]:
    """Return the records of the messages that no fence outdates, each of which must follow the one before it."""
    found: list[One] = []
    fence, position = -1, (0, 0)
    for message in broker.logs[journal_topic(VOLUME)]:
        entry = decode_journal(message.value)
        if isinstance(entry, JournalFence):
            fence = message.kafka_offset
        elif isinstance(entry, JournalGap) and entry.writer >= fence:
            assert (entry.state.position.epoch, entry.state.position.sequence) == position
        elif entry.writer >= fence:
            assert (entry.follows.epoch, entry.follows.sequence) == position
            position = entry.state.position.epoch, entry.state.position.sequence
            found.extend(
                One(one.position.epoch, one.position.sequence, one.capture_time_ns, int(one.kind), one.flags, one.offset_bytes,
                    one.payload, tuple(one.attributes.items()))
                for one in unpack(entry).records()
            )  # fmt: skip
    return found


def judged(log: list[Sent]) -> Oracle:
    oracle = Oracle()
    for message in log:
        oracle.see(message)
    return oracle


def run(seed: int) -> World:
    rng = random.Random(seed)
    lossy = rng.random() < 0.3
    world = World(rng, interleaved(rng, agents(rng), lossy), lossy)
    for _ in range(rng.randint(1, 10)):
        with suppress(KilledError):
            world.work()
    world.calm = True
    for _ in range(50):
        world.work()
        if not world.to_publish and believed(world.broker) == judged(world.published).history:
            break
    return world


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_killed_frozen_and_stopped_anywhere_the_journal_is_the_one_history(seed: int) -> None:
    world = run(seed)
    assert not world.to_publish
    assert believed(world.broker) == judged(world.published).history


def test_the_runs_are_worth_something() -> None:
    """Fences, stale messages and acknowledgements all occur, or the test above proves little."""
    worlds = [run(seed) for seed in range(25)]
    stale = fences = 0
    for world in worlds:
        fence = -1
        for message in world.broker.logs[journal_topic(VOLUME)]:
            entry = decode_journal(message.value)
            if isinstance(entry, JournalFence):
                fence, fences = message.kafka_offset, fences + 1
            elif entry.writer < fence:
                stale += 1
    assert fences > 60
    assert stale > 10
    assert sum(world.acknowledged for world in worlds) > 500
