"""One run: machines, services, application, faults and checker, from a plan to a verdict."""

from __future__ import annotations

import logging
import random
import traceback
from collections import Counter, deque
from typing import Any

import agent.activity_log
import agent.capture
import agent.generations
from stream.control import ControlWriter, Replica, VolumeDeclaration
from stream.report import Reporter
from stream.topics import Topics, data_topics, shared_topics
from tests.simulation import stand_ins
from tests.simulation.application import Sectors, stamped
from tests.simulation.bookmarks import Bookmarks
from tests.simulation.checker import Checker, Watched
from tests.simulation.checker import Replica as WatchedReplica
from tests.simulation.cluster import Cluster, Stored, Topic
from tests.simulation.director import Director
from tests.simulation.disk import SECTOR_BYTES
from tests.simulation.filesystem import FileSystem
from tests.simulation.group import Group
from tests.simulation.history import Fold, History
from tests.simulation.load import Application, word_of
from tests.simulation.plan import Plan, VolumePlan
from tests.simulation.scheduler import Process, Scheduler, SimulationError
from tests.simulation.services import Machine, Service, capture_main, cx_main, publisher_main, target_main
from tests.simulation.shared_memory import watch
from tests.simulation.sockets import Server
from tests.simulation.store import SimulatedStore
from tests.simulation.threads import Clock

STORY_LINES_MAX = 4000
PARKED = frozenset(("volume_parked", "target_stops", "persist_error_IntegrityError", "persist_error_ConfigError", "fenced"))


class World(logging.Handler):
    """Everything of one run. Made in a process of its own, for the stand-ins stay in place."""

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        super().__init__(logging.DEBUG if verbose else logging.WARNING)
        self.plan = plan
        self.scheduler = Scheduler(random.Random(plan.seed))
        self.scheduler.switch_every = plan.switch_every
        self.clock = Clock(self.scheduler)
        self.files = FileSystem(self.scheduler, self.clock.time_ns)
        self.cluster = Cluster(self.scheduler)
        stand_ins.put_in_place(self.scheduler, self.clock, self.files, self.cluster)
        self._patch()
        self.checker = Checker(self.files)
        self.bookmarks = Bookmarks(self)
        self.cluster.appended = self._appended
        self.files.fsynced = self.checker.fsynced
        self.store = SimulatedStore(self.scheduler)
        self.group = Group(self.scheduler, self.cluster)
        self.group.passed_over = plan.passed_over
        self.host = Machine(self.scheduler, "host")
        self.target = Machine(self.scheduler, "target")
        self.operator = Machine(self.scheduler, "operator")
        self.services: dict[str, Service] = {}
        self.reports: dict[tuple[str, str], dict[str, Any]] = {}
        self.story: deque[str] = deque(maxlen=None if verbose else STORY_LINES_MAX)
        self.counts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.load_over = False
        self.application: Process | None = None
        self._ticks = 0
        self._number = 1
        self._log_to_story(verbose)

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run to the end. Raises SimulationError with what was found; `story` tells how it came."""
        director = Director(self)
        self._make_services()
        process = self.scheduler.process("director", self.operator)
        process.spawn("main", director.run)
        self.scheduler.run()
        return {
            "virtual_s": round(self.scheduler.now, 1),
            "steps": self.scheduler.steps,
            "faults": dict(director.counts),
            "records": sum(len(epoch.entries) for one in self.checker.volumes.values() for epoch in one.history.epochs.values()),
            "epochs": sum(len(one.history.claims) for one in self.checker.volumes.values()),
            "labels": sum(one.replica.labels for one in self.checker.volumes.values()),
            "seen": dict(self.seen),
            "healed_s": round(director.healed_s, 1),
        }

    def set_up(self) -> None:
        """Make disks, topics and declarations; called by the director."""
        for machine in (self.host, self.target, self.operator, *(service.machine for service in self.services.values())):
            self.files.folders.update((f"/{machine.name}", f"/{machine.name}/state"))
        self.files.folders.update(("/host/disk", "/host/ram", "/target/disk"))
        config = self.plan.config.kafka
        topics, control = Topics(config), ControlWriter(config)
        topics.ensure(shared_topics(config))
        for one in self.plan.volumes:
            self._make_source(one)
            topics.ensure(data_topics(one.name, config))
            self.declare(control, one)
        control.close()

    def declare(self, control: ControlWriter, one: VolumePlan, state: str = "active") -> None:
        """Write a volume's declaration."""
        replica = Replica(self.plan.config.target.name, f"/target/disk/{one.name}")
        control.put(
            VolumeDeclaration(
                one.name, "host", f"/host/disk/{one.name}", one.size_bytes, state, one.flush_policy, one.codec, (replica,),
                self.clock.time_ns()
            )
        )

    def start_application(self) -> None:
        """Start the threads of all volumes' applications; they die with the host and are started again with it."""
        self.application = self.scheduler.process(f"application.{self._ticks}", self.host)
        for one in self.plan.volumes:
            for index in range(one.threads):
                self.application.spawn(f"{one.name}-{index}", Application(self, one, index + self._ticks).run)

    def tick(self) -> int:
        """Return a time that no two calls share."""
        self._ticks += 1
        return self._ticks

    def next_number(self) -> int:
        """Return the number of a new write."""
        self._number += 1
        return self._number

    def ring(self, volume: str) -> Any:
        """Return the bytes of a volume's ring, None if there is none."""
        path = f"/host/ram/hostoffload/{volume}.ring"
        inode = self.files.volume(path).names.get(path)
        return None if inode is None else inode.data

    def mode(self, volume: str) -> int:
        """Return a volume's mode as its ring says it."""
        ring = self.ring(volume)
        return 0 if ring is None else word_of(ring, "W_MODE")

    # -- the story -----------------------------------------------------------------------------------------------------

    def told(self, what: str, **fields: Any) -> None:
        """Add a line to the story."""
        told = " ".join(f"{key}={value}" for key, value in fields.items())
        self.story.append(f"{self.scheduler.now:9.4f} {what} {told}")

    def emit(self, record: logging.LogRecord) -> None:
        """Hear what the product logs; some of it must not happen."""
        fields = {key: value for key, value in getattr(record, "fields", {}).items() if value is not None and key != "hint"}
        name = record.getMessage()
        current = self.scheduler.current
        self.told(f"[{current.process.name if current is not None else '-'}] {name}", **fields)
        self.counts[name] += 1
        if record.exc_info:
            if isinstance(record.exc_info[1], SimulationError):  # found by the checker, in a thread that survives errors
                self.scheduler.fail(record.exc_info[1])
            told = (self.formatter or logging.Formatter()).formatException(record.exc_info)
            self.scheduler.fail(SimulationError(f"{name}:\n{told}"))
        elif name in PARKED and record.levelno >= logging.ERROR:
            self.scheduler.fail(SimulationError(f"{name}: {fields}"))

    def reported(self, kind: str, instance: str, volumes: dict[str, Any]) -> None:
        self.reports[kind, instance] = volumes

    # -- inside --------------------------------------------------------------------------------------------------------

    def _patch(self) -> None:
        agent.capture.Server = type("Server", (Server,), {"scheduler": self.scheduler})
        Reporter.report = lambda reporter, volumes: self.reported(reporter._kind, reporter._instance, dict(volumes))
        watch(self)
        agent.generations.CLEAR_AFTER_S = self.plan.clear_after_s
        agent.capture.SWEEP_INTERVAL_S = agent.activity_log.SWEEP_INTERVAL_S = min(1.0, self.plan.clear_after_s / 4)

    def _make_services(self) -> None:
        config = self.plan.config
        for name, main in (("capture", capture_main(config, "host")), ("publisher", publisher_main(config, "host"))):
            self.services[name] = Service(self.scheduler, self.host, name, main, self.told)
        self.services["target"] = Service(self.scheduler, self.target, "target", target_main(config, "target"), self.told)
        for index in range(self.plan.cx_workers):
            machine = Machine(self.scheduler, f"cx{index}")
            main = cx_main(config, self.scheduler, self.group, self.store, machine.name, self._cx_crashed)
            self.services[machine.name] = Service(self.scheduler, machine, machine.name, main, self.told)

    def _appended(self, topic: Topic, message: Stored) -> None:
        self.checker.appended(topic, message)
        self.bookmarks.appended(topic, message)

    def _cx_crashed(self, error: BaseException) -> None:
        self.scheduler.fail(SimulationError("a CX worker crashed:\n" + "".join(traceback.format_exception(error))))

    def _make_source(self, one: VolumePlan) -> None:
        path = f"/host/disk/{one.name}"
        inode = self.files.create(path)
        sectors = one.size_bytes // SECTOR_BYTES
        filled = int(sectors * one.filled)
        inode.resize(one.size_bytes)
        if filled:
            inode.put(0, stamped(1, 0, filled))
        inode.flush()
        inode.punches = one.punches
        self.files.volume(path).commit()
        history = History(one.name, one.size_bytes, inode)
        replica = WatchedReplica(f"/target/disk/{one.name}", f"/target/state/target/{one.name}.json", Fold(history))
        known = Sectors(one.name, sectors, [1] * filled + [0] * (sectors - filled))
        inode.flush_failed = known.doubt
        watched = self.checker.volumes[one.name] = Watched(one.name, history, known, replica, one.flush_policy)
        history.synced = lambda position: self.checker.synced(watched, position)
        history.heard = lambda position, entry: self.bookmarks.captured(one.name, position, entry)

    def _log_to_story(self, verbose: bool) -> None:
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.DEBUG if verbose else logging.WARNING)
