"""The target: keeps the replicas that the declared volumes name for it, one thread a volume.

Run by `hostoffload target run`. It follows `ho.control`: volumes may be added, paused, resumed, given another replica and removed while
it runs, and requests for digests go to the volume that they are about. It ends cleanly within `STOP_S_MAX`: what has been applied is
durable and labelled.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cx_consumers.checkpoint import CheckpointFile
from cx_consumers.replica import ReplicaVolume, lock_exclusively
from cx_consumers.target_digests import Inbox, digest_ask, refusal
from cx_consumers.target_facts import Board, ReportThread, VolumeFacts
from cx_consumers.target_log import JournalLog
from cx_consumers.target_store import StoredHistory
from cx_consumers.target_task import Surroundings, Task
from cx_consumers.target_volume import VolumeTarget
from history.vault import open_existing_vault
from stream.config import Config
from stream.control import ControlWriter, Entry, Follower, Request, VolumeDeclaration
from stream.errors import ConfigError, HostoffloadError, ResyncError, RetryError
from stream.log import Repeats, event
from stream.report import Reporter
from stream.topics import Topics

CONTROL_POLL_S = 0.2
STOP_S_MAX = 4.5
LOCK_WAIT_S = 6.0
_logger = logging.getLogger(__name__)


class Target:
    """The volumes' threads, started and stopped as the declarations say. One thread uses it."""

    def __init__(self, config: Config, folder: Path, writer: ControlWriter, board: Board, store: Path | None = None) -> None:
        """`folder` is for checkpoints; `store` the store to read where the config names none."""
        self._config = config
        self._folder = folder
        self._store_url = config.cx.store_url or str(store or folder.parent / "store")
        self._writer = writer
        self._board = board
        self._topics = Topics(config.kafka)
        self._running: dict[str, VolumeTarget] = {}
        self._inboxes: dict[str, Inbox] = {}
        self.broken = threading.Event()

    def begin(self, entries: Mapping[str, Entry]) -> None:
        """Take over everything that `ho.control` says now; called again when it had to be read anew."""
        for entry in entries.values():
            if isinstance(entry, VolumeDeclaration):
                self.declare(entry)
        asked = {entry.id for entry in entries.values() if isinstance(entry, Request)}
        for inbox in self._inboxes.values():
            inbox.keep(asked)
        for key, entry in entries.items():
            if isinstance(entry, Request):
                self.hear(key, entry)

    def hear(self, key: str, entry: Entry | None) -> None:
        """Act on one change of `ho.control`; None: the entry of that key is gone."""
        if isinstance(entry, VolumeDeclaration):
            self.declare(entry)
        elif isinstance(entry, Request):
            if entry.kind == "digest" and entry.attributes.get("target") == self._config.target.name:
                self._wait_for_answer(entry)
        elif entry is None:
            for inbox in self._inboxes.values():
                inbox.drop(key.removeprefix("request/"))

    def declare(self, declared: VolumeDeclaration) -> None:
        """Do what the declaration says about this target's replica, at once."""
        name = declared.volume
        task = self._task(declared)
        running = self._running.get(name)
        if running is not None and (task is None or declared.state != "active" or _moved(running.task, task)):
            self._end(name, running)
            running = None
        if task is None or declared.state == "removed":
            self._inboxes.pop(name, None)
        else:
            self._inboxes.setdefault(name, Inbox())
        if declared.state == "removed":
            self._retire(name)
            self._board.remove(name)
        elif task is None:
            self._board.remove(name)
        elif declared.state == "paused":
            self._board.publish(name, self._paused(task))
        elif running is None:
            self._running[name] = VolumeTarget(task, self._surround, self._board, self.broken.set)

    def stop(self) -> bool:
        """End all threads cleanly; tell whether all ended in time."""
        until_s = time.monotonic() + STOP_S_MAX
        for volume in self._running.values():
            volume.ask_to_stop()
        return all([volume.stop(max(0.0, until_s - time.monotonic())) for volume in self._running.values()])

    def _task(self, declared: VolumeDeclaration) -> Task | None:
        mine = [replica for replica in declared.replicas if replica.target == self._config.target.name]
        return Task(declared.volume, mine[0].path, declared.size_bytes, mine[0].delay_s) if mine else None

    def _surround(self, task: Task, stopped: threading.Event, publish: Callable[[VolumeFacts], None]) -> Surroundings:
        return Surroundings(
            self._config,
            CheckpointFile(self._folder, task.volume),
            lambda: JournalLog(self._config.kafka, task.volume, self._topics),
            ReplicaVolume,
            self._writer.put,
            publish,
            stopped,
            self._inboxes[task.volume],
            StoredHistory(task.volume, lambda: open_existing_vault(self._store_url, self._config.history)),
        )

    def _wait_for_answer(self, request: Request) -> None:
        """Let the request's volume answer it, or refuse it: a request that is repeated, as after a restart, is answered again."""
        inbox, why = self._inboxes.get(request.volume), "this target keeps no replica of the volume"
        if inbox is not None:
            try:
                why = "" if inbox.put(digest_ask(request)) else "too many requests wait"
            except ConfigError as error:
                why = error.sentence
        if why:
            event(_logger, logging.WARNING, "digest_refused", volume=request.volume, id=request.id, error=why)
            self._writer.put(refusal(request, self._config.target.name, why))

    def _end(self, name: str, running: VolumeTarget) -> None:
        running.stop()
        del self._running[name]

    def _paused(self, task: Task) -> VolumeFacts:
        facts = VolumeFacts(state="paused", path=task.path, delay_s=task.delay_s)
        try:
            checkpoint = CheckpointFile(self._folder, task.volume).load()
        except HostoffloadError as error:
            return replace(facts, error=error.sentence, hint=error.hint)
        if checkpoint is None:
            return facts
        return replace(
            facts,
            position=checkpoint.chain.position,
            consistent_at=checkpoint.label.consistent_at,
            not_until=checkpoint.label.not_until,
            open_gaps=len(checkpoint.chain.open_gaps) + len(checkpoint.chain.own_gaps),
            gaps=checkpoint.chain.gaps,
            **checkpoint.verify.facts(),
        )

    def _retire(self, name: str) -> None:
        """Note that the volume was removed: should it be added again, its replica may be another."""
        file = CheckpointFile(self._folder, name)
        try:
            checkpoint = file.load()
            if checkpoint is not None and not checkpoint.retired:
                file.save(replace(checkpoint, retired=True))
        except HostoffloadError as error:
            event(_logger, logging.WARNING, "checkpoint_not_retired", volume=name, error=error.sentence)


def run(config: Config, state_dir: Path, folder: Path | None = None) -> int:
    """Keep this target's replicas until SIGTERM or SIGINT; return the exit code. Call it in the main thread.

    `folder` is for the checkpoints of a further target on the same state folder.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        return _run(config, Path(state_dir), folder or Path(state_dir) / "target", stopped)
    except HostoffloadError as error:
        event(_logger, logging.ERROR, "error", error=error.sentence, hint=error.hint, **error.facts)
        return error.exit_code


def _run(config: Config, state_dir: Path, folder: Path, stopped: threading.Event) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / "lock", stopped)
    try:
        writer = ControlWriter(config.kafka)
        board = Board()
        reports = ReportThread(board, Reporter(state_dir, "target", config.target.name, writer))
        target = Target(config, folder, writer, board, state_dir / "store")
        _follow(config, target, stopped)
        if not target.stop():  # a thread that waits for the broker: its replica is durable as the checkpoint says
            event(_logger, logging.WARNING, "target_stops_late")
        reports.stop()
        writer.close()
        return 1 if target.broken.is_set() else 0
    finally:
        os.close(lock)


def _follow(config: Config, target: Target, stopped: threading.Event) -> None:
    """Hand every change of `ho.control` to the target until it is to stop. The first look takes only the newest of each key."""
    repeats = Repeats()
    follower: Follower | None = None
    while not stopped.is_set() and not target.broken.is_set():
        try:
            if follower is None:
                follower = Follower(config.kafka)
                follower.catch_up()
                target.begin(follower.entries)
            for key, entry in follower.poll(CONTROL_POLL_S):
                target.hear(key, entry)
        except (RetryError, ResyncError) as error:  # ho.control is read again from its start: declarations are a state, not a history
            repeats.event(_logger, logging.WARNING, "control_unreadable", error=error.sentence)
            if follower is not None:
                follower.close()
                follower = None
            stopped.wait(CONTROL_POLL_S)
    if follower is not None:
        follower.close()


def _moved(running: Task, declared: Task) -> bool:
    """Tell whether a running volume must begin again; its size is told by the journal."""
    return (running.path, running.delay_s) != (declared.path, declared.delay_s)


def _lock(path: Path, stopped: threading.Event) -> int:
    """Take the lock of the state folder's target; a predecessor that is just ending is waited for. Raises ConfigError with its name."""
    until_s = time.monotonic() + LOCK_WAIT_S
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        holder = lock_exclusively(handle)
        if holder is None:
            return handle
        if time.monotonic() >= until_s or stopped.wait(0.1):
            os.close(handle)
            raise ConfigError(
                f"Another target runs on this state folder: {holder}",
                path=path.parent,
                hint="End it, or run a further one beside it: hostoffload target run --name NAME.",
            )
