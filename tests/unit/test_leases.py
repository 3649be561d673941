"""Leases: held while their process lives, expired by the watcher's own clock, and never lost against a deletion."""

from __future__ import annotations

import threading

import pytest

from history.leases import CONDEMNED_S, DELETE_S, LEASE_S, Lease, LeaseWatch
from history.segment import SegmentName
from history.store import Store, StoredObject, open_store
from stream.errors import RecoveryError, RetryError
from stream.position import Position

NAMES = [SegmentName("v1", 0, Position(1, first), Position(1, first + 9)) for first in (1, 11, 21)]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store() -> Store:
    store = open_store("memory:///")
    for name in NAMES:
        store.put(str(name), [b"segment"])
    return store


def there(store: Store) -> list[str]:
    return [one.name for one in store.list("v1/L0/")]


def test_what_is_held_is_not_deleted(store: Store) -> None:
    watch = LeaseWatch(store, "v1")
    with Lease(store, "v1", NAMES[:2], "export"):
        assert watch.standing(NAMES) == frozenset(NAMES[:2])
        assert watch.delete(NAMES) == [NAMES[2]]
    assert watch.look() == frozenset()
    assert watch.delete(NAMES[:2]) == NAMES[:2]
    assert store.list("v1/") == []


def test_a_lease_of_a_dead_process_expires(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(store, "v1", clock=clock)
    lease = Lease(store, "v1", NAMES[:1], "drill", clock=clock)
    lease._put()  # and dies
    assert watch.look() == frozenset(NAMES[:1])
    clock.now_s = LEASE_S - 1
    assert watch.look() == frozenset(NAMES[:1])
    assert not lease.lost
    lease.renew()
    clock.now_s = LEASE_S + 1
    assert watch.look() == frozenset(NAMES[:1]), "it was renewed"
    clock.now_s = 2 * LEASE_S + 2
    assert lease.lost
    assert watch.look() == frozenset()
    assert store.list("v1/leases/") == []


def test_a_new_watcher_begins_to_count_when_it_comes(store: Store) -> None:
    clock = Clock()
    Lease(store, "v1", NAMES[:1], "drill", clock=clock)._put()
    clock.now_s = 1000.0
    watch = LeaseWatch(store, "v1", clock=clock)
    assert watch.look() == frozenset(NAMES[:1])
    clock.now_s += LEASE_S
    assert watch.look() == frozenset()


def test_what_is_gone_can_not_be_held(store: Store) -> None:
    store.delete(str(NAMES[1]))
    with pytest.raises(RecoveryError, match="deleted by retention") as caught, Lease(store, "v1", NAMES, "export"):
        pass
    assert caught.value.facts["path"] == str(NAMES[1])
    assert store.list("v1/leases/") == []


class Stepped:
    """A store that stops at chosen calls until the test lets it go on."""

    def __init__(self, store: Store, stop_at: str) -> None:
        self._store = store
        self._stop_at = stop_at
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.url = store.url

    def _step(self, what: str) -> None:
        if what == self._stop_at and not self.go_on.is_set():
            self.reached.set()
            assert self.go_on.wait(30.0)

    def put(self, name: str, parts) -> bool:
        done = self._store.put(name, parts)
        self._step("condemned" if "condemned" in name else "put")
        return done

    def get(self, name: str) -> bytes:
        return self._store.get(name)

    def list(self, prefix: str = "") -> list[StoredObject]:
        found = self._store.list(prefix)
        self._step("looked")
        return found

    def delete(self, name: str) -> None:
        self._store.delete(name)


@pytest.mark.parametrize("stop_at", ["condemned", "looked"])
def test_reader_and_retention_never_both_win(store: Store, stop_at: str) -> None:
    """Retention stands between condemning, looking for leases and deleting, while a reader comes: it gets all or is told that it can't."""
    stepped = Stepped(store, stop_at)
    deleted: list[list[SegmentName]] = []
    retention = threading.Thread(target=lambda: deleted.append(LeaseWatch(stepped, "v1").delete(NAMES[:1])))
    retention.start()
    assert stepped.reached.wait(30.0)
    held: list[bool] = []

    def read() -> None:
        try:
            with Lease(store, "v1", NAMES[:1], "export"):
                held.append(str(NAMES[0]) in there(store))
        except RecoveryError:
            held.append(False)

    reader = threading.Thread(target=read)
    reader.start()
    while not store.list("v1/leases/") or len(store.list("v1/leases/")) < 2:
        pass  # until the reader's lease is in the store
    stepped.go_on.set()
    retention.join(30.0)
    reader.join(30.0)
    assert held == [deleted == [[]]]
    assert held == [stop_at == "condemned"]


def test_who_condemned_and_died_is_let_off(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(store, "v1", clock=clock)
    store.put("v1/leases/condemned-1", [b'{"names": ["%s"]}' % str(NAMES[0]).encode()])
    watch.look()
    clock.now_s = CONDEMNED_S
    watch.look()
    assert store.list("v1/leases/") == []


def test_who_is_slow_to_delete_gives_up(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(store, "v1", clock=clock)
    delete = store.delete

    def slow(name: str) -> None:
        clock.now_s += DELETE_S / 2
        delete(name)

    watch._store = type("Slow", (), {"put": store.put, "get": store.get, "list": store.list, "delete": staticmethod(slow)})
    assert watch.delete(NAMES) == NAMES[:2]
    assert there(store) == [str(NAMES[2])]


def test_a_store_that_is_away_leaves_the_lease_to_expire(store: Store) -> None:
    lease = Lease(store, "v1", NAMES, "export")

    def away(prefix: str = "") -> list[StoredObject]:
        raise RetryError("away")

    with lease:
        lease._store = type("Away", (), {"list": staticmethod(away)})
    assert len(store.list("v1/leases/")) == 1


class Renewing:
    """A store whose reader is slow: the lease that was listed is renewed twice before it is read."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store = store
        self._lease = lease
        self.url = store.url

    def list(self, prefix: str = "") -> list[StoredObject]:
        return self._store.list(prefix)

    def get(self, name: str) -> bytes:
        self._lease.renew()
        self._lease.renew()
        return self._store.get(name)

    def put(self, name: str, parts) -> bool:
        return self._store.put(name, parts)

    def delete(self, name: str) -> None:
        self._store.delete(name)


def test_a_lease_that_could_not_be_read_is_looked_at_again(store: Store) -> None:
    lease = Lease(store, "v1", NAMES[:1], "export")
    lease._put()
    watch = LeaseWatch(Renewing(store, lease), "v1")
    watch.look()
    watch._store = store
    assert watch.look() == frozenset(NAMES[:1])


def test_a_renewal_leaves_the_one_before(store: Store) -> None:
    """A listing is not of one moment: it may miss what comes and what goes at the same time."""
    lease = Lease(store, "v1", NAMES[:1], "export")
    lease._put()
    for renewals in range(1, 5):
        lease.renew()
        numbers = [int(one.name.rpartition("-")[2]) for one in store.list("v1/leases/")]
        assert numbers == [renewals - 1, renewals]


def test_what_a_dead_process_condemned_can_be_held(store: Store) -> None:
    """The reader lets it off after the time within which it had to be deleted."""
    clock, waited = Clock(), []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.now_s += seconds
        assert clock.now_s <= CONDEMNED_S + 1

    store.put("v1/leases/condemned-1", [b'{"names": ["%s"]}' % str(NAMES[0]).encode()])
    with Lease(store, "v1", NAMES[:1], "export", clock=clock, sleep=sleep):
        assert waited and clock.now_s >= CONDEMNED_S
        assert not any("condemned" in one.name for one in store.list("v1/leases/"))
