"""What the publisher reports: how far each volume is in Kafka, the RPO lags, and how long the buffer would last.

Lags come from the agent's clock alone (`agent.clock`), against positions that CX and targets tell on `ho.status` (design rule 9).
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from agent.clock import now_ns as agent_now_ns
from agent.declarations import Declarations
from agent.in_flight import InFlight
from agent.modes import Mode
from agent.pool import CHUNK_BYTES, pool_chunks
from agent.publication import Publication
from agent.ring import ENTRY_BYTES, W_ACKED, W_CAPTURED_BYTES, W_HEAD, W_MODE, W_MODE_SINCE_NS, W_RESYNC_BYTES, VolumeRing
from stream.config import Config
from stream.control import Follower, ProcessReport, VolumeReport
from stream.errors import HostoffloadError
from stream.log import Repeats
from stream.position import ZERO, Position
from stream.report import Reporter
from stream.topics import STATUS_TOPIC

RATE_WINDOW_S = 5.0
RATE_BYTES_PER_S_MIN = 1024
BACKOFF_S = 1.0
TOLD_OF_TARGETS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "delay_s": float,
        "open_gaps": int,
        "gaps": int,
        "repairs_open": int,
        "applied_capture_ns": int,
        "consistent_at": str,
        "not_until": str,
        "proved_position": str,
        "verify_round": str,
        "verify_percent": float,
        "verify_mismatches": int,
        "verify_ended": json.loads,
        "error": str,
    }
)
_log = logging.getLogger(__name__)


class PublisherReport:
    """Gather and write the report; `tell` is called by one thread."""

    def __init__(self, config: Config, state_dir: Path, agent: str, declarations: Declarations, in_flight: InFlight) -> None:
        self._config = config
        self._declarations = declarations
        self._in_flight = in_flight
        self._reporter = Reporter(state_dir, "publisher", agent, declarations.writer)
        self._targets: dict[str, dict[str, TargetFacts]] = {}
        self._cx: dict[str, CxFacts] = {}
        self._rates: dict[str, Rate] = {}
        self._lost: dict[str, LostOrder] = {}
        self._repeats = Repeats()
        threading.Thread(target=self._follow_others, name="status", daemon=True).start()

    def tell(self, publications: Mapping[str, Publication]) -> None:
        """Report every volume."""
        now = Now(time.time_ns(), time.monotonic_ns())
        rates = {name: self._rates.setdefault(name, Rate()).per_s(one.ring, now) for name, one in publications.items()}
        waiting = sum(pending_bytes(one) for one in publications.values())
        free = max(0, pool_chunks(self._config.agent.buffer_bytes_max) * CHUNK_BYTES - waiting)
        outage_s = seconds_until_full(free, sum(rates.values()))
        facts = {name: self._facts(name, one, outage_s, now) for name, one in publications.items()}
        try:
            self._reporter.report(facts)
        except OSError as error:  # a full disk must not end the report for good
            self._repeats.event(_log, logging.ERROR, "report_not_written", error=error.strerror)

    def _facts(self, name: str, one: Publication, outage_s: float | None, now: Now) -> tuple[Position, dict[str, Any]]:
        applied, lag = self._applied_by_all(name), one.lag
        journaled, persisted = self._cx.get(name, CxFacts()).below(one.ring.position(W_HEAD))
        if applied is not None:
            lag.forget(applied)
        lag.look(now.monotonic_ns)
        lost_ns = self._lost.setdefault(name, LostOrder()).age_ns(one.ring, now)
        clocks = agent_now_ns(one.ring.words), now.monotonic_ns

        def age_ns(oldest: tuple[Position, int] | None) -> int:
            return 0 if oldest is None else lag.age_ns(oldest[0].sequence, oldest[1], *clocks)

        def rpo_ms(reached: Position | None) -> float | None:
            return None if reached is None else max(age_ns(lag.oldest_after(reached)), lost_ns or 0) / 1e6

        unapplied = lag.oldest_after(applied) if applied is not None else None
        unapplied_ns = None if unapplied is None else now.wall_ns - age_ns(unapplied)
        return one.ring.position(W_ACKED), {
            "captured": str(one.ring.position(W_HEAD)),
            "rpo_stream_ms": max(age_ns(lag.oldest_unacked()), lost_ns or 0) / 1e6,
            "rpo_journal_ms": rpo_ms(journaled),
            "rpo_store_ms": rpo_ms(persisted),
            "rpo_replica_ms": rpo_ms(applied),
            "journaled": None if journaled is None else str(journaled),
            "persisted": None if persisted is None else str(persisted),
            "applied": None if applied is None else str(applied),
            "oldest_unapplied_position": None if unapplied is None else str(unapplied[0]),
            "oldest_unapplied_capture_ns": unapplied_ns,
            "order_lost_ns": None if lost_ns is None else now.wall_ns - lost_ns,
            "backlog_bytes": one.backlog_bytes(),
            "outage_s": 0.0 if one.ring.words[W_MODE] == Mode.BITMAP else outage_s,
            "targets": json.dumps(self._told_of_targets(name, now)),
            "fenced": one.fenced,
            "error": one.error,
        }

    def _applied_by_all(self, volume: str) -> Position | None:
        """Return the least position that the declared targets without a delay tell; None before any told one."""
        told, declared = self._targets.get(volume, {}), self._declarations.targets(volume)
        known = [one.position for target, one in told.items() if not one.delay_s and (not declared or target in declared)]
        return min((position for position in known if position != ZERO), default=None)

    def _told_of_targets(self, volume: str, now: Now) -> dict[str, dict[str, Any]]:
        """Return what the targets told last and how long ago, wherever they run: for who does not see their own reports."""
        return {
            target: {"position": str(one.position), "pid": one.pid, "heard_age_s": one.age_s(now), **one.facts}
            for target, one in self._targets.get(volume, {}).items()
        }

    def _follow_others(self) -> None:
        while True:
            follower = Follower(self._config.kafka, STATUS_TOPIC)
            try:
                while True:
                    for _, entry in follower.poll(1.0):
                        if isinstance(entry, ProcessReport):
                            self._hear(entry)
            except HostoffloadError:
                time.sleep(BACKOFF_S)
            finally:
                follower.close()

    def _hear(self, report: ProcessReport) -> None:
        if report.kind == "cx":
            for one in report.volumes:
                self._cx[one.volume] = self._cx.get(one.volume, CxFacts()).told(one)
        for one in report.volumes if report.kind == "target" else ():
            known = self._targets.setdefault(one.volume, {})
            known[report.instance] = TargetFacts.told(report, one, known.get(report.instance))


class TargetFacts(NamedTuple):
    """What a target told last of a volume, as values."""

    position: Position
    delay_s: float
    facts: dict[str, Any]
    pid: int
    at_ns: int
    heard_ns: int | None = None
    """When it was heard, on the monotonic clock; None while only one report is known, which may have stood in the topic for long."""

    @classmethod
    def told(cls, report: ProcessReport, one: VolumeReport, before: TargetFacts | None) -> TargetFacts:
        """Return the facts after a report; what of it can't be read is not known."""
        facts: dict[str, Any] = {}
        for name, kind in TOLD_OF_TARGETS.items():
            if one.facts.get(name):
                with contextlib.suppress(ValueError):
                    facts[name] = kind(one.facts[name])
        heard_ns = None if before is None else before.heard_ns if before.at_ns == report.at_ns else time.monotonic_ns()
        return cls(one.position, facts.get("delay_s", 0.0), facts, report.pid, report.at_ns, heard_ns)

    def age_s(self, now: Now) -> float | None:
        """Return for how long nothing was heard of it."""
        return None if self.heard_ns is None else round((now.monotonic_ns - self.heard_ns) / 1e9, 1)


class CxFacts(NamedTuple):
    """How far a volume is in the journal and in the store, as the worker told that spoke last and knew it."""

    journaled: Position | None = None
    persisted: Position | None = None

    def told(self, report: VolumeReport) -> CxFacts:
        """Return the facts after one more report; a worker that has just taken the volume knows nothing yet."""
        journaled = report.position if report.position != ZERO else self.journaled
        persisted = report.facts.get("persisted")
        return CxFacts(journaled, Position.parse(persisted) if persisted else self.persisted)

    def below(self, head: Position) -> CxFacts:
        """Return what can be true of a volume whose newest position this is: what is above was told of one of its name before it."""
        return CxFacts(*(one if one is not None and one <= head else None for one in self))


class Now(NamedTuple):
    """One moment on both clocks."""

    wall_ns: int
    monotonic_ns: int


class Rate:
    """How fast a volume takes memory for what it records, over the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def per_s(self, ring: VolumeRing, now: Now) -> float:
        """Return bytes a second: payload, and an entry for each record; nothing in BITMAP, which records nothing."""
        words, now_s = ring.words, now.monotonic_ns / 1e9
        count = words[W_CAPTURED_BYTES] + words[W_RESYNC_BYTES] + words[W_HEAD] * ENTRY_BYTES
        if words[W_MODE] == Mode.BITMAP or (self._seen and count < self._seen[-1][1]):  # or the ring was made anew
            self._seen.clear()
        self._seen.append((now_s, count))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.pop(0)
        first_s, first = self._seen[0]
        return (count - first) / (now_s - first_s) if now_s > first_s else 0.0


class LostOrder:
    """Since when a volume's changes are not in the stream in order: from BITMAP on until the resync after it is done."""

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def age_ns(self, ring: VolumeRing, now: Now) -> int | None:
        """Return for how long order is lost, None if it is kept. A resync that no BITMAP went before owes nothing that was just written."""
        mode = ring.words[W_MODE]
        if mode == Mode.BITMAP and self._since_ns is None:  # the ring knows since when, on the wall clock
            self._since_ns = now.monotonic_ns - max(0, now.wall_ns - ring.words[W_MODE_SINCE_NS])
        elif mode not in (Mode.BITMAP, Mode.RESYNC):
            self._since_ns = None
        return None if self._since_ns is None else now.monotonic_ns - self._since_ns


def pending_bytes(one: Publication) -> int:
    """Return how much memory waits for Kafka."""
    return one.backlog_bytes() + (one.ring.words[W_HEAD] - one.ring.words[W_ACKED]) * ENTRY_BYTES


def seconds_until_full(free_bytes: int, bytes_per_s: float) -> float | None:
    """Return how long the buffer lasts at this rate; None if there is no end in sight."""
    return round(free_bytes / bytes_per_s, 1) if bytes_per_s >= RATE_BYTES_PER_S_MIN else None
