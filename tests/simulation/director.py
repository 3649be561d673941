"""The director: brings everything up, lets faults happen while the application works, heals, and demands that all comes right."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from stream.control import ControlWriter
from tests.simulation.faults import Faults
from tests.simulation.history import Position
from tests.simulation.load import MODES, word_of
from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from tests.simulation.world import World

UP_S_MAX = 60.0
HEAL_S_MAX = 120.0
FINISH_S_MAX = 60.0


class Director:
    """The thread that drives a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"{world.plan.seed}/director")
        self.counts: Counter[str] = Counter()
        self.healed_s = 0.0

    def run(self) -> None:
        """Drive the run from its setup to its end."""
        world, plan = self._world, self._world.plan
        world.set_up()
        control = ControlWriter(plan.config.kafka)
        for service in self._in_any_order():
            service.start()
            world.scheduler.sleep(0.05 * self._rng.random())
        world.start_application()
        faults = Faults(world, control, self._rng, self.counts)
        until_s = world.scheduler.now + plan.load_s
        world.scheduler.sleep(self._rng.random() * 1.5)
        while world.scheduler.now < until_s:
            if plan.faults:
                faults.happen()
            world.scheduler.sleep(plan.fault_every_s * self._rng.expovariate(1.0))
        self._heal(faults)
        self._converge()
        world.checker.finish(world.store, world.reports)
        world.bookmarks.finish()
        world.told("all is well")
        world.scheduler.over = True
        world.scheduler.hub.switch()

    def _heal(self, faults: Faults) -> None:
        world = self._world
        world.told("heal")
        faults.heal()
        world.scheduler.sleep(self._rng.random() * 2.0)  # some of the load goes on after the faults
        world.load_over = True
        began_s = world.scheduler.now
        while world.application is not None and world.application.tasks:
            if world.scheduler.now - began_s > FINISH_S_MAX:
                raise SimulationError(f"the application does not come to its end\n{self._told()}")
            world.scheduler.sleep(0.1)

    def _converge(self) -> None:
        """Wait until nothing is on its way. Raises SimulationError when that takes too long."""
        world = self._world
        began_s = world.scheduler.now
        goals: dict[str, Position] = {}
        while not all(self._has_converged(name, goals) for name in world.checker.volumes):
            if world.scheduler.now - began_s > HEAL_S_MAX:
                raise SimulationError(f"the lag does not reach zero within {HEAL_S_MAX:.0f} s of healing\n{self._told()}")
            world.scheduler.sleep(0.1)
        self.healed_s = world.scheduler.now - began_s

    def _has_converged(self, name: str, goals: dict[str, Position]) -> bool:
        world = self._world
        ring, watched = world.ring(name), world.checker.volumes[name]
        if ring is None or not watched.history.claims:
            return False
        told = world.reports.get(("capture", "host"), {}).get(name)
        if told is None or told[1].get("owed_bytes") != 0 or word_of(ring, "W_MODE") != MODES.index("DATA"):
            goals.pop(name, None)
            return False
        goal = goals.setdefault(name, (word_of(ring, "W_EPOCH"), word_of(ring, "W_HEAD")))
        at = watched.replica.consistent_at
        return at is not None and at >= goal and self._stored(name) >= at

    def _stored(self, name: str) -> Position:
        """Return the last position of the store, by the names of its segments."""
        ends = [one.rpartition("_")[2].removesuffix(".avro") for one in self._world.store.objects if one.startswith(f"{name}/")]
        if not ends:
            return (0, 0)
        epoch, _, sequence = max(ends).partition("-")
        return int(epoch), int(sequence)

    def _in_any_order(self) -> list:
        services = list(self._world.services.values())
        self._rng.shuffle(services)
        return services

    def _told(self) -> str:
        """Say how everything stands."""
        world = self._world
        lines = []
        for name, watched in world.checker.volumes.items():
            ring = world.ring(name)
            names = ("W_MODE", "W_EPOCH", "W_HEAD", "W_ACKED", "W_FENCED", "W_LOST")
            words = {} if ring is None else {one: word_of(ring, one) for one in names}
            lines.append(f"{name}: {words} journaled {watched.journaled} replica {watched.replica.at} label {watched.replica.consistent_at}"
                         f" stored {self._stored(name)}")  # fmt: skip
        for key, volumes in world.reports.items():
            lines.append(f"{key}: {volumes}")
        return "\n".join([*lines, world.scheduler.dump()])
