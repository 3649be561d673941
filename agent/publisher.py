"""The publisher process: the Kafka side of the agent, for all volumes of the host.

Started by the supervisor (or `agent run`) beside capture; the two share only the rings. Its main thread turns records into
messages; a thread a volume serves that volume's producer; one thread follows `ho.control` and tells capture what is declared; others
report, compare with the targets, and look why Kafka acknowledges nothing. SIGKILL at any moment loses no record: the rings are in shared
memory, and the log says what arrived.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import threading
import time
from pathlib import Path

from agent.comparison import Comparisons
from agent.declarations import Declarations
from agent.doorbell import Doorbell
from agent.in_flight import InFlight
from agent.memory import make_folder
from agent.pool import WORD_CAPTURE_WAITS, WORD_PUBLISHER_SLEEPS, Pool, publisher_bytes
from agent.publication import Publication
from agent.publisher_report import PublisherReport
from agent.ring import VolumeRing
from agent.source import lock_file
from agent.stall import StallWatch
from stream.config import Config, host_name
from stream.errors import IntegrityError
from stream.log import event

LINGER_S = 0.001
SETTLED_S = 0.01
STALLED_S = 1.0
STALLED_LINGER_S = 0.005
ATTACH_INTERVAL_S = 0.1
DRAIN_S_MAX = 8.0
MALLOC_MMAP_BYTES = 8 << 20
MALLOC_TRIM_BYTES = 64 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_log = logging.getLogger(__name__)


def run(config: Config, state_dir: Path, ring_dir: Path) -> int:
    """Publish until SIGTERM or SIGINT, then drain for at most `DRAIN_S_MAX`; return the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    lock_file(state_dir / "agent" / "publisher.lock", f"The publisher of the state folder {state_dir}")
    make_folder(ring_dir)
    keep_freed_memory()
    publisher = Publisher(config, state_dir, ring_dir)
    try:
        publisher.serve(stop)
    finally:
        publisher.close()
    return 0


def keep_freed_memory() -> None:
    """Let malloc keep up to `MALLOC_TRIM_BYTES` of freed memory for the next batches; without effect on other libraries than glibc.

    By default each batch's buffers go back to the kernel and come again page by page, which was three quarters of the publisher's time.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, MALLOC_TRIM_BYTES)


class Publisher:
    """Publish every ring of the ring folder whose volume is declared."""

    def __init__(self, config: Config, state_dir: Path, ring_dir: Path) -> None:
        self._config = config
        self._name = config.agent.name or host_name()
        self._ring_dir = ring_dir
        self._bell = Doorbell(ring_dir / "publisher.bell")
        self._to_capture = Doorbell(ring_dir / "capture.bell")
        self._in_flight = InFlight(publisher_bytes(config.agent.buffer_bytes_max) // 2)
        self._pool: Pool | None = None
        self._publications: dict[str, Publication] = {}
        self._declarations = Declarations(config, state_dir, self._name, self._find)
        self._report = PublisherReport(config, state_dir, self._name, self._declarations, self._in_flight)
        self._comparisons = Comparisons(self._name, self._declarations, config.agent.compare_wait_s)
        self._stalls = StallWatch(config.kafka, lambda: list(self._publications.values()))
        self._waits_for_room = False
        self._next_attach_s = 0.0
        self._reporting = threading.Thread(target=self._tell, name="report", daemon=True)
        self._over = threading.Event()

    def serve(self, stop: threading.Event) -> None:
        """Move records to Kafka until `stop`."""
        self._declarations.start()
        self._reporting.start()
        self._stalls.start()
        last_s = 0.0
        while not stop.is_set():
            now_s = time.monotonic()
            if now_s >= self._next_attach_s:
                self._next_attach_s = now_s + ATTACH_INTERVAL_S
                self._attach()
                self._comparisons.look({name: one.ring for name, one in self._publications.items()})
            given = self._round()
            if any(one.held_back for one in self._publications.values()):
                self._waits_for_room = True
                self._bell.wait(LINGER_S if now_s - last_s < STALLED_S else STALLED_LINGER_S)
                self._waits_for_room = False
            elif given and now_s - last_s < SETTLED_S:
                time.sleep(LINGER_S)  # the rate is high: let a batch gather instead of sending each record by itself
            elif not given:
                self._sleep()
            if given:
                last_s = now_s

    def close(self) -> None:
        """Drain what can be, stop; what is left stays in the rings."""
        deadline_s = time.monotonic() + DRAIN_S_MAX
        while time.monotonic() < deadline_s and not all(one.drained or one.fenced or one.error for one in self._publications.values()):
            self._round()
            time.sleep(LINGER_S)
        self._over.set()
        self._stalls.stop()
        self._comparisons.stop()
        for one in self._publications.values():
            one.stop()
        self._reporting.join(2.0)
        self._declarations.stop()

    def _round(self) -> int:
        return sum(one.publish() for one in list(self._publications.values()))

    def _sleep(self) -> None:
        """Sleep until capture or an acknowledgement rings; look once more after saying so."""
        if self._pool is None:
            self._bell.wait()
            return
        words = self._pool.words
        words[WORD_PUBLISHER_SLEEPS] = 1
        if not self._round():
            self._bell.wait()
        words[WORD_PUBLISHER_SLEEPS] = 0

    def _attach(self) -> None:
        """Take up rings that appeared, let go of those that are gone or made anew."""
        pool_current = self._pool is not None and self._pool.memory.current
        if not pool_current:
            with contextlib.suppress(FileNotFoundError):  # capture removes the folder when it holds nothing, bells included
                self._bell.renew()
                self._to_capture.renew()
        for name, one in list(self._publications.items()):
            if not pool_current or not one.ring.memory.current:
                one.stop(0.5)
                del self._publications[name]
        if not pool_current:
            self._pool = Pool.attach(self._ring_dir / "pool")
            if self._pool is None:
                return
        for name in self._declarations.active():
            path = self._ring_dir / f"{name}.ring"
            if name not in self._publications and path.exists():
                try:
                    self._publications[name] = self._publish(VolumeRing.attach(path))
                except (FileNotFoundError, IntegrityError) as error:
                    event(_log, logging.WARNING, "ring_not_attached", volume=name, reason=error)

    def _publish(self, ring: VolumeRing) -> Publication:
        publication = Publication(
            self._config.kafka,
            self._name,
            ring,
            self._pool,
            self._in_flight,
            self._acknowledged,
            self._declarations.announce,
            self._declarations.tell,
            self._declarations.newest_epoch,
            self._declarations.claimant,
        )
        publication.start()
        return publication

    def _acknowledged(self) -> None:
        """Wake capture if it waits for memory or a flush, and the main thread if it waits for the limit."""
        pool = self._pool
        if pool is None:  # capture made it anew: it looks by itself when it starts
            return
        words = pool.words
        if words[WORD_CAPTURE_WAITS]:
            words[WORD_CAPTURE_WAITS] = 0
            self._to_capture.ring()
        if words[WORD_PUBLISHER_SLEEPS] or self._waits_for_room:
            self._bell.ring()

    def _find(self, volume: str) -> Publication | None:
        return self._publications.get(volume)

    def _tell(self) -> None:
        while not self._over.wait(0.1):
            self._report.tell(dict(self._publications))
