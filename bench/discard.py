"""A publisher that throws everything away: it plays the publisher's part on the rings, so that capture can be measured without Kafka.

It claims an epoch that it believes clean (no first copy), joins and encodes every batch as the real publisher does, and acknowledges it at
once. Run by `bench.service` only; the product has no such mode.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path

from agent import ring as layout
from agent.doorbell import Doorbell
from agent.in_flight import InFlight
from agent.memory import make_folder
from agent.messages import collect
from agent.pool import WORD_CAPTURE_WAITS, WORD_PUBLISHER_SLEEPS, Pool
from agent.publication import Publication
from agent.publisher import LINGER_S, SETTLED_S, keep_freed_memory
from agent.ring import VolumeRing
from stream.codec import encode_writes
from stream.config import KafkaConfig
from stream.log import event

ATTACH_INTERVAL_S = 0.05
FIRST_SEQUENCE = 1
_log = logging.getLogger(__name__)


class Discarded(Publication):
    """One volume's records, joined and encoded by the product's own code, and dropped."""

    def __init__(self, ring: VolumeRing, pool: Pool) -> None:
        words = ring.words
        if words[layout.W_CLAIMED] != layout.CLAIM_DONE:
            words[layout.W_EPOCH] = 1
            words[layout.W_INCARNATION] = int.from_bytes(secrets.token_bytes(8), "little")
            words[layout.W_HEAD] = words[layout.W_ACKED] = words[layout.W_SENT] = FIRST_SEQUENCE
            words[layout.W_CLEAN] = layout.CLEAN_PROVED
            words[layout.W_CLAIMED] = layout.CLAIM_DONE
        super().__init__(KafkaConfig(), "bench", ring, pool, InFlight(0), _nothing, _nothing, _nothing, lambda _: 0, lambda _: "bench")

    def publish(self) -> int:
        """Take what the ring has; return the bytes that Kafka would have got."""
        given, words = 0, self._words
        head, acked = words[layout.W_HEAD], words[layout.W_ACKED]
        while acked < head:
            batch, pieces = collect(self.ring, self._pool, acked + 1, head, self._refusals.limit)
            given += len(encode_writes(batch, self._incarnation(), pieces))
            acked += batch.count
            words[layout.W_ACKED_BYTES] += sum(map(len, pieces))
            words[layout.W_ACKED] = words[layout.W_SENT] = acked
            words[layout.W_PROGRESS_NS] = time.monotonic_ns()
        return given


class DiscardingPublisher:
    """Follow every ring of a ring folder until stopped, with the pace of `agent.publisher`."""

    def __init__(self, ring_dir: Path) -> None:
        make_folder(ring_dir)
        keep_freed_memory()
        self._ring_dir = ring_dir
        self._bell = Doorbell(ring_dir / "publisher.bell")
        self._to_capture = Doorbell(ring_dir / "capture.bell")
        self._pool: Pool | None = None
        self._discarded: dict[str, Discarded] = {}

    def serve(self, stop: threading.Event) -> None:
        """Discard until `stop`."""
        last_s = next_attach_s = 0.0
        while not stop.is_set():
            now_s = time.monotonic()
            if now_s >= next_attach_s:
                next_attach_s = now_s + ATTACH_INTERVAL_S
                self._attach()
            given = self._round()
            if given and now_s - last_s < SETTLED_S:
                time.sleep(LINGER_S)
            elif not given:
                self._sleep()
            if given:
                last_s = now_s

    def _round(self) -> int:
        given = sum(one.publish() for one in self._discarded.values())
        if given and self._pool.words[WORD_CAPTURE_WAITS]:
            self._pool.words[WORD_CAPTURE_WAITS] = 0
            self._to_capture.ring()
        return given

    def _sleep(self) -> None:
        if self._pool is None:
            self._bell.wait()
            return
        words = self._pool.words
        words[WORD_PUBLISHER_SLEEPS] = 1
        if not self._round():
            self._bell.wait()
        words[WORD_PUBLISHER_SLEEPS] = 0

    def _attach(self) -> None:
        if self._pool is None:
            self._pool = Pool.attach(self._ring_dir / "pool")
        if self._pool is None:
            return
        for path in self._ring_dir.glob("*.ring"):
            if path.stem not in self._discarded:
                self._discarded[path.stem] = Discarded(VolumeRing.attach(path), self._pool)
                event(_log, logging.INFO, "ring_discarding", volume=path.stem)


def _nothing(*_: object) -> None:
    """Take the place of what a publication tells the publisher."""
