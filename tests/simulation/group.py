"""The consumer group and the event loop of a CX worker: what Faust is to the product, less Faust.

A group assigns each volume to one living member. A member that was killed or frozen loses its volumes when its session ends; a frozen one
hears of it when it wakes up, and writes until then. What is delivered may come twice, late, or not at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from confluent_kafka import TopicPartition

from cx_consumers.intake import Arrival, Intake
from stream.topics import writes_topic
from tests.simulation.cluster import Cluster
from tests.simulation.kafka import clients_of
from tests.simulation.scheduler import Process, Scheduler, Task

SESSION_S = 6.0
POLL_S = 0.1
JOIN_S = 0.3


class Future:
    """What a coroutine of the loop waits for."""

    def __init__(self, loop: Loop, number: int) -> None:
        self._loop = loop
        self._number = number
        self._done = False
        self.waiting: Coroutine[Any, Any, None] | None = None

    def __hash__(self) -> int:
        return self._number  # the intake keeps its waiters in a set: their order must not depend on addresses

    def done(self) -> bool:
        return self._done

    def set_result(self, _: None) -> None:
        self._done = True
        if self.waiting is not None:
            self._loop.resume(self.waiting)

    def __await__(self) -> Any:
        if not self._done:
            yield self


class Loop:
    """An event loop as far as intake and acknowledgements need one; its thread steps coroutines and calls."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._calls: deque[Callable[[], Any]] = deque()
        self._sleeper: Task | None = None
        self._futures = 0

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> Future:
        self._futures += 1
        return Future(self, self._futures)

    def call_soon_threadsafe(self, call: Callable[..., Any], *args: Any) -> None:
        self._calls.append(lambda: call(*args))
        if self._sleeper is not None:
            self._scheduler.wake(self._sleeper)

    def resume(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Go on with a coroutine as soon as its turn comes."""
        self.call_soon_threadsafe(self._step, coroutine)

    def run_once(self, timeout_s: float) -> None:
        """Do what there is to do; wait for something if there is nothing."""
        if not self._calls:
            self._sleeper = self._scheduler.current
            self._scheduler.park("event loop", timeout_s)
            self._sleeper = None
        for _ in range(len(self._calls)):
            self._scheduler.point()
            self._calls.popleft()()

    def _step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            future = coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            return
        future.waiting = coroutine
        if future.done():
            self.resume(coroutine)


class Member:
    """One worker in the group: it pumps what it is assigned into the intake."""

    def __init__(self, group: Group, process: Process, loop: Loop, intake: Intake, assigned: Callable[[set[str]], None]) -> None:
        self.group = group
        self.process = process
        self.volumes: set[str] = set()
        self.last_seen_s = 0.0
        self._loop = loop
        self._intake = intake
        self._assigned = assigned
        self._pumped: dict[str, int] = {}
        self._generation = 0

    def follow(self) -> None:
        """Beat the heart, and hear of a new assignment; called by the worker's loop."""
        self.last_seen_s = self.group.scheduler.now
        wanted = self.group.assignment(self)
        if wanted != self.volumes:
            gained = wanted - self.volumes
            self.volumes = set(wanted)
            self._assigned(set(wanted))
            for volume in sorted(gained):
                self._generation += 1
                self._pumped[volume] = self._generation
                self._loop.resume(self._pump(volume, self._generation))

    async def _pump(self, volume: str, generation: int) -> None:
        """Deliver a volume's messages from about the committed offset on, as long as it is assigned."""
        group, topic = self.group, writes_topic(volume)
        rng = group.scheduler.rng
        consumer = group.consumer()
        known = group.cluster.topics.get(topic)
        end = known.end if known is not None else 0
        start = group.committed.get(topic, end)
        if rng.random() < 0.3:
            start = rng.randint(max(known.start if known is not None else 0, start - 20), end) if start <= end else end
        consumer.assign([TopicPartition(topic, 0, start)])
        while volume in self.volumes and self._pumped.get(volume) == generation:
            found = consumer.consume(16, 0)
            for message in found:
                if message.error() is not None or rng.random() < group.passed_over:
                    break
                offset = message.offset()
                arrival = Arrival(offset, message.value(), lambda offset=offset: group.commit(topic, offset + 1))
                await self._intake.put(volume, arrival)
                if volume not in self.volumes or self._pumped.get(volume) != generation:
                    return
            if found and found[-1].error() is not None:
                topic_now = group.cluster.topics.get(topic)
                consumer.assign([TopicPartition(topic, 0, topic_now.end if topic_now is not None else 0)])
            if not found:
                await self._pause(0.004 if rng.random() < 0.5 else 0.05)

    def _pause(self, seconds: float) -> Future:
        future = self._loop.create_future()
        group = self.group
        group.scheduler.at(group.scheduler.now + seconds, lambda: future.set_result(None))
        return future


class Group:
    """Who has which volume."""

    def __init__(self, scheduler: Scheduler, cluster: Cluster) -> None:
        self.scheduler = scheduler
        self.cluster = cluster
        self.volumes: set[str] = set()
        self.committed: dict[str, int] = {}
        self.passed_over = 0.0
        self._members: list[Member] = []
        self._owners: dict[str, Member] = {}
        self._shuffled = 0
        _, self.consumer, _ = clients_of(cluster)
        self.consumer = lambda kind=self.consumer: kind({})

    def join(self, member: Member) -> None:
        member.last_seen_s = self.scheduler.now
        self._members.append(member)
        self.rebalance()

    def leave(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
            self.rebalance()

    def commit(self, topic: str, offset: int) -> None:
        self.committed[topic] = offset

    def rebalance(self) -> None:
        """Share the volumes out anew among those whose session lasts."""
        living = [member for member in self._members if self._lives(member)]
        self._members = living
        self._owners = {volume: living[int(self.scheduler.rng.random() * len(living))] for volume in sorted(self.volumes) if living}

    def owner(self, volume: str) -> Process | None:
        """Return the process that has a volume."""
        return self._owners[volume].process if volume in self._owners else None

    def assignment(self, member: Member) -> set[str]:
        """Return what a member has now; sessions that ended are noticed here."""
        if member not in self._members:  # its session ended while it was frozen: it joins again
            self.join(member)
        elif any(not self._lives(one) for one in self._members):
            self.rebalance()
        return {volume for volume, owner in self._owners.items() if owner is member}

    def want(self, volumes: set[str]) -> None:
        """Follow these volumes from now on."""
        if volumes != self.volumes:
            self.volumes = set(volumes)
            self.rebalance()

    def _lives(self, member: Member) -> bool:
        return self.scheduler.now - member.last_seen_s < SESSION_S
