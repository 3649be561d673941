"""The volumes that this worker was assigned: for each a thread that orders, one that persists and one that has history folded, started and
stopped together.

The Faust app says which volumes are assigned; a volume that stays assigned through a rebalance goes on undisturbed. What another worker
takes meanwhile is decided in the journal, by fences, not here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from cx_consumers.fold import FoldProcess, FoldThread
from cx_consumers.intake import Intake
from cx_consumers.ordering import Shared
from cx_consumers.persist import Persister
from cx_consumers.volume_worker import VolumeWorker
from history.chain import closing_name
from history.retention_table import parse_table
from history.store import Store
from stream.config import Config
from stream.journal import OpenGap
from stream.log import event
from stream.position import Position

_log = logging.getLogger(__name__)
Facts = dict[str, tuple[Position, dict[str, Any]]]


class AssignedVolumes:
    """Run what belongs to the assigned volumes; without `folds` history is stored and stays as it is. Thread-safe."""

    def __init__(
        self,
        config: Config,
        intake: Intake,
        shared: Shared,
        store: Store,
        codec: Callable[[str], str],
        crashed: Callable[[BaseException], None],
        folds: FoldProcess | None = None,
    ) -> None:
        self._config = config
        self._folds = folds
        self._intake = intake
        self._shared = shared
        self._store = store
        self._codec = codec
        self._crashed = crashed
        self._lock = threading.Lock()
        self._running: dict[str, tuple[VolumeWorker, PersistThread, FoldThread | None]] = {}

    def assign(self, volumes: set[str]) -> None:
        """Start what is new, tell what is no longer assigned to stop; return at once."""
        lost = self.keep(volumes)
        with self._lock:
            gained = volumes - set(self._running)
            for volume in sorted(gained):
                worker = VolumeWorker(volume, self._codec(volume), self._intake.new_inbox(volume), self._shared, self._crashed)
                persist = PersistThread(volume, self._config, self._store, self._shared, self._crashed)
                folds = self._fold_thread(volume)
                self._running[volume] = worker, persist, folds
                for one in (worker, persist, folds):
                    if one is not None:
                        one.start()
        if lost or gained:
            event(_log, logging.INFO, "assigned", volumes=len(volumes), gained=",".join(sorted(gained)) or None, lost=lost or None)

    def _fold_thread(self, volume: str) -> FoldThread | None:
        if self._folds is None:
            return None
        config, repair = self._config.history, self._shared.asks.repair
        promised_s = parse_table(config.retention).any_write_ns / 1e9
        return FoldThread(volume, config.every_s, self._folds.turn, self._crashed, repair, promised_s)

    def keep(self, volumes: Collection[str]) -> int:
        """Tell every volume that is not among these to stop; return how many, at once."""
        with self._lock:
            lost = [self._running.pop(volume) for volume in set(self._running) - set(volumes)]
        for one in lost:
            _stop(*one)
            self._intake.forget(one[0].volume)
        return len(lost)

    def stop(self, timeout_s: float) -> None:
        """Stop all and wait for them, at most that long."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            running = list(self._running.values())
            self._running.clear()
        for one in running:
            _stop(*one)
        if self._folds is not None:
            self._folds.stop()
        for worker, persist, _ in running:
            worker.join(max(0.0, deadline_s - time.monotonic()))
            persist.join(max(0.0, deadline_s - time.monotonic()))

    def workers(self) -> dict[str, VolumeWorker]:
        """Return the order workers by volume."""
        with self._lock:
            return {volume: worker for volume, (worker, *_) in self._running.items()}

    def facts(self) -> Facts:
        """Return position and facts of each volume."""
        with self._lock:
            running = dict(self._running)
        told = {}
        for volume, (worker, persist, folds) in running.items():
            position, facts = worker.facts()
            told[volume] = position, facts | persist.facts() | (folds.facts() if folds is not None else {})
        return told


def _stop(worker: VolumeWorker, persist: PersistThread, folds: FoldThread | None) -> None:
    worker.stop()
    persist.stop()
    if folds is not None:
        folds.stop()


class PersistThread:
    """The thread that one volume's Persister runs in."""

    def __init__(self, volume: str, config: Config, store: Store, shared: Shared, crashed: Callable[[BaseException], None]) -> None:
        def ask_resync(gap: OpenGap, newest: OpenGap) -> None:
            shared.asks.resync(volume, gap, newest, name=closing_name(gap))

        self._persister = Persister(volume, config, store, ask_resync=ask_resync)
        self._crashed = crashed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"persist-{volume}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def facts(self) -> dict[str, Any]:
        """Return the persister's facts under names of their own."""
        told = self._persister.facts()
        return {
            "persisted": told["persisted"],
            "segments": told["segments"],
            "segment_bytes": told["segment_bytes"],
            "persist_error": told["error"],
            "persist_error_hint": told["error_hint"],
        }

    def _run(self) -> None:
        try:
            self._persister.run(self._stop)
        except BaseException as error:
            self._crashed(error)
