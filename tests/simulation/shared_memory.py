"""The words of rings and pool as simulated processes see them: each store is a place where a process may be killed or another go on.

They are also where the true history is taken from: a store of the head shows new records, one of the claim a new epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import agent.memory
from agent import ring as layout
from tests.simulation.disk import Mapping
from tests.simulation.load import MODES

if TYPE_CHECKING:
    from tests.simulation.world import World

SHOWN = {
    layout.W_COMPARE: "compare",
    layout.W_CLEAN: "clean",
    layout.W_RELAPSES: "relapses",
    layout.W_LOST: "lost",
    layout.W_STOPPED: "stopped",
}


class Words:
    """`agent.memory.SharedFile.words`."""

    __slots__ = ("_hook", "_point", "_words")

    def __init__(self, words: Any, point: Any, hook: Any) -> None:
        self._words = words
        self._point = point
        self._hook = hook

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._point()
        before = self._words[index]
        self._words[index] = value
        if self._hook is not None:
            self._hook(index, before, value)

    def __len__(self) -> int:
        return len(self._words)

    def release(self) -> None:
        self._words.release()


def watch(world: World) -> None:
    """Have every mapped file of this process's run show its words that way."""
    plain_init = agent.memory.SharedFile.__init__

    def init(self: Any, path: Any, fd: int, size_bytes: int) -> None:
        plain_init(self, path, fd, size_bytes)
        hook = _ring_hook(world, path, self._map) if path.suffix in (".ring", ".new") else None
        self.words = Words(self.words, world.scheduler.point, hook)

    agent.memory.SharedFile.__init__ = init


def _ring_hook(world: World, path: Any, ring: Mapping) -> Any:
    volume, pool_path = path.stem, str(path.parent / "pool")

    def hook(index: int, before: int, value: int) -> None:
        if index == layout.W_HEAD:
            claimed = _word(ring, layout.W_CLAIMED) == layout.CLAIM_DONE
            if claimed and before != value:
                history = world.checker.volumes[volume].history
                history.captured(ring, world.files.lookup(pool_path).data, _word(ring, layout.W_EPOCH), before, value)
        elif index == layout.W_CLAIMED and value == layout.CLAIM_DONE and before != value:
            incarnation = ring[layout.W_INCARNATION * 8 : layout.W_INCARNATION * 8 + 8]
            watched = world.checker.volumes[volume]
            watched.history.claimed(_word(ring, layout.W_EPOCH), _word(ring, layout.W_HEAD), bytes(incarnation))
            watched.acknowledged = (0, 0)
        elif index == layout.W_MODE and before != value:
            world.checker.volumes[volume].history.mode_changes += 1
            world.told("mode", volume=volume, before=MODES[before], now=MODES[value])
            world.seen[MODES[value]] += 1
        elif index in SHOWN and before != value:
            world.seen[f"{SHOWN[index]} {value}"] += 1

    return hook


def _word(ring: Mapping, index: int) -> int:
    return int.from_bytes(ring[index * 8 : index * 8 + 8], "little")


def keep_rings(world: World) -> Any:
    """Return what undoes every later change of the rings' memory: for a process that is killed between two lines."""
    volume = world.files.volumes[world.host.name]
    kept = [(inode.data, bytes(inode.data)) for path, inode in volume.names.items() if path.endswith(".ring")]

    def undo() -> None:
        for data, before in kept:
            data[:] = before

    return undo
