"""Stand-ins for `threading`, `queue` and `time`, on the scheduler's baton and its virtual clock."""

from __future__ import annotations

import queue as real_queue
import time as real_time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.simulation.scheduler import Scheduler, Task

EPOCH_S = 1_800_000_000  # the wall clock at the beginning of every run


def threading_of(scheduler: Scheduler) -> SimpleNamespace:
    """Return what `import threading` gives the product in this run."""

    class Lock(_Lock):
        def __init__(self) -> None:
            super().__init__(scheduler)

    class RLock(_RLock):
        def __init__(self) -> None:
            super().__init__(scheduler)

    class Condition(_Condition):
        def __init__(self, lock: Any = None) -> None:
            super().__init__(scheduler, lock if lock is not None else _RLock(scheduler))

    class Event(_Event):
        def __init__(self) -> None:
            super().__init__(scheduler)

    class Semaphore(_Semaphore):
        def __init__(self, value: int = 1) -> None:
            super().__init__(scheduler, value)

    class Thread(_Thread):
        _scheduler = scheduler

    return SimpleNamespace(
        Lock=Lock,
        RLock=RLock,
        Condition=Condition,
        Event=Event,
        Semaphore=Semaphore,
        BoundedSemaphore=Semaphore,
        Thread=Thread,
        get_ident=lambda: id(scheduler.current),
        current_thread=lambda: SimpleNamespace(name=scheduler.current.name if scheduler.current is not None else "setup"),
    )


def queue_of(scheduler: Scheduler) -> SimpleNamespace:
    """Return what `import queue` gives the product in this run."""

    class Queue(_Queue):
        def __init__(self, maxsize: int = 0) -> None:
            super().__init__(scheduler, maxsize)

    class SimpleQueue(_Queue):
        def __init__(self) -> None:
            super().__init__(scheduler, 0)

    return SimpleNamespace(Queue=Queue, SimpleQueue=SimpleQueue, Empty=real_queue.Empty, Full=real_queue.Full)


class Clock:
    """What `import time` gives the product in this run; the wall clock is that of the calling thread's machine."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return self._scheduler.now

    perf_counter = monotonic

    def monotonic_ns(self) -> int:
        return int(self._scheduler.now * 1e9)

    def time_ns(self) -> int:
        current = self._scheduler.current
        skew_s = current.process.machine.skew_s if current is not None and current.process.machine is not None else 0.0
        return EPOCH_S * 1_000_000_000 + int((self._scheduler.now + skew_s) * 1e9)

    def time(self) -> float:
        return self.time_ns() / 1e9

    def sleep(self, seconds: float) -> None:
        self._scheduler.point()
        self._scheduler.sleep(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


class _Lock:
    """A lock; whoever is woken competes with whoever comes."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False
        self._waiters: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.point()
        until_s = scheduler.now + timeout if timeout >= 0 else None
        while self._held:
            if not blocking:
                return False
            self._waiters.append(scheduler.current)
            scheduler.park("lock", None if until_s is None else until_s - scheduler.now)
            if scheduler.current in self._waiters:
                self._waiters.remove(scheduler.current)
                return False
        self._held = True
        return True

    def release(self) -> None:
        assert self._held, "a lock that nobody holds is released"
        self._held = False
        waiters = self._waiters
        if waiters:
            scheduler = self._scheduler
            scheduler.wake(waiters.pop(int(scheduler.rng.random() * len(waiters))))
        self._scheduler.point()

    def locked(self) -> bool:
        return self._held

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class _RLock(_Lock):
    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._owner: Task | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        current = self._scheduler.current
        if self._owner is current and self._depth:
            self._depth += 1
            return True
        if not super().acquire(blocking, timeout):
            return False
        self._owner, self._depth = current, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            super().release()

    __enter__ = acquire


class _Condition:
    def __init__(self, scheduler: Scheduler, lock: Any) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._waiters: deque[Task] = deque()
        self.acquire = lock.acquire
        self.release = lock.release

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        task = scheduler.current
        self._waiters.append(task)
        self._lock.release()
        if task not in self._waiters:  # notified between the release and here
            woken = True
        else:
            woken = scheduler.park("condition", timeout)
            if task in self._waiters:
                self._waiters.remove(task)
        self._lock.acquire()
        return woken

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until_s = None if timeout is None else self._scheduler.now + timeout
        while not (found := predicate()):
            left_s = None if until_s is None else until_s - self._scheduler.now
            if left_s is not None and left_s <= 0:
                return predicate()
            self.wait(left_s)
        return found

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiters))):
            self._scheduler.wake(self._waiters.popleft())

    def notify_all(self) -> None:
        self.notify(len(self._waiters))


class _Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiters: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._scheduler.point()
        self._set = True
        waiters, self._waiters = self._waiters, []
        for task in waiters:
            self._scheduler.wake(task)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        scheduler.point()
        if not self._set:
            if timeout is not None and timeout <= 0:
                return False
            task = scheduler.current
            self._waiters.append(task)
            scheduler.park("event", timeout)
            if task in self._waiters:
                self._waiters.remove(task)
        return self._set


class _Semaphore:
    def __init__(self, scheduler: Scheduler, value: int) -> None:
        self._condition = _Condition(scheduler, _Lock(scheduler))
        self._value = value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._condition:
            if not self._value and not blocking:
                return False
            if not self._condition.wait_for(lambda: self._value, timeout):
                return False
            self._value -= 1
            return True

    def release(self, n: int = 1) -> None:
        with self._condition:
            self._value += n
            self._condition.notify(n)

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class _Thread:
    _scheduler: Scheduler

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._target = target
        self._args = args
        self._kwargs = kwargs or {}
        self.name = name or getattr(target, "__name__", "thread")
        self.daemon = daemon
        self._task: Task | None = None
        self._ended = _Event(self._scheduler)

    def start(self) -> None:
        scheduler = self._scheduler
        assert self._task is None and scheduler.current is not None, "a thread is started once, by a thread"
        self._task = scheduler.spawn(scheduler.current.process, self.name, self._body)
        scheduler.point()

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._args, **self._kwargs)

    def join(self, timeout: float | None = None) -> None:
        assert self._task is not None, "a thread that was never started is joined"
        self._ended.wait(timeout)

    def is_alive(self) -> bool:
        return self._task is not None and not self._ended.is_set()

    @property
    def ident(self) -> int | None:
        return None if self._task is None else id(self._task)

    def _body(self) -> None:
        try:
            self.run()
        finally:
            self._ended.set()


class _Queue:
    def __init__(self, scheduler: Scheduler, maxsize: int) -> None:
        self._items: deque[Any] = deque()
        self._maxsize = maxsize
        self._changed = _Condition(scheduler, _Lock(scheduler))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self._changed:
            if self._maxsize and len(self._items) >= self._maxsize:
                room = block and self._changed.wait_for(lambda: len(self._items) < self._maxsize, timeout)
                if not room:
                    raise real_queue.Full
            self._items.append(item)
            self._changed.notify_all()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with self._changed:
            if not self._items and not (block and self._changed.wait_for(lambda: self._items, timeout)):
                raise real_queue.Empty
            item = self._items.popleft()
            if self._maxsize:
                self._changed.notify_all()
            return item

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)
