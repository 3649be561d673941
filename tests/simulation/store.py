"""The object store of a run: the contract of `history.store.Store`, with answers that take their time, fail or get lost."""

from __future__ import annotations

from collections.abc import Sequence

from history.store import StoredObject
from stream.errors import IntegrityError, RetryError
from tests.simulation.scheduler import Scheduler


class SimulatedStore:
    """Whole objects or none, never replaced. `failing` is the share of puts that fail, half of them after the object is there."""

    url = "simulated://store"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.objects: dict[str, bytes] = {}
        self.failing = 0.0
        self.slow_s = 0.002

    def put(self, name: str, parts: Sequence[bytes]) -> bool:
        self._wait()
        rng = self._scheduler.rng
        if rng.random() < self.failing:
            if rng.random() < 0.5:
                self.objects.setdefault(name, b"".join(parts))
            raise RetryError("planted: the store does not answer")
        if name in self.objects:
            return False
        self.objects[name] = b"".join(parts)
        self._wait()
        return True

    def get(self, name: str) -> bytes:
        self._wait()
        if name not in self.objects:
            raise IntegrityError("planted: no such object", name=name)
        return self.objects[name]

    def get_range(self, name: str, start: int, end: int) -> bytes:
        return self.get(name)[start:end]

    def list(self, prefix: str = "") -> list[StoredObject]:
        self._wait()
        if self._scheduler.rng.random() < self.failing:
            raise RetryError("planted: the store does not answer")
        return [StoredObject(name, len(data)) for name, data in sorted(self.objects.items()) if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        self._wait()
        self.objects.pop(name, None)

    def _wait(self) -> None:
        self._scheduler.point()
        if self._scheduler.rng.random() < 0.3:
            self._scheduler.sleep(self.slow_s * self._scheduler.rng.expovariate(1.0), "store")
