"""The upkeep of a volume's history: carries out what `history.retention` plans.

Hosted by the CX beside persist (`cx_consumers.fold`). It knows nothing that is not in the store's listing, so it goes on after any kill
where that stands; two at once make too many folds at worst. The order: 1. look at the listing · 2. compare the verify marks that are new
(`history.proof`) · 3. make the folds that are due, each durable before the next · 4. look again, until none is due · 5. delete what the
last plan says, none of it under a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from history.block_cache import BlockCache
from history.catalog import Catalog, joins
from history.fold import fold
from history.leases import LeaseWatch
from history.levels import AS_WRITTEN
from history.pins import pins
from history.proof import Difference, Prover
from history.retention import Facts, Listing, Plan, plan
from history.retention_table import RetentionTable
from history.segment import SegmentName, in_order
from history.store import Store
from stream.position import Position

HEADERS_BYTES_MAX = 32 << 20


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept, and how folds are made. `bytes_max` 0: no limit; `scratch` None: the system's folder of temporary files."""

    table: RetentionTable
    bookmarks_ns: int = 0
    bytes_max: int = 0
    codec: str = "zstd"
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back from a volume's newest record the store goes, in capture time: `every_write_ns` as long as every record is there as it
    was written, `oldest_ns` to the oldest moment of any level. What the stream itself lacks in between, gaps, is not told here."""

    every_write_ns: int
    oldest_ns: int


class Upkeep:
    """Fold and expire one volume's history. One thread uses it."""

    def __init__(
        self,
        store: Store,
        volume: str,
        policy: Policy,
        *,
        watch: LeaseWatch | None = None,
        clock_ns: Callable[[], int] | None = None,
    ) -> None:
        """`clock_ns` tells a time that no age is counted from later than; None: records are believed whatever time they tell."""
        self._clock_ns = clock_ns
        self._catalog = Catalog(store, volume, headers_bytes_max=HEADERS_BYTES_MAX, cache=BlockCache(0))
        self._volume = volume
        self._policy = policy
        self._watch = watch or LeaseWatch(store, volume)
        self._facts: dict[SegmentName, Facts] = {}
        self._levels: dict[int, list[SegmentName]] = {}
        self.folded: Position | None = None
        self.folds = 0
        self.deleted = 0
        self.reach: Reach | None = None
        self.different: list[Difference] = []
        self._prover = Prover(self._catalog)

    def run_once(self) -> None:
        """Do all that is due now.

        `different` then holds what was found to differ from the source, `reach` how far back it goes now. Raises RetryError and ConfigError
        as the store does, IntegrityError for a segment that is damaged: nothing of it is deleted then.
        """
        self._catalog.refresh()
        self.different = self._prover.prove()
        while (due := self._plan()).folds:
            for task in due.folds:
                assert not any(name.last == task.through for name in self._levels.get(task.level, ())), f"made already: {task}"
                fold(self._catalog, task, codec=self._policy.codec, scratch=self._policy.scratch)
                self.folds += 1
        deleted = self._watch.delete(due.deletes)
        self.deleted += len(deleted)
        self.reach = self._reach(set(deleted))

    def _reach(self, deleted: Collection[SegmentName]) -> Reach | None:
        """Return how far back the store goes without these segments; None if nothing was stored yet."""
        left = {level: [name for name in names if name not in deleted] for level, names in self._levels.items()}
        written = in_order(left.get(AS_WRITTEN, ()))
        if not written:
            return None
        first = written[-1]
        for name in reversed(written[:-1]):  # one that only a lease keeps stands apart
            if first.first > name.last.next() and not joins(self._catalog.header(first), name.last):
                break
            first = name
        newest_ns = self._of(written[-1]).last_time_ns
        first_ns = self._catalog.header(first).coverage.first_capture_time_ns
        folds = [name for level, names in left.items() if level > AS_WRITTEN for name in names]
        oldest_ns = min([first_ns, *(self._of(name).last_time_ns for name in sorted(folds, key=lambda name: name.last)[:1])])
        return Reach(max(0, newest_ns - first_ns), max(0, newest_ns - oldest_ns))

    def _plan(self) -> Plan:
        catalog = self._catalog
        catalog.refresh()
        self._facts = {name: facts for name, facts in self._facts.items() if name in catalog.sizes}
        self._levels = {}
        for name in catalog.sizes:  # all of them: those that others cover too must go some time
            self._levels.setdefault(name.level, []).append(name)
        self.folded = max((name.last for name in catalog.sizes if name.level > AS_WRITTEN), default=None)
        pinned = [pin.position for pin in pins(catalog.store, self._volume)]
        return plan(
            Listing(self._levels, self._of, catalog.header, catalog.sizes),
            self._policy.table,
            pins=pinned,
            leased=self._watch.look(),
            bookmarks_ns=self._policy.bookmarks_ns,
            bytes_max=self._policy.bytes_max,
            now_ns_max=None if self._clock_ns is None else self._clock_ns(),
        )

    def _of(self, name: SegmentName) -> Facts:
        if name not in self._facts:
            self._facts[name] = Facts.of(self._catalog.header(name))
        return self._facts[name]
