"""The application: threads that write, zero, trim, flush and read a volume over NBD, several requests at a time, and know what they did."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent import ring as layout
from tests.simulation import line as nbd
from tests.simulation.application import Operation, stamped
from tests.simulation.checker import Watched
from tests.simulation.disk import SECTOR_BYTES
from tests.simulation.history import Position
from tests.simulation.plan import VolumePlan
from tests.simulation.scheduler import SimulationError

if TYPE_CHECKING:
    from tests.simulation.world import World

BURST_MAX = 4
RETRY_S = 0.05
TRICKLE_S = 0.3  # between two bursts of a thread that has done its share
_DATA = 2
MODES = ("OFFLINE", "SYNC", "DATA", "BITMAP", "RESYNC")


@dataclass(slots=True)
class _Asked:
    """One request under way."""

    kind: str
    began: int
    operation: Operation | None = None
    fua: bool = False
    first: int = 0
    covers: Position = (0, 0)
    mode_changes: int = -1
    since: int = 0
    """How often the mode had changed when it was asked for."""


class Application:
    """One thread of the application of a volume."""

    def __init__(self, world: World, plan: VolumePlan, index: int) -> None:
        self._world = world
        self._plan = plan
        self._watched: Watched = world.checker.volumes[plan.name]
        self._sectors = plan.size_bytes // SECTOR_BYTES
        self._rng = random.Random(f"{world.plan.seed}/{plan.name}/{index}")
        self.done = 0
        self._enough = world.plan.operations_max // (2 * plan.threads * len(world.plan.volumes))
        self._hot = self._rng.randrange(self._sectors)

    def run(self) -> None:
        """Work until the world says that it is enough; connect again whenever the connection is lost."""
        world = self._world
        while not world.load_over:
            line = nbd.Line(world.host.listener.connect())
            try:
                line.negotiate(self._plan.name)
                while not world.load_over:
                    self._burst(line)
                    pause_s = world.plan.pause_s if self.done < self._enough else TRICKLE_S
                    world.scheduler.sleep(pause_s * self._rng.expovariate(1.0), "think")
            except nbd.LostError:
                world.scheduler.sleep(RETRY_S * self._rng.random(), "reconnect")
            finally:
                line.leave()

    def _burst(self, line: nbd.Line) -> None:
        asked: dict[int, _Asked] = {}
        reads: dict[int, int] = {}
        for _ in range(self._rng.choice((1, 1, 2, BURST_MAX))):
            self._ask(line, asked, reads)
        while asked:
            cookie, error, data = line.reply(reads)
            self._answered(asked.pop(cookie), error, data)
        self.done += 1

    def _ask(self, line: nbd.Line, asked: dict[int, _Asked], reads: dict[int, int]) -> None:
        rng, world = self._rng, self._world
        mixed = world.plan.mixed
        kinds = ("write", "zero", "trim", "flush", "read")
        kind = rng.choices(kinds, [mixed[one] for one in kinds])[0]
        one = _Asked(kind, world.tick(), since=self._watched.history.mode_changes)
        if kind == "flush":
            self._note_promise(one)
            asked[line.request(nbd.FLUSH)] = one
            return
        first, count = self._extent()
        one.first = first
        offset, length = first * SECTOR_BYTES, count * SECTOR_BYTES
        if kind == "read":
            count = min(count, 32)
            cookie = line.request(nbd.READ, offset, count * SECTOR_BYTES)
            reads[cookie] = count * SECTOR_BYTES
        else:
            one.fua = rng.random() < mixed["fua"]
            if one.fua:
                self._note_promise(one)
            number = world.next_number() if kind == "write" else 0
            one.operation = self._watched.sectors.begin(number, first, count, one.began, world.services["capture"].process)
            flags = nbd.FUA if one.fua else 0
            if kind == "write":
                cookie = line.request(nbd.WRITE, offset, length, flags, stamped(number, first, count))
            elif kind == "zero":
                cookie = line.request(nbd.ZEROES, offset, length, flags | (nbd.NO_HOLE if rng.random() < 0.5 else 0))
            else:
                cookie = line.request(nbd.TRIM, offset, length, flags)
        asked[cookie] = one

    def _extent(self) -> tuple[int, int]:
        rng = self._rng
        low, high = self._world.plan.write_sectors
        count = min(rng.randint(low, high), self._sectors)
        if rng.random() < self._world.plan.hot_share:
            first = (self._hot + rng.randint(-16, 16)) % self._sectors
        else:
            first = rng.randrange(self._sectors)
        return min(first, self._sectors - count), count

    def _note_promise(self, one: _Asked) -> None:
        """Remember what this flush covers, and whether the mode is DATA now."""
        one.covers = self._watched.acknowledged
        if self._watched.flush_policy == "stream" and self._world.mode(self._plan.name) == _DATA:
            one.mode_changes = self._watched.history.mode_changes

    def _answered(self, one: _Asked, error: int, data: bytes) -> None:
        world, watched = self._world, self._watched
        now = world.tick()
        if one.operation is not None:
            one.operation.answered = True
        if error:
            world.told("request failed", volume=self._plan.name, kind=one.kind, errno=error)
            return
        if one.kind == "read":
            watched.sectors.check_read(data, one.first, one.began, now)
            return
        position: Position | None = None
        if one.operation is not None:
            ignored = one.kind == "trim" and not self._plan.punches
            if ignored:
                one.operation.count = 0  # nothing was changed
            one.operation.ended, one.operation.acknowledged = now, True
            if one.kind == "write":
                position = self._captured(one)
        if one.kind == "flush":
            watched.sectors.flushed(one.began, now)
        elif one.fua and not one.operation.doubtful:
            one.operation.safe_at = now
        if one.kind == "flush" or one.fua:
            self._promised(one, position)

    def _captured(self, one: _Asked) -> Position | None:
        """A write acknowledged in DATA is recorded, and whole; in any other mode it may be owed instead, and copied by and by."""
        watched, number = self._watched, one.operation.number
        in_order = watched.history.mode_changes == one.since and self._world.mode(self._plan.name) == _DATA
        position = watched.history.where.get(number)
        if position is None:
            if in_order:
                raise SimulationError(f"volume {self._plan.name}: write {number} was acknowledged and has no position")
            return None
        if in_order:
            extent = (one.first * SECTOR_BYTES, one.operation.count * SECTOR_BYTES)
            if (found := watched.history.whole_write(position)) != extent:
                raise SimulationError(f"volume {self._plan.name}: write {number} of {extent} is recorded as {found}")
        watched.acknowledged = max(watched.acknowledged, position)
        return position

    def _promised(self, one: _Asked, position: Position | None) -> None:
        watched = self._watched
        kept = watched.history.mode_changes == one.mode_changes and self._world.mode(self._plan.name) == _DATA
        if watched.flush_policy == "stream" and kept:
            covers = position if one.fua and position is not None else (0, 0) if one.fua else one.covers
            self._world.checker.promised(watched, covers, f"a {'FUA ' + one.kind if one.fua else 'flush'} under stream")


def word_of(ring: Any, name: str) -> int:
    """Return a word of a ring by its name in the layout."""
    at = getattr(layout, name) * 8
    return int.from_bytes(ring[at : at + 8], "little")
