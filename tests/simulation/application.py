"""What an application knows about a volume: for every sector, which of its operations may be what stands there.

Every written sector names its operation and its own place. An operation lasts from its request to its reply; one without a good reply may
take effect at any later time, or never. Of overlapping operations that were under way together either may win.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.simulation.disk import SECTOR_BYTES
from tests.simulation.scheduler import Process, SimulationError

_STAMP = struct.Struct("<QQ")
_REPEATS = SECTOR_BYTES // _STAMP.size
NEVER = 1 << 62
NOTHING = 0


@dataclass(slots=True)
class Operation:
    """A change of an extent of sectors: `number` is 0 for zeroes. Times are the scheduler's steps."""

    number: int
    first: int
    count: int
    began: int
    ended: int = NEVER
    acknowledged: bool = False
    safe_at: int = NEVER  # when a flush, or its own FUA, was answered that covers it
    server: Process | None = None  # that was asked
    answered: bool = False
    doubtful: bool = False  # a flush failed before one covered it: no later one does


@dataclass(slots=True)
class Sectors:
    """The operations on one volume, and what its sectors were before them."""

    volume: str
    count: int
    baseline: list[int] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def begin(self, number: int, first: int, count: int, now: int, server: Process | None = None) -> Operation:
        operation = Operation(number, first, count, now, server=server)
        self.operations.append(operation)
        return operation

    def flushed(self, began: int, now: int) -> None:
        """Hear that a flush that was asked for at `began` is answered: what was answered before it is safe."""
        for operation in self.operations:
            if operation.acknowledged and operation.ended <= began and operation.safe_at == NEVER and not operation.doubtful:
                operation.safe_at = now

    def doubt(self) -> None:
        """Hear that a flush of the source failed: the disk may never get what was not flushed until now, and says so only once."""
        for operation in self.operations:
            if operation.safe_at == NEVER:
                operation.doubtful = True

    def on_their_way(self) -> set[int]:
        """Return the sectors that an operation may be changing right now."""
        flying = [one for one in self.operations if not one.answered and one.server is not None and one.server.alive]
        return {sector for one in flying for sector in range(one.first, one.first + one.count)}

    def check(self, data: bytes | bytearray, *, what: str, safe_only: bool = False) -> list[int]:
        """Compare a whole image with what may stand there; return its numbers.

        With `safe_only` only what a flush covers must be there (the power was cut). Raises SimulationError.
        """
        latest = [-1] * self.count  # of what must be there: when the last of it began
        for operation in self.operations:
            if operation.safe_at != NEVER if safe_only else operation.acknowledged and not operation.doubtful:
                for sector in range(operation.first, operation.first + operation.count):
                    if operation.began > latest[sector]:
                        latest[sector] = operation.began
        ended: list[dict[int, int]] = [{number: -1} for number in self.baseline]
        for operation in self.operations:
            for sector in range(operation.first, operation.first + operation.count):
                known = ended[sector].get(operation.number, -1)
                ended[sector][operation.number] = max(known, operation.ended)
        found = []
        for sector in range(self.count):
            number = number_of(data, sector)
            if number is None or number not in ended[sector]:
                raise self._wrong(what, sector, f"holds {_shown(data, sector)}, which nobody wrote there")
            if ended[sector][number] < latest[sector]:
                raise self._wrong(what, sector, f"holds {number}, which a later acknowledged operation replaced")
            found.append(number)
        return found

    def check_read(self, data: bytes, first: int, began: int, now: int) -> None:
        """Compare what a read returned with what may have stood there while it ran."""
        count = len(data) // SECTOR_BYTES
        near = [one for one in self.operations if one.first < first + count and first < one.first + one.count]
        for index in range(count):
            sector = first + index
            mine = [one for one in near if one.first <= sector < one.first + one.count]
            number = number_of(data, index, sector)
            replaced = max((one.began for one in mine if one.acknowledged and not one.doubtful and one.ended < began), default=-1)
            possible = {one.number for one in mine if one.ended >= replaced}
            if replaced < 0:
                possible.add(self.baseline[sector])
            if number not in possible:
                raise self._wrong("a read", sector, f"returned {number}, possible were {sorted(possible)}")

    def rebase(self, numbers: list[int]) -> None:
        """Begin again from what stands there: the power was cut, or nobody asks for what came before."""
        self.baseline = numbers
        self.operations.clear()

    def _wrong(self, what: str, sector: int, told: str) -> SimulationError:
        return SimulationError(f"volume {self.volume}: {what}: sector {sector} {told}")


def stamped(number: int, first: int, count: int) -> bytes:
    """Return the payload of an operation's sectors."""
    if not number:
        return bytes(count * SECTOR_BYTES)
    return b"".join([_STAMP.pack(number, sector) * _REPEATS for sector in range(first, first + count)])


def number_of(data: bytes | bytearray, index: int, sector: int | None = None) -> int | None:
    """Return whose sector stands at `index`, None if it is nobody's; `sector` is its place on the volume if that is another."""
    at = index * SECTOR_BYTES
    number, place = _STAMP.unpack_from(data, at)
    if data[at : at + SECTOR_BYTES] != _STAMP.pack(number, place) * _REPEATS:
        return None
    return number if place == (0 if not number else index if sector is None else sector) else None


def _shown(data: bytes | bytearray, sector: int) -> str:
    return bytes(data[sector * SECTOR_BYTES : sector * SECTOR_BYTES + 32]).hex()
