"""The baton: exactly one simulated thread runs, and the seed decides who goes on and how far the virtual clock moves.

A simulated thread is a greenlet. It gives the baton away only inside a stand-in (`threads`, `filesystem`, `cluster`, ...): each of
their calls is a scheduling point. A process that is killed is never resumed and never unwound, so nothing of its `finally` blocks happens.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import greenlet

STEPS_MAX = 4_000_000
STALL_S_MAX = 0.03
_TICK_S = 2e-6
_ROOT = f"{Path(__file__).parents[2]}/"


class SimulationError(Exception):
    """The run found something wrong; the text is the story's last line."""


class Task:
    """One simulated thread."""

    __slots__ = ("dead", "finished", "greenlet", "name", "parked", "process", "turn", "waits", "why", "woken")

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.greenlet: greenlet.greenlet
        self.dead = False
        self.finished = False
        self.parked = False
        self.woken = False
        self.turn = 0
        self.why = ""
        self.waits = 0


class Process:
    """What is killed, frozen and started again as one: a program on a machine, its threads and its open files.

    `fuse` counts scheduling points of its threads down; at zero `on_fuse` is called, which usually kills it. `closers` let go of what
    the kernel would.
    """

    def __init__(self, scheduler: Scheduler, name: str, machine: Any) -> None:
        self.scheduler = scheduler
        self.name = name
        self.machine = machine
        self.tasks: list[Task] = []
        self.alive = True
        self.frozen = False
        self.iced: list[Task] = []
        self.fuse = 0
        self.on_fuse: Callable[[], None] = self.kill
        self.doomed: Callable[[], None] | None = None
        self.closers: list[Callable[[], None]] = []
        self.handlers: dict[int, Callable[..., None]] = {}
        self.on_end: Callable[[BaseException | None, Any], None] = lambda error, result: None

    def spawn(self, name: str, run: Callable[[], Any]) -> Task:
        """Start a thread of this process."""
        return self.scheduler.spawn(self, name, run)

    def kill(self) -> None:
        """End at once, wherever its threads are."""
        if not self.alive:
            return
        self.alive = False
        for task in self.tasks:
            task.dead = True
        self.iced.clear()
        closers, self.closers = self.closers, []
        for close in closers:
            close()
        if self.scheduler.current is not None and self.scheduler.current.process is self:
            self.scheduler.hub.switch()

    def freeze(self) -> None:
        """Stop (SIGSTOP): none of its threads goes on until `thaw`."""
        self.frozen = True

    def thaw(self) -> None:
        """Continue (SIGCONT)."""
        self.frozen = False
        self.scheduler.ready.extend(self.iced)
        self.iced.clear()


class Scheduler:
    """Run tasks one at a time in an order that follows from the seed alone."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.steps = 0
        self.ready: list[Task] = []
        self.current: Task | None = None
        self.hub = greenlet.getcurrent()
        self.over = False
        self.failure: BaseException | None = None
        self.switch_every = 12.0
        self.stall_chance = 0.002
        self.processes: list[Process] = []
        self.on_crash: Callable[[Task, BaseException], None] = self._crashed
        self._credit = 10
        self._timers: list[tuple[float, int, Task | Callable[[], None], int]] = []
        self._numbers = itertools.count()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def process(self, name: str, machine: Any) -> Process:
        """Make a process without threads."""
        made = Process(self, name, machine)
        self.processes.append(made)
        return made

    def spawn(self, process: Process, name: str, run: Callable[[], Any]) -> Task:
        """Start a thread; it runs when its turn comes."""
        task = Task(process, name)

        def body() -> None:
            try:
                run()
            except SimulationError as error:
                self.fail(error)
            except BaseException as error:
                self.on_crash(task, error)
            task.finished = True
            process.tasks.remove(task)

        task.greenlet = greenlet.greenlet(body, self.hub)
        process.tasks.append(task)
        if process.alive:
            self.ready.append(task)
        else:
            task.dead = True
        return task

    def fail(self, error: BaseException) -> None:
        """End the run with this finding; the first one counts."""
        if self.failure is None:
            self.failure = error
        self.over = True
        if self.current is not None:
            self.hub.switch()

    def _crashed(self, task: Task, error: BaseException) -> None:
        told = "".join(traceback.format_exception(error))
        self.fail(SimulationError(f"thread {task.name} of {task.process.name} ended by an error:\n{told}"))

    # -- scheduling points ---------------------------------------------------------------------------------------------

    def point(self) -> None:
        """Be a place where another thread may go on, or where this process is killed."""
        task = self.current
        if task is None:
            return
        process = task.process
        if process.doomed is not None:
            process.doomed()
        if process.fuse:
            process.fuse -= 1
            if not process.fuse:
                process.on_fuse()
        self._credit -= 1
        if self._credit < 0:
            self._preempt(task)

    def _preempt(self, task: Task) -> None:
        rng = self.rng
        self._credit = int(rng.expovariate(1.0) * self.switch_every)
        if rng.random() < self.stall_chance:
            self.sleep(rng.random() * STALL_S_MAX, "descheduled")
            return
        self.ready.append(task)
        self.hub.switch()

    def park(self, why: str, timeout_s: float | None = None) -> bool:
        """Wait until woken or until the time is over; tell whether woken."""
        task = self.current
        if task is None and timeout_s is not None:  # nobody else runs: the time passes
            self.now += timeout_s
            return False
        if task is None:
            raise SimulationError(f"the setup would block: {why}")
        process = task.process
        if process.doomed is not None:
            process.doomed()
        task.turn += 1
        task.why = why
        task.parked = True
        task.woken = False
        if timeout_s is not None:
            heapq.heappush(self._timers, (self.now + max(0.0, timeout_s), next(self._numbers), task, task.turn))
        self.hub.switch()
        return task.woken

    def wake(self, task: Task) -> None:
        """Let a parked task go on."""
        if task.parked and not task.dead:
            task.parked = False
            task.woken = True
            self.ready.append(task)

    def sleep(self, seconds: float, why: str = "sleep") -> None:
        self.park(why, seconds)

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        """Call at that virtual time, outside of all tasks."""
        heapq.heappush(self._timers, (max(when_s, self.now), next(self._numbers), call, 0))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `over`. Raises the finding."""
        random01, ready = self.rng.random, self.ready
        while not self.over:
            self._fire()
            if not ready:
                self._pass_time()
                continue
            at = int(random01() * len(ready))
            task = ready[at]
            ready[at] = ready[-1]
            ready.pop()
            process = task.process
            if task.dead or process.frozen:
                if not task.dead:
                    process.iced.append(task)
                continue
            self.steps += 1
            if self.steps > STEPS_MAX:
                self.failure = SimulationError(f"no end after {STEPS_MAX} steps\n{self.dump()}")
                break
            self.now += _TICK_S
            self.current = task
            task.greenlet.switch()
            self.current = None
        self.current = None
        if self.failure is not None:
            raise self.failure

    def _fire(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            _, _, what, turn = heapq.heappop(timers)
            if type(what) is Task:
                if what.parked and what.turn == turn and not what.dead:
                    what.parked = False
                    self.ready.append(what)
            else:
                what()

    def _pass_time(self) -> None:
        if not self._timers:
            self.failure = SimulationError(f"deadlock: nobody can go on\n{self.dump()}")
            self.over = True
            return
        self.now = max(self.now, self._timers[0][0])

    def dump(self) -> str:
        """Return who waits where: process, thread, why, and the innermost product frames."""
        lines = []
        for process in self.processes:
            if not process.alive:
                continue
            for task in process.tasks:
                where = _where(task.greenlet.gr_frame)
                state = "frozen" if process.frozen else "parked" if task.parked else "ready"
                lines.append(f"  {process.name}/{task.name}: {state} in {task.why}: {where}")
        return "\n".join(lines)


def _where(frame: Any) -> str:
    places = []
    while frame is not None and len(places) < 4:
        name = frame.f_code.co_filename
        if "/tests/simulation/" not in name:
            places.append(f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places) or "-"


@cache
def _is_product(path: str) -> bool:
    """Tell whether a file is the product's, its logs left out: what they do depends on who listens."""
    if not path.startswith(_ROOT) or path.startswith((f"{_ROOT}tests/", f"{_ROOT}.venv/")):
        return False
    return not path.endswith(("/log.py", "/notices.py"))


class LineFuse:
    """Kill a process at a line of the product, not only at a scheduling point (a kill may fall between any two stores).

    A trace function can't give the baton away. So at the chosen line what other processes can see is kept (`keep`), the thread runs on to
    its next scheduling point, where nothing of it happens any more, and what it did to shared memory meanwhile is undone.
    """

    def __init__(self, process: Process, lines: int, keep: Callable[[], Callable[[], None]]) -> None:
        self._process = process
        self._lines = lines
        self._keep = keep
        self._task = process.scheduler.current

    def arm(self) -> None:
        """Begin to count lines of the running thread; called on it."""
        frame = sys._getframe(1)
        while frame is not None:
            frame.f_trace = self._trace
            frame = frame.f_back
        sys.settrace(self._trace)

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if self._process.scheduler.current is not self._task:
            sys.settrace(None)
            return None
        if event == "line" and _is_product(frame.f_code.co_filename):
            self._lines -= 1
            if self._lines <= 0:
                sys.settrace(None)
                self._doom()
                return None
        return self._trace

    def _doom(self) -> None:
        process, undo = self._process, self._keep()

        def end() -> None:
            process.doomed = None
            undo()
            process.kill()

        process.doomed = end
