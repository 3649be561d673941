"""The faults: each a method of its name, chosen by the seed's weights; what one breaks is mended later, by itself or by `heal`."""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from stream.control import ControlWriter, Request
from stream.errors import HostoffloadError
from stream.topics import journal_topic, writes_topic
from tests.simulation import plain
from tests.simulation.application import stamped
from tests.simulation.cluster import Stored
from tests.simulation.disk import SECTOR_BYTES, Inode
from tests.simulation.history import EPOCH_START
from tests.simulation.load import word_of
from tests.simulation.services import Service
from tests.simulation.shared_memory import keep_rings

if TYPE_CHECKING:
    from tests.simulation.world import World

POINTS_MAX = 300
LINES_MAX = 120


class Faults:
    """What may happen to a run."""

    def __init__(self, world: World, control: ControlWriter, rng: random.Random, counts: Counter[str]) -> None:
        self._world = world
        self._control = control
        self._rng = rng
        self._counts = counts
        self._names = list(world.plan.faults)
        self._weights = list(world.plan.faults.values())
        self._mending: list[Callable[[], None]] = []

    def happen(self) -> None:
        """Let one fault happen now."""
        name = self._rng.choices(self._names, self._weights)[0]
        self._world.told(f"fault {name}")
        self._counts[name] += 1
        getattr(self, name)()

    def heal(self) -> None:
        """End all faults, start everything again."""
        world = self._world
        for mend in self._mending:
            mend()
        self._mending.clear()
        world.group.passed_over = 0.0
        for service in world.services.values():
            if service.process is not None and service.process.alive:
                service.process.fuse = 0
                service.process.thaw()
            service.start()
        for one in world.plan.volumes:
            self._declare(one.name, "active")

    # -- processes -----------------------------------------------------------------------------------------------------

    def kill_capture(self) -> None:
        self._kill("capture")

    def kill_publisher(self) -> None:
        self._kill("publisher")

    def kill_cx(self) -> None:
        self._kill(self._some_cx())

    def kill_target(self) -> None:
        self._kill("target")

    def kill_at_a_line(self) -> None:
        service = self._service(self._rng.choice(("capture", "capture", "publisher", "target", self._some_cx())))
        process, lines = service.process, self._rng.randint(1, LINES_MAX)
        if service.running:
            process.on_fuse = lambda: service.kill_at_a_line(lines, lambda: keep_rings(self._world))
            process.fuse = self._rng.randint(1, POINTS_MAX)

    def stop_capture(self) -> None:
        self._restart("capture")

    def stop_publisher(self) -> None:
        self._restart("publisher")

    def stop_cx(self) -> None:
        self._restart(self._some_cx())

    def stop_target(self) -> None:
        self._restart("target")

    def freeze(self) -> None:
        service = self._service(self._rng.choice((*self._world.services,)))
        if service.running:
            process = service.process
            process.freeze()
            self._later(self._rng.choice((0.3, 2.0, 9.0)), process.thaw)

    def _kill(self, name: str) -> None:
        """Kill a service now, or in the middle of what it does next."""
        service = self._service(name)
        if not service.running or self._rng.random() < 0.2:
            service.kill()
            return
        service.process.on_fuse = service.kill
        service.process.fuse = self._rng.randint(1, POINTS_MAX)

    def _restart(self, name: str) -> None:
        service = self._service(name)
        clean = service.stop()
        self._world.told("restart", service=name, clean=clean)
        self._world.scheduler.sleep(self._rng.random() * 0.5)
        if service.machine.up:
            service.start()
        else:
            service.wanted = True

    # -- the broker and the network ------------------------------------------------------------------------------------

    def broker_down(self) -> None:
        cluster = self._world.cluster
        cluster.set_up(False)
        self._later(self._rng.choice((0.1, 1.0, 5.0)), lambda: cluster.set_up(True))

    def outage(self) -> None:
        cluster = self._world.cluster
        cluster.set_up(False)
        self._later(self._rng.choice((6.0, 12.0)), lambda: cluster.set_up(True))

    def broker_loses(self) -> None:
        """A broker that lacked the last messages becomes leader; claims are not lost here."""
        world, volume = self._world, self._volume()
        topic = world.cluster.topics[writes_topic(volume)]
        count = self._rng.randint(1, 4)
        tail = topic.messages[-count:]
        if len(tail) == count and not any(_is_claim(one) for one in tail):
            world.checker.lost_end(volume, topic, world.cluster.lose_end(topic.name, count))

    def cut_off(self) -> None:
        cluster = self._world.cluster
        machine = self._rng.choice([service.machine.name for service in self._world.services.values()])
        cluster.disconnect(machine)
        self._later(self._rng.choice((0.1, 1.0, 8.0)), lambda: cluster.connect(machine))

    def slow_network(self) -> None:
        cluster = self._world.cluster
        cluster.slowness = self._rng.choice((10.0, 100.0, 400.0))
        self._later(self._rng.random() * 3.0, lambda: setattr(cluster, "slowness", 1.0))

    def break_producers(self) -> None:
        for producer in list(self._world.cluster.producers):
            if producer.ordered and self._rng.random() < 0.5:
                producer.break_for_good()

    def rebalance(self) -> None:
        self._world.group.rebalance()

    def retention_writes(self) -> None:
        self._expire(self._volume(), writes_topic)

    def retention_journal(self) -> None:
        self._expire(self._volume(), journal_topic)

    def writes_anew(self) -> None:
        """The operator makes the topic anew."""
        self._make_anew(self._volume(), writes_topic)

    def journal_anew(self) -> None:
        """The same for the journal. A worker that has lost the volume has nothing on the way to it any more: a reader would take it for
        the newest, if its number is one that the new topic has reached."""
        volume = self._volume()
        owner = self._world.group.owner(volume)
        for producer in list(self._world.cluster.producers):
            if producer.ordered and producer.process is not owner and producer.sends_to(journal_topic(volume)):
                producer.break_for_good()
        self._make_anew(volume, journal_topic)

    def _expire(self, volume: str, topic_of: Callable[[str], str]) -> None:
        cluster = self._world.cluster
        topic = cluster.topics[topic_of(volume)]
        cluster.expire(topic.name, self._rng.randint(topic.start, topic.end))

    def _make_anew(self, volume: str, topic_of: Callable[[str], str]) -> None:
        topic = self._world.cluster.topics[topic_of(volume)]
        self._world.cluster.create(topic.name, topic.config)
        self._world.checker.made_anew(volume, topic.name)

    # -- disks ---------------------------------------------------------------------------------------------------------

    def slow_disk(self) -> None:
        inode = self._rng.choice((self._source(), self._replica()))
        if inode is not None:
            inode.faults.slow_s = self._rng.choice((0.005, 0.05))
            self._later(self._rng.random() * 2.0, lambda: setattr(inode.faults, "slow_s", 0.0))

    def source_error(self) -> None:
        self._source().faults.plan(self._rng.choice(("write", "read", "sync", "zero")), errno.EIO, self._rng.choice((1, 1, 5)))

    def source_full(self) -> None:
        self._source().faults.plan("write", errno.ENOSPC, self._rng.choice((1, 3)))

    def replica_error(self) -> None:
        inode = self._replica()
        if inode is not None:
            inode.faults.plan(self._rng.choice(("write", "sync")), self._rng.choice((errno.EIO, errno.ENOSPC)), self._rng.choice((1, 4)))

    def state_full(self) -> None:
        folder = self._rng.choice(("/host/state/", "/target/state/"))
        self._world.files.full.add(folder)
        self._later(self._rng.random() * 2.0, lambda: self._world.files.full.discard(folder))

    def store_fails(self) -> None:
        store = self._world.store
        store.failing = self._rng.choice((0.2, 1.0))
        self._later(self._rng.random() * 4.0, lambda: setattr(store, "failing", 0.0))

    # -- machines ------------------------------------------------------------------------------------------------------

    def host_power(self) -> None:
        world = self._world
        self._power(world.host.name)
        for watched in world.checker.volumes.values():
            held = watched.history.source.data
            watched.sectors.rebase(watched.sectors.check(held, what="the source after a power cut", safe_only=True))
            watched.acknowledged = (0, 0)

    def target_power(self) -> None:
        world = self._world
        self._power(world.target.name)
        for watched in world.checker.volumes.values():
            world.checker.target_lost_power(watched)

    def host_reboot(self) -> None:
        """The host is shut down in order and comes up again, its memory empty."""
        world = self._world
        services = [self._service(name) for name in ("capture", "publisher")]
        if not world.host.up:
            return
        for service in services:
            world.told("shut down", service=service.name, clean=service.stop())
            service.wanted = True
        self.host_power()

    def meddle(self) -> None:
        """Somebody writes to the source while its agent is stopped."""
        world, service, volume = self._world, self._service("capture"), self._volume()
        clean, ring = service.stop(), world.ring(volume)
        if clean and world.host.up and ring is not None and word_of(ring, "W_STOPPED"):
            watched = world.checker.volumes[volume]
            first, now = self._rng.randrange(watched.sectors.count), world.tick()
            operation = watched.sectors.begin(world.next_number(), first, 1, now)
            operation.ended = operation.safe_at = now
            operation.answered = operation.acknowledged = True
            source = watched.history.source
            source.put(first * SECTOR_BYTES, stamped(operation.number, first, 1))
            source.flush()
            source.mtime_ns = max(source.mtime_ns + 1, world.clock.time_ns())
            world.told("meddled", volume=volume, sector=first)
        service.start()

    def clock_jump(self) -> None:
        self._world.host.skew_s += self._rng.choice((-3600.0, -1.5, 0.8, 5000.0))

    def _power(self, name: str) -> None:
        """Cut a machine's power: its processes are gone, its memory too, and what its disks had not flushed."""
        world = self._world
        services = [service for service in world.services.values() if service.machine.name == name]
        machine = services[0].machine
        if not machine.up:
            return
        machine.up = False
        for service in services:
            service.kill()
        if machine is world.host:
            world.application.kill()
            machine.listener.refuse_all()
        world.files.lose_power(name)

        def boot() -> None:
            if machine.up:
                return
            machine.up = True
            for service in services:
                if service.wanted:
                    service.start()
            if machine is world.host:
                world.start_application()

        self._later(self._rng.random() * 2.0, boot)

    # -- the operator --------------------------------------------------------------------------------------------------

    def ask_verify(self) -> None:
        self._put(Request(f"verify-{self._counts['ask_verify']}", "verify", self._volume(), {}, "operator", 0))

    def ask_bookmark(self) -> None:
        for _ in range(self._rng.randint(1, 4)):
            self._put(self._world.bookmarks.request(self._rng))

    def ask_resync(self) -> None:
        self._put(Request(f"operator-{self._counts['ask_resync']}", "resync", self._volume(), {"reason": "asked for"}, "operator", 0))

    def pause(self) -> None:
        volume = self._volume()
        self._declare(volume, "paused")
        self._later(self._rng.random() * 2.0, lambda: self._declare_soon(volume))

    def _declare_soon(self, volume: str) -> None:
        world = self._world
        world.scheduler.process("operator", world.operator).spawn("declare", lambda: self._declare(volume, "active"))

    def _declare(self, volume: str, state: str) -> None:
        world = self._world
        one = next(one for one in world.plan.volumes if one.name == volume)
        if state == "active" or world.cluster.reachable(world.operator.name):
            try:
                world.declare(self._control, one, state)
            except HostoffloadError as error:
                world.told("the operator could not declare", error=error)

    def _put(self, request: Request) -> None:
        if self._world.cluster.reachable(self._world.operator.name):
            try:
                self._control.put(request)
            except HostoffloadError as error:
                self._world.told("the operator could not ask", error=error)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        """Mend it after about that time, or when everything is healed."""
        world, done = self._world, []

        def once() -> None:
            if not done:
                done.append(True)
                world.told("mended")
                mend()

        self._mending.append(once)
        world.scheduler.at(world.scheduler.now + seconds * (0.2 + self._rng.random()), once)

    def _service(self, name: str) -> Service:
        return self._world.services[name]

    def _some_cx(self) -> str:
        return self._rng.choice([name for name in self._world.services if name.startswith("cx")])

    def _volume(self) -> str:
        return self._rng.choice(self._world.plan.volumes).name

    def _source(self) -> Inode:
        return self._world.checker.volumes[self._volume()].history.source

    def _replica(self) -> Inode | None:
        path = self._world.checker.volumes[self._volume()].replica.path
        return self._world.files.volume(path).names.get(path)


def _is_claim(message: Stored) -> bool:
    return plain.message(message.value)[1]["kinds"][0] == EPOCH_START
