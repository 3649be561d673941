"""The services as processes of simulated machines: the product's own mains, and a supervisor that starts again what ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import agent.capture
import agent.publisher
import cx_consumers.target
from cx_consumers.asks import Asks
from cx_consumers.assigned import AssignedVolumes
from cx_consumers.broker import KafkaBroker
from cx_consumers.declared import DeclaredVolumes
from cx_consumers.intake import Acknowledgements, Intake
from cx_consumers.ordering import Shared
from stream.config import Config
from stream.control import ControlWriter
from stream.errors import HostoffloadError
from stream.topics import Topics
from tests.simulation.group import Group, Loop, Member
from tests.simulation.paths import SimulatedPath
from tests.simulation.scheduler import LineFuse, Process, Scheduler
from tests.simulation.sockets import Listener

RESTART_S_MAX = 0.6
CLEAN_STOP_S_MAX = 25.0


class Machine:
    """A computer: its disk is the first folder of its name, its wall clock is `skew_s` ahead of the others'."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name = name
        self.skew_s = 0.0
        self.up = True
        self.listener = Listener(scheduler)


class Service:
    """A program that should run on a machine: started again whenever it ended, unless it is stopped."""

    def __init__(self, scheduler: Scheduler, machine: Machine, name: str, main: Callable[[], Any], told: Callable[..., None]) -> None:
        self.scheduler = scheduler
        self.machine = machine
        self.name = name
        self.wanted = False
        self.process: Process | None = None
        self.starts = 0
        self._main = main
        self._tell = told

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """Run it from now on."""
        self.wanted = True
        if self.running or not self.machine.up:
            return
        self.starts += 1
        self.process = process = self.scheduler.process(f"{self.name}.{self.starts}", self.machine)
        process.on_fuse = self.kill
        self._tell("started", process=process.name)
        process.spawn("main", lambda: self._run(process))

    def kill(self) -> None:
        """SIGKILL; the supervisor starts it again after a while."""
        if not self.running:
            return
        process = self.process
        self._tell("killed", process=process.name)
        self._start_again()
        process.kill()

    def kill_at_a_line(self, lines: int, keep: Callable[[], Callable[[], None]]) -> None:
        """Have it killed a few lines of code from now, if its running thread gets that far."""
        if self.running and self.scheduler.current is not None and self.scheduler.current.process is self.process:
            process = self.process

            def ended() -> None:
                self._tell("killed at a line", process=process.name)
                self._start_again()

            process.closers.append(ended)
            LineFuse(process, lines, keep).arm()

    def stop(self) -> bool:
        """SIGTERM, and wait for the end; SIGKILL if it does not come. Tell whether it ended by itself."""
        self.wanted = False
        if not self.running:
            return True
        process = self.process
        handler = process.handlers.get(signal.SIGTERM)
        self._tell("stopping", process=process.name)
        if handler is not None:
            handler(signal.SIGTERM, None)
        until_s = self.scheduler.now + CLEAN_STOP_S_MAX
        while process.alive and self.scheduler.now < until_s and handler is not None:
            self.scheduler.sleep(0.02)
        clean = not process.alive
        process.kill()
        self._tell("stopped", process=process.name, clean=clean)
        return clean

    def _run(self, process: Process) -> None:
        result: object = None
        try:
            result = self._main()
        except (HostoffloadError, OSError) as error:
            result = error
        self._tell("ended", process=process.name, result=result)
        self._start_again()
        process.kill()

    def _start_again(self) -> None:
        rng = self.scheduler.rng
        self.scheduler.at(self.scheduler.now + RESTART_S_MAX * rng.random() ** 2, lambda: self.wanted and self.start())


def capture_main(config: Config, machine: str) -> Callable[[], Any]:
    state, ring = SimulatedPath(f"/{machine}/state"), SimulatedPath(f"/{machine}/ram/hostoffload")
    return lambda: agent.capture.run(config, state, ring, [])


def publisher_main(config: Config, machine: str) -> Callable[[], Any]:
    state, ring = SimulatedPath(f"/{machine}/state"), SimulatedPath(f"/{machine}/ram/hostoffload")
    return lambda: agent.publisher.run(config, state, ring)


def target_main(config: Config, machine: str) -> Callable[[], Any]:
    return lambda: cx_consumers.target.run(config, SimulatedPath(f"/{machine}/state"))


def cx_main(
    config: Config, scheduler: Scheduler, group: Group, store: Any, name: str, fail: Callable[[BaseException], None]
) -> Callable[[], Any]:
    """Return a CX worker's main: what `cx_consumers.app.Worker` is, less Faust and asyncio."""

    def run() -> int:
        process = scheduler.current.process
        loop = Loop(scheduler)
        topics, control = Topics(config.kafka), ControlWriter(config.kafka)
        asks = Asks(control.put, name)
        intake = Intake(config.cx.pipeline_bytes_max, loop)
        wanted: list[frozenset[str]] = [frozenset()]
        over: list[int] = []
        process.handlers[signal.SIGTERM] = lambda *_: (over.append(0), loop.call_soon_threadsafe(lambda: None))

        def declared_are(volumes: frozenset[str]) -> None:
            wanted[0] = volumes
            loop.call_soon_threadsafe(lambda: None)

        declared = DeclaredVolumes(config.kafka, topics, config.cx.codec, declared_are, lambda: volumes.workers())
        shared = Shared(KafkaBroker(config.kafka, topics), name, asks, Acknowledgements(loop))
        volumes = AssignedVolumes(config, intake, shared, store, declared.codec, fail)
        member = Member(group, process, loop, intake, volumes.assign)
        asks.start()
        declared.start()
        group.join(member)
        while not over:
            volumes.keep(wanted[0])
            group.want(set(wanted[0]))
            member.follow()
            loop.run_once(0.25)
        declared.stop()
        volumes.stop(2.5)
        group.leave(member)
        asks.stop(0.5)
        return 0

    return run
