"""The upkeep of a volume's history: carries out what `history.retention` plans.

Hosted by the CX beside persist (`cx_consumers.fold`). It knows nothing that is not in the store's listing, so it goes on after any kill
where that stands; two at once make too many folds at worst. The order: 1. look at the listing · 2. compare the verify marks that are new
(`history.proof`) · 3. make the folds that are due, each durable before the next · 4. look again, until none is due · 5. delete what the
last plan says, none of it under a lease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from history.block_cache import BlockCache
from history.catalog import Catalog
from history.fold import fold
from history.leases import LeaseWatch
from history.levels import AS_WRITTEN
from history.pins import pins
from history.proof import Difference, Prover
from history.retention import Facts, Listing, Plan, plan
from history.retention_table import RetentionTable
from history.segment import SegmentName
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
        self.different: list[Difference] = []
        self._prover = Prover(self._catalog)

    def run_once(self) -> None:
        """Do all that is due now.

        `different` then holds what was found to differ from the source. Raises RetryError and ConfigError as the store does, IntegrityError
        for a segment that is damaged: nothing of it is deleted then.
        """
        self._catalog.refresh()
        self.different = self._prover.prove()
        while (due := self._plan()).folds:
            for task in due.folds:
                assert not any(name.last == task.through for name in self._levels.get(task.level, ())), f"made already: {task}"
                fold(self._catalog, task, codec=self._policy.codec, scratch=self._policy.scratch)
                self.folds += 1
        self.deleted += len(self._watch.delete(due.deletes))

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
