"""Leases: which segments are read now, said in the store itself, so that nobody deletes them under a reader (design rule 11).

A reader takes a lease on the segments that it needs and renews it while it reads; a lease of a dead process expires. Objects of a store
are never replaced, so a renewal is a new object:

    <volume>/leases/<id>-<n>            a lease, renewed n times; a JSON object: `names`, `why`, `by`
    <volume>/leases/condemned-<id>      segments that retention is about to delete; `names`

Neither side trusts a clock of the other: a watcher lets a lease expire when it saw the same n for `LEASE_S` by its own monotonic clock.
No segment is deleted under a lease, whoever is faster: the reader writes its lease and then looks for the condemned, retention condemns
and then looks for leases, so at least one of them sees the other. Who condemned must delete within `CONDEMNED_S`; what is condemned for
longer is so by a dead process, and is let off.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from types import TracebackType

from history.segment import SegmentName
from history.store import Store
from stream.errors import ConfigError, IntegrityError, RecoveryError, RetryError

LEASE_S = 60.0
RENEW_S = 15.0
CONDEMNED_S = 30.0
DELETE_S = 10.0
POLL_S = 0.2
_CONDEMNED = "condemned-"


class Lease:
    """Hold segments of a volume while inside; a thread renews it.

    Entering raises RecoveryError if one of them is gone or about to go: look at the listing again and choose anew. May raise RetryError.
    """

    def __init__(
        self,
        store: Store,
        volume: str,
        names: Iterable[SegmentName],
        why: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._volume = volume
        self._names = frozenset(map(str, names))
        self._clock = clock
        self._sleep = sleep
        self._id = uuid.uuid4().hex
        self._told = {"names": sorted(self._names), "why": why, "by": f"{socket.gethostname()}/{os.getpid()}"}
        self._renewals = 0
        self._renewed_s = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._put()
        try:
            self._check()
        except BaseException:
            self._store.delete(self._name(self._renewals))
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        try:
            for found in self._store.list(_folder(self._volume)):
                if found.name.startswith(_folder(self._volume) + self._id):
                    self._store.delete(found.name)
        except (RetryError, ConfigError):
            return  # it expires

    @property
    def lost(self) -> bool:
        """Tell whether the lease could not be renewed for so long that it may have expired: what is read now may be deleted."""
        return self._clock() - self._renewed_s >= LEASE_S

    def renew(self) -> None:
        """Renew it now; the renewal before stays, so that a listing that is no moment's, or a look that was slow, finds one. May raise
        RetryError."""
        self._renewals += 1
        self._put()
        if self._renewals > 1:
            self._store.delete(self._name(self._renewals - 2))

    def _put(self) -> None:
        self._store.put(self._name(self._renewals), [json.dumps(self._told).encode()])
        self._renewed_s = self._clock()

    def _check(self) -> None:
        """See that all segments are there and none is condemned, after the lease is in the store."""
        deadline_s = self._clock() + CONDEMNED_S
        while doomed := {name: told for name, told in _condemned(self._store, self._volume).items() if told & self._names}:
            if self._clock() >= deadline_s:
                for name in doomed:
                    self._store.delete(name)
                break
            self._sleep(POLL_S)
        there = {found.name for found in self._store.list(f"{self._volume}/")}
        if gone := sorted(self._names - there):
            raise RecoveryError(
                "A segment was deleted by retention before it could be held", path=gone[0], volume=self._volume, hint="Try it again."
            )

    def _name(self, renewals: int) -> str:
        return f"{_folder(self._volume)}{self._id}-{renewals}"

    def _run(self) -> None:
        while not self._end.wait(RENEW_S):
            try:
                self.renew()
            except (RetryError, ConfigError):
                continue  # whether it is there or not: another name is tried next time


class LeaseWatch:
    """What is leased, as one watcher sees it; kept over time, since a lease expires by the watcher's clock."""

    def __init__(self, store: Store, volume: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._volume = volume
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._doomed: dict[str, float] = {}

    def look(self) -> frozenset[SegmentName]:
        """Return the segments that are leased now; what expired is removed. May raise RetryError."""
        found: dict[str, int] = {}
        objects: dict[str, list[str]] = {}
        condemned: set[str] = set()
        for one in self._store.list(_folder(self._volume)):
            lease, _, number = one.name.removeprefix(_folder(self._volume)).rpartition("-")
            if one.name.startswith(_folder(self._volume) + _CONDEMNED):
                condemned.add(one.name)
            elif lease and number.isdigit():
                found[lease] = max(found.get(lease, -1), int(number))
                objects.setdefault(lease, []).append(one.name)
        now_s = self._clock()
        for lease, number in found.items():
            if lease not in self._seen or self._seen[lease][0] != number:
                self._seen[lease] = (number, now_s)
            if not self._names.get(lease):  # one that was renewed between listing and reading said nothing
                self._names[lease] = _names(self._store, max(objects[lease], key=lambda name: int(name.rpartition("-")[2])))
        for lease in set(self._seen) - set(found):
            del self._seen[lease], self._names[lease]
        for lease in [lease for lease, (_, at_s) in self._seen.items() if now_s - at_s >= LEASE_S]:
            for name in objects[lease]:
                self._store.delete(name)
            del self._seen[lease], self._names[lease]
        self._let_off(condemned, now_s)
        return frozenset(name for names in self._names.values() for path in names if (name := SegmentName.parse(path)) is not None)

    def _let_off(self, condemned: set[str], now_s: float) -> None:
        """Remove what was condemned for so long that who did it is dead."""
        self._doomed = {name: self._doomed.get(name, now_s) for name in condemned}
        for name in [name for name, at_s in self._doomed.items() if now_s - at_s >= CONDEMNED_S]:
            self._store.delete(name)
            del self._doomed[name]

    def standing(self, names: Collection[SegmentName]) -> frozenset[SegmentName]:
        """Return which of these are leased. May raise RetryError."""
        return self.look() & frozenset(names)

    def delete(self, names: Collection[SegmentName]) -> list[SegmentName]:
        """Delete those of these segments that nobody leases, in this order; return them. May raise RetryError, some being deleted."""
        if not names:
            return []
        mine = f"{_folder(self._volume)}{_CONDEMNED}{uuid.uuid4().hex}"
        self._store.put(mine, [json.dumps({"names": [str(name) for name in names]}).encode()])
        begun_s = self._clock()
        deleted = []
        try:
            held = self.look()
            for name in names:
                if self._clock() - begun_s >= DELETE_S:
                    break
                if name not in held:
                    self._store.delete(str(name))
                    deleted.append(name)
        finally:
            self._store.delete(mine)
        return deleted


def _condemned(store: Store, volume: str) -> dict[str, frozenset[str]]:
    """Return what is condemned, by the object that says so."""
    prefix = _folder(volume) + _CONDEMNED
    return {found.name: _names(store, found.name) for found in store.list(_folder(volume)) if found.name.startswith(prefix)}


def _names(store: Store, path: str) -> frozenset[str]:
    try:
        return frozenset(json.loads(store.get(path))["names"])
    except (IntegrityError, ValueError, KeyError, TypeError):  # removed since, or not ours
        return frozenset()


def _folder(volume: str) -> str:
    return f"{volume}/leases/"
