"""Folds and retention of the assigned volumes, beside persist: a thread a volume that asks, one process a worker that does.

Folding is arithmetic in Python: in the worker's own process it would take turns with order and be seen in every latency. So it runs in a
child at the lowest priority, one volume after the other, which bounds its memory too. The child ends when its standard input does: a worker
that is killed leaves nothing behind. Nothing is remembered: what is due is seen in the store's listing, by whoever has the volume
(`history.upkeep`), and two who have it do no harm.

Child and worker speak lines of JSON. To the child: first the policy, then `{"volume"}` for each turn. From it, for each turn: `{"folded",
"folds", "expired", "different", "reach"}`, or `{"error", "hint", "kind"}`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from history.retention_table import FOR_EVER, parse_table
from history.upkeep import Policy, Reach, Upkeep
from history.vault import open_vault
from stream.config import HistoryConfig
from stream.errors import ConfigError, HostoffloadError, IntegrityError, RetryError
from stream.log import Repeats, event

NICENESS = 19
STOP_S = 2.0
_KINDS: dict[str, type[HostoffloadError]] = {kind.__name__: kind for kind in (RetryError, ConfigError, IntegrityError)}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn came to: the highest end of a fold (None: there is none), how many folds were made and segments deleted, what the
    store was found to show otherwise than the source had it, as `(position, offset_bytes, length_bytes)` (design rule 26), and how far
    back it goes now (None: nothing is stored)."""

    folded: str | None
    folds: int
    expired: int
    different: tuple[tuple[str, int, int], ...] = ()
    reach: Reach | None = None


def policy_of(config: HistoryConfig) -> Policy:
    """Return what the config says. Raises ConfigError for a table that is none."""
    days = config.bookmarks_d
    return Policy(
        parse_table(config.retention),
        FOR_EVER if days < 0 else int(days * 86_400 * 10**9),
        config.bytes_max,
        config.codec,
        Path(config.scratch_dir) if config.scratch_dir else None,
    )


class FoldProcess:
    """The child of a worker. `turn` may be called from any thread; one volume is at work at a time."""

    def __init__(self, store_url: str, config: HistoryConfig) -> None:
        policy_of(config)  # a wrong table is told here, once
        self._told = {"store_url": store_url} | {name: getattr(config, name) for name in HistoryConfig.__slots__}
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def turn(self, volume: str) -> Turn:
        """Have what is due for a volume done; block until it is, and until others are. Raises RetryError, ConfigError, IntegrityError."""
        with self._lock:
            if self._stopped:
                raise RetryError("The worker stops")
            process = self._started()
            try:
                answer = json.loads(self._ask(process, {"volume": volume}))
            except (OSError, ValueError) as error:
                self._end(process)
                raise RetryError("The process that folds history has ended", hint="It is started again by itself.") from error
        if "error" in answer:
            raise _KINDS.get(answer["kind"], RetryError)(answer["error"], hint=answer["hint"])
        different = tuple((position, offset, length) for position, offset, length in answer["different"])
        reach = None if answer["reach"] is None else Reach(*answer["reach"])
        return Turn(answer["folded"], answer["folds"], answer["expired"], different, reach)

    def stop(self) -> None:
        """End the child, in the middle of a fold too; return when it is gone."""
        self._stopped = True
        if (process := self._process) is not None:
            self._end(process)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "cx_consumers.fold"]
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            except OSError as error:
                raise RetryError(f"The process that folds history can't be started: {error.strerror}") from error
            assert self._process.stdin is not None
            with suppress(OSError):  # one that ended at once is noticed by who asks it
                self._process.stdin.write(json.dumps(self._told) + "\n")
        return self._process

    def _ask(self, process: subprocess.Popen[str], told: dict[str, Any]) -> str:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        return process.stdout.readline()

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class FoldThread:
    """The upkeep of one volume: asks for a turn every `history.every_s`, and has copied again (`repair`) what the store shows otherwise
    than the source had it. `facts` may be called from any thread."""

    def __init__(
        self,
        volume: str,
        every_s: float,
        turn: Callable[[str], Turn],
        crashed: Callable[[BaseException], None] = lambda error: None,
        repair: Callable[[str, str, int, int], None] = lambda volume, position, offset_bytes, length_bytes: None,
        promised_s: float | None = None,
    ) -> None:
        self._volume = volume
        self._promised_s = promised_s
        self._every_s = every_s
        self._turn = turn
        self._crashed = crashed
        self._repair = repair
        self._different = 0
        self._stop = threading.Event()
        self._repeats = Repeats()
        self._last = Turn(None, 0, 0)
        self._error: HostoffloadError | None = None
        self._thread = threading.Thread(target=self._run, name=f"fold-{volume}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def facts(self) -> dict[str, Any]:
        """Return what the CX reports: `folded` (position; None: nothing yet); since the start `folds`, `expired` and `history_different`
        (chunks that the store showed otherwise than the source); `fold_error`. `every_write_s` and `history_s`: how far back every write,
        and any moment, is stored (None: not known, as long as there is an error); `promised_s`: how far back every write is to be kept."""
        last, error = self._last, self._error
        reach = last.reach if error is None else None
        return {
            "folded": last.folded,
            "folds": last.folds,
            "expired": last.expired,
            "history_different": self._different,
            "every_write_s": None if reach is None else reach.every_write_ns / 1e9,
            "history_s": None if reach is None else reach.oldest_ns / 1e9,
            "promised_s": self._promised_s,
            "fold_error": None if error is None else error.sentence,
            "fold_error_hint": (error.hint or None) if error is not None else None,
        }

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every_s):
                self._once()
        except BaseException as error:
            self._crashed(error)

    def _once(self) -> None:
        try:
            done = self._turn(self._volume)
        except HostoffloadError as error:  # whatever it is, history only grows meanwhile
            if not self._stop.is_set():
                self._error = error
                self._repeats.event(_log, logging.WARNING, "fold_error", volume=self._volume, error=str(error), hint=error.hint or None)
            return
        self._error = None
        if done.folds or done.expired:
            event(_log, logging.INFO, "folded", volume=self._volume, position=done.folded, folds=done.folds, expired=done.expired)
        for position, offset_bytes, length_bytes in done.different:
            self._different += 1
            event(_log, logging.ERROR, "history_in_doubt", volume=self._volume, position=position, offset=offset_bytes, length=length_bytes)
            self._repair(self._volume, position, offset_bytes, length_bytes)
        self._last = replace(done, folds=self._last.folds + done.folds, expired=self._last.expired + done.expired)


def main() -> None:
    """Be the child: do turns until the standard input ends, then end at once, in the middle of one too."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for the worker, which ends this one
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), name="listen", daemon=True).start()
    told = json.loads(lines.get())
    url = told.pop("store_url")
    upkeeps: dict[str, Upkeep] = {}
    while True:
        volume = json.loads(lines.get())["volume"]
        try:
            if volume not in upkeeps:
                config = HistoryConfig(**told)
                upkeeps[volume] = Upkeep(open_vault(url, config), volume, policy_of(config), clock_ns=time.time_ns)
            answer: dict[str, Any] = _turn(upkeeps[volume])
        except HostoffloadError as error:
            answer = {"error": str(error), "hint": error.hint, "kind": type(error).__name__}
        print(json.dumps(answer), flush=True)


def _turn(upkeep: Upkeep) -> dict[str, Any]:
    folds, deleted = upkeep.folds, upkeep.deleted
    upkeep.run_once()
    folded = None if upkeep.folded is None else str(upkeep.folded)
    different = [(str(one.position), one.chunk.offset_bytes, one.chunk.length_bytes) for one in upkeep.different]
    reach = None if upkeep.reach is None else (upkeep.reach.every_write_ns, upkeep.reach.oldest_ns)
    made, expired = upkeep.folds - folds, upkeep.deleted - deleted
    return {"folded": folded, "folds": made, "expired": expired, "different": different, "reach": reach}


def _listen(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
