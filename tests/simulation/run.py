"""Run seeds, each in a process of its own that is forked from a warm one; its stand-ins end with it."""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tests.simulation import canaries, stand_ins
from tests.simulation.plan import plan_of
from tests.simulation.world import World

SEED_S_MAX = 180.0  # of real time; a run takes well below a second
STORY_LINES = 120
WITHOUT = "without:"


@dataclass(slots=True)
class Outcome:
    """What became of a seed."""

    seed: int
    canary: str | None = None
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


def run_here(seed: int, canary: str | None = None, *, verbose: bool = False) -> Outcome:
    """Run a seed in this process, which is of no other use afterwards; with a canary's name its bug is planted first.

    With `without:` before the name the run is the same, its bug is not planted.
    """
    outcome = Outcome(seed, canary)
    began_s = time.process_time()
    gc.disable()
    world: World | None = None
    try:
        known = canaries.CANARIES[canary.removeprefix(WITHOUT)] if canary is not None else None
        world = World(plan_of(seed) if known is None else replace(plan_of(seed, emphasis=known.faults), **known.settings), verbose=verbose)
        if known is not None and not canary.startswith(WITHOUT):
            known.plant()
        outcome.facts = world.run()
    except BaseException as error:
        outcome.error = str(error) if type(error).__name__ == "SimulationError" else "".join(traceback.format_exception(error))
    if world is not None:
        outcome.story = list(world.story) if verbose else list(world.story)[-STORY_LINES:]
    outcome.cpu_s = time.process_time() - began_s
    return outcome


def run_all(
    wanted: Iterable[tuple[int, str | None]], jobs: int, *, enough: Callable[[Outcome], bool] = lambda outcome: False
) -> Iterator[Outcome]:
    """Run seeds in that many processes at once; yield each outcome as it comes, until `enough` says so of one."""
    stand_ins.load_product()
    gc.collect()
    gc.freeze()
    waiting = iter(wanted)
    running: dict[int, _Child] = {}
    over = False
    with selectors.DefaultSelector() as selector:
        while True:
            while not over and len(running) < jobs and (one := next(waiting, None)) is not None:
                child = _Child(*one)
                running[child.fd] = child
                selector.register(child.fd, selectors.EVENT_READ)
            if not running:
                return
            for key, _ in selector.select(1.0):
                child = running[key.fd]
                if not child.read():
                    selector.unregister(key.fd)
                    del running[key.fd]
                    outcome = child.outcome()
                    over = over or enough(outcome)
                    yield outcome
            for child in running.values():
                child.end_if_late()


class _Child:
    """One forked process."""

    def __init__(self, seed: int, canary: str | None) -> None:
        self._seed = seed
        self._canary = canary
        self._told = b""
        self._began_s = time.monotonic()
        self.fd, theirs = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self.fd)
            _work(theirs, seed, canary)
        os.close(theirs)

    def read(self) -> bool:
        """Take what the child says; tell whether there may be more."""
        part = os.read(self.fd, 1 << 20)
        self._told += part
        return bool(part)

    def end_if_late(self) -> None:
        if time.monotonic() - self._began_s > SEED_S_MAX:
            os.kill(self._pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        os.close(self.fd)
        _, status = os.waitpid(self._pid, 0)
        try:
            return Outcome(**json.loads(self._told))
        except ValueError:
            return Outcome(self._seed, self._canary, f"the process ended without a verdict, status {status}")


def _work(fd: int, seed: int, canary: str | None) -> None:
    """Be the child; never returns."""
    try:
        told = json.dumps(asdict(run_here(seed, canary))).encode()
        with os.fdopen(fd, "wb") as out:
            out.write(told)
    finally:
        os._exit(0)
