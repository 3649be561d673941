"""Opening a point: a volume's bytes as they were there, held for as long as they are used.

Used by export, restore and drill. `open_point` is for one point; who opens many makes an `Opener` and calls its `open`, which shares the
listing, the headers and the journal's tail. The segments that a point needs are leased while it is open (design rule 11). Kafka is asked
only for what the store may lack; while it is away the store's points are opened, and `note` says that the newest may be missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from threading import RLock
from types import TracebackType

from history.block_cache import BlockCache
from history.catalog import Catalog
from history.doubts import Doubt, doubts
from history.image import Image, Layer
from history.leases import Lease
from history.outline import read_outline
from history.segment import SegmentHeader, SegmentName
from history.store import Store
from history.vault import open_existing_vault
from recovery.plan import Moment, Plan, told_nearest
from recovery.planner import Planner
from recovery.point import Ago, AtBookmark, AtPosition, AtTime, Wanted, parse_point
from recovery.tail import JournalLog, KafkaJournal, Tail
from recovery.timeline import END, Timeline, timeline
from stream.config import Config
from stream.errors import ConfigError, HostoffloadError, IntegrityError, RecoveryError, RetryError
from stream.position import ZERO, Position
from stream.record import Batch

HEADERS_BYTES_MAX = 48 << 20
BLOCKS_BYTES_MAX = 24 << 20
COLUMNS_MAX = 32
OUTLINES_MAX = 4096
LISTINGS_MAX = 5


class OpenedPoint:
    """A point that is open: `image` has its bytes. Close it, or use it by `with`, to let go of what it holds."""

    def __init__(self, opener: Opener, plan: Plan, planner: Planner, image: Image, lease: Lease | None, *, own_opener: bool) -> None:
        self.plan = plan
        self.image = image
        self.note = opener.note
        self._opener = opener
        self._planner = planner
        self._lease = lease
        self._own_opener = own_opener

    def __enter__(self) -> OpenedPoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def volume(self) -> str:
        return self.plan.volume

    @property
    def moment(self) -> Moment:
        return self.plan.moment

    @property
    def position(self) -> Position:
        return self.plan.moment.position

    @property
    def capture_time_ns(self) -> int:
        return self.plan.moment.capture_time_ns

    @property
    def timeline(self) -> Timeline:
        """Return the whole timeline that the point was chosen from; reads the header of every segment."""
        return timeline(self._planner)

    def explain(self, error: IntegrityError) -> IntegrityError:
        """Return an error of reading the image with the nearest points that do not need what is damaged."""
        name = SegmentName.parse(str(error.facts.get("path") or error.facts.get("name")))
        if name is None:
            return error
        before, after = self._opener.nearest_without(self._planner, name, error, self.position)
        hint = f"{told_nearest(before, after)} {error.hint}".strip()
        facts = error.facts | {"volume": self.volume, "position": self.position, "before": before, "after": after}
        return IntegrityError(f"{self.volume} can't be recovered to {self.position}: {error.sentence}", hint=hint, **facts)

    def close(self) -> None:
        """Let go of it; may be called twice."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.__exit__(None, None, None)
        if self._own_opener:
            self._opener.close()


class Opener:
    """Open points of one volume. Any thread may call it."""

    def __init__(
        self,
        config: Config,
        volume: str,
        *,
        scratch: Path | None = None,
        store: Store | None = None,
        journal: Callable[[], JournalLog] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Look at nothing yet. `config.cx.store_url` names the store, `scratch` the folder of scratch files; `store` and `journal` take the
        places of what config names. Raises ConfigError."""
        if store is None and not config.cx.store_url:
            raise ConfigError("No store is known", hint="Set cx.store_url.")
        self.volume = volume
        self.note: str | None = None
        self._store = store if store is not None else open_existing_vault(config.cx.store_url, config.history)
        self._journal = journal or (lambda: KafkaJournal(config.kafka, volume))
        self._scratch = scratch
        self._now_ns = now_ns
        self._cache = BlockCache(BLOCKS_BYTES_MAX)
        self._catalog = self._new_catalog()
        self._tail: Tail | None = None
        self._tail_error: HostoffloadError | None = None
        self._facts = self._new_facts()
        self._planner: Planner | None = None
        self._lock = RLock()

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, wanted: Wanted | str, why: str = "recovery") -> OpenedPoint:
        """Open a wanted point and lease what it needs; `why` is told in the lease.

        Raises RecoveryError or IntegrityError that name the nearest good points, RetryError, ConfigError.
        """
        return self._open(parse_point(wanted) if isinstance(wanted, str) else wanted, why, own_opener=False)

    def open_at(self, position: Position, why: str = "recovery") -> OpenedPoint:
        """Open a position."""
        return self.open(AtPosition(position), why)

    def plan(self, wanted: Wanted) -> Plan:
        """Return how a point would be opened."""
        with self._lock:
            now_ns = self._now_ns()
            return self._planner_for(wanted, now_ns).plan(wanted, now_ns)

    def planner(self) -> Planner:
        """Return the planner of all that is known now, the journal's tail included if it can be read."""
        with self._lock:
            self._read_tail()
            return self._current()

    def timeline(self, after: Position = ZERO, through: Position = END) -> Timeline:
        """Return the timeline of `(after, through]`."""
        with self._lock:
            self._read_tail()
            return timeline(self._current(), after, through)

    def window(self, begin: Wanted | None, end: Wanted | None) -> tuple[Position, Position]:
        """Return what `timeline` takes for a range of points, both ends inside, whether they are recovery points or not."""
        with self._lock:
            self._read_tail()
            planner, now_ns = self._current(), self._now_ns()
            after, through = ZERO, END
            if isinstance(begin, AtTime | Ago):
                time_ns = begin.time_ns if isinstance(begin, AtTime) else now_ns - begin.age_ns
                after, _ = planner.bound_of(time_ns - 1)
            elif begin is not None:
                first = self._place_of(planner, begin, now_ns)
                after = Position(first.epoch, max(0, first.sequence - 1))
            if end is not None:
                through = self._place_of(planner, end, now_ns)
            return after, through

    @staticmethod
    def _place_of(planner: Planner, wanted: Wanted, now_ns: int) -> Position:
        if isinstance(wanted, AtPosition):
            return wanted.position
        if isinstance(wanted, AtBookmark):
            return planner.bookmarked(wanted.label)
        if isinstance(wanted, AtTime | Ago):
            return planner.bound_of(wanted.time_ns if isinstance(wanted, AtTime) else now_ns - wanted.age_ns)[0]
        return planner.plan(wanted).position

    def nearest_without(
        self, planner: Planner, name: SegmentName, error: IntegrityError, position: Position
    ) -> tuple[Moment | None, Moment | None]:
        """Return the nearest points before and after a position that do not need a segment."""
        with self._lock:
            return planner.without({name: error}).nearest(position)

    def refresh(self) -> None:
        """Look at the store's listing again, and at the journal's end when it is needed next. Points that are open are not touched."""
        with self._lock:
            self._catalog = self._new_catalog()
            self._tail, self._tail_error, self.note = None, None, None  # an open point may read the old one: it goes with the last of them
            self._forget_plans()

    def close(self) -> None:
        """Let go of the journal. Points of its tail can't be read afterwards."""
        with self._lock:
            tail, self._tail = self._tail, None
            if tail is not None:
                tail.close()

    def _open(self, wanted: Wanted, why: str, *, own_opener: bool) -> OpenedPoint:
        now_ns = self._now_ns()
        for _ in range(LISTINGS_MAX - 1):
            with suppress(_ListingIsOld):
                return self._open_once(wanted, now_ns, why, own_opener)
            self.refresh()
        return self._open_once(wanted, now_ns, why, own_opener)

    def _open_once(self, wanted: Wanted, now_ns: int, why: str, own_opener: bool) -> OpenedPoint:
        with self._lock:
            planner, facts = self._planner_for(wanted, now_ns), self._facts
            try:
                plan = planner.plan(wanted, now_ns)
            except IntegrityError as error:
                if self._is_old():
                    raise _ListingIsOld(error.sentence, hint=error.hint, **error.facts) from error
                raise
        stored = [part.name for part in plan.parts if facts.is_stored(part.name)]
        lease = None
        if stored and self._store is not None:
            lease = Lease(self._store, self.volume, stored, why)
            try:
                lease.__enter__()
            except RecoveryError as error:
                raise _ListingIsOld(error.sentence, hint=error.hint, **error.facts) from error
        image = Image(self.volume, plan.position, plan.size_bytes, [facts.layer(part.name, part.through) for part in plan.parts])
        return OpenedPoint(self, plan, planner, image, lease, own_opener=own_opener)

    def _is_old(self) -> bool:
        """Tell whether segments are gone since the store was listed."""
        if self._store is None:
            return False
        there = {one.name for one in self._store.list(f"{self.volume}/")}
        return any(str(name) not in there for name in self._facts.names() if self._facts.is_stored(name))

    def _planner_for(self, wanted: Wanted, now_ns: int) -> Planner:
        if self._tail is None and self._needs_tail(wanted, now_ns):
            self._read_tail()
            if isinstance(self._tail_error, IntegrityError) and not isinstance(wanted, AtBookmark):
                raise self._tail_error
        return self._current()

    def _current(self) -> Planner:
        if self._planner is None:
            self._planner = Planner(self._facts)
        return self._planner

    def _needs_tail(self, wanted: Wanted, now_ns: int) -> bool:
        """Tell whether what is wanted may stand behind the store's newest segment."""
        try:
            newest = self._newest()
        except IntegrityError:
            return True
        if newest is None:
            return True
        if isinstance(wanted, AtPosition):
            return wanted.position > newest.name.last
        if isinstance(wanted, AtTime | Ago):
            time_ns = wanted.time_ns if isinstance(wanted, AtTime) else now_ns - wanted.age_ns
            return time_ns >= newest.coverage.last_capture_time_ns
        return True

    def _newest(self) -> SegmentHeader | None:
        names = self._catalog.levels().get(0) if self._catalog is not None else None
        return self._facts.header(names[-1]) if names else None

    def _read_tail(self) -> None:
        """Read what the store lacks from the journal; if that can't be, say so in `note`."""
        if self._tail is not None or self._tail_error is not None:
            return
        try:
            newest = self._newest()
            with closing(self._journal()) as log:
                tail = Tail(self.volume, newest, self._scratch)
                tail.read(log)
        except HostoffloadError as error:
            self._tail_error = error
            self.note = f"The newest writes may be missing, only the store was read: {error.sentence}"
            return
        self._tail = tail
        self._forget_plans()

    def _new_catalog(self) -> Catalog | None:
        if self._store is None:
            return None
        return Catalog(self._store, self.volume, headers_bytes_max=HEADERS_BYTES_MAX, cache=self._cache)

    def _new_facts(self) -> _Facts:
        return _Facts(self.volume, self._catalog, self._tail.catalog if self._tail is not None else None)

    def _forget_plans(self) -> None:
        self._facts = self._new_facts()
        self._planner = None


class _ListingIsOld(RetryError):
    """Retention deleted what was planned with: look at the store again."""


class _Facts:
    """What the planner asks, from the store's catalog and the tail's; the first that has a segment answers for it."""

    def __init__(self, volume: str, store: Catalog | None, tail: Catalog | None) -> None:
        self.volume = volume
        self._stored = store
        self._where: dict[SegmentName, Catalog] = {}
        self._catalogs = [catalog for catalog in (store, tail) if catalog is not None]
        self._doubts: list[Doubt] | None = None
        self.header = lru_cache(maxsize=OUTLINES_MAX)(self._read_outline)
        self.columns = lru_cache(maxsize=COLUMNS_MAX)(self._read_columns)

    def names(self) -> list[SegmentName]:
        if not self._where:
            for catalog in self._catalogs:
                for names in catalog.levels().values():
                    for name in names:
                        self._where.setdefault(name, catalog)
        return list(self._where)

    def doubts(self) -> list[Doubt]:
        if self._doubts is None:
            self._doubts = doubts(self._stored.store, self.volume) if self._stored is not None else []
        return self._doubts

    def is_stored(self, name: SegmentName) -> bool:
        return self._catalog_of(name) is self._stored

    def layer(self, name: SegmentName, through: Position) -> Layer:
        return self._catalog_of(name).layer(name, through)

    def _catalog_of(self, name: SegmentName) -> Catalog:
        self.names()
        return self._where[name]

    def _read_outline(self, name: SegmentName) -> SegmentHeader:
        return read_outline(self._catalog_of(name).store, name)

    def _read_columns(self, name: SegmentName, block: int) -> Batch:
        reader = self._catalog_of(name).reader(name)
        try:
            return reader.batch(block).entry.records
        finally:
            reader.forget()


def open_point(config: Config, volume: str, text: str, *, why: str = "recovery", scratch: Path | None = None) -> OpenedPoint:
    """Open one point as it is written on a command line. Raises ConfigError, RecoveryError, IntegrityError, RetryError."""
    opener = Opener(config, volume, scratch=scratch)
    try:
        return opener._open(parse_point(text), why, own_opener=True)
    except BaseException:
        opener.close()
        raise
