"""The verifier: proves that the replica is right, by telling the stream what the source holds (design section 8, "Verify").

One thread a volume. It reads the source chunk by chunk, each as it is at one position, and publishes the digest as a `verify` mark at that
very position; the target compares its replica there. A round covers the whole volume in rising order. Rounds run in the background at
`bytes_per_s`, or at once when one is asked for; only in DATA, for elsewhere a comparison proves nothing.
"""

from __future__ import annotations

import logging
import threading
import time

import xxhash

from agent.modes import Mode
from agent.settled import Settled
from agent.volume import Volume
from stream.log import Repeats, event
from stream.record import Kind

CHUNK_BYTES = 1 << 20
IDLE_S = 0.2
PAUSE_S = 1.0
REST_S = 60.0
"""After a round that was asked for the background rests: everything was compared just now."""
OWED_PAUSE_S = 0.05
YIELD_SHARE = 0.5
"""Of the time, at most, that a round asked for works while applications write."""
_log = logging.getLogger(__name__)


class Verifier:
    """Publish digests of the source until stopped."""

    def __init__(self, volume: Volume, bytes_per_s: int) -> None:
        self._volume = volume
        self._bytes_per_s = bytes_per_s
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._asked: str | None = None
        self._rest_until_s = 0.0
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name=f"verify-{volume.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop after the chunk at hand; tell whether it did in time."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def begin_round(self, round_id: str) -> bool:
        """Begin a round at once, in place of the one under way; tell whether it begins. Only in DATA."""
        if self._volume.mode is not Mode.DATA:
            return False
        self._asked = round_id
        self._wake.set()
        return True

    def _run(self) -> None:
        while not self._over:
            asked, self._asked = self._asked, None
            try:
                if asked is not None:
                    self._round(asked, 0)
                    self._rest_until_s = time.monotonic() + REST_S
                elif self._bytes_per_s and time.monotonic() >= self._rest_until_s:
                    self._round(f"b{time.time_ns()}", self._bytes_per_s)
                    self._pause(PAUSE_S)
                else:
                    self._pause(IDLE_S)
            except OSError as error:
                if self._over:
                    return
                self._repeats.event(_log, logging.WARNING, "source_not_verified", volume=self._volume.name, error=error.strerror)
                self._pause(PAUSE_S)

    def _round(self, round_id: str, bytes_per_s: int) -> None:
        """Go once over the volume; ends early if another round is asked for, or order is lost."""
        at, began_s = 0, time.monotonic()
        while at < self._volume.size_bytes:
            if self._over or self._asked is not None or self._volume.mode is not Mode.DATA:
                return
            chunk_s, head = time.monotonic(), self._volume.log.head
            end = min(at + CHUNK_BYTES, self._volume.size_bytes)
            if not self._publish(round_id, at, end):
                self._pause(OWED_PAUSE_S)
                continue
            at = end
            if bytes_per_s:
                self._pause(began_s + at / bytes_per_s - time.monotonic())
            elif self._volume.log.head - head > 1:
                self._pause((time.monotonic() - chunk_s) * (1 / YIELD_SHARE - 1))
        event(_log, logging.INFO, "verify_round", volume=self._volume.name, round=round_id, took_s=round(time.monotonic() - began_s, 1))

    def _publish(self, round_id: str, start_bytes: int, end_bytes: int) -> bool:
        """Publish the digest of one chunk, at the position that it is of; False if some of it is owed, which no replica can have yet."""
        volume = self._volume
        last = "true" if end_bytes == volume.size_bytes else "false"
        told = {"offset_bytes": str(start_bytes), "length_bytes": str(end_bytes - start_bytes), "round": round_id, "last": last}
        into = self._buffer[: end_bytes - start_bytes]
        with volume.marks.prepared() as append, Settled(volume.source.file, volume.locks, start_bytes, into) as view:
            told["digest"] = xxhash.xxh3_128_hexdigest(view)
            return append(Kind.VERIFY, lambda: told if self._comparable(start_bytes, end_bytes) else None) is not None

    def _comparable(self, start_bytes: int, end_bytes: int) -> bool:
        """Tell whether a replica that has everything up to here must have these bytes; the mutex is held."""
        return self._volume.mode is Mode.DATA and not self._volume.debts.owes(start_bytes, end_bytes)

    @property
    def _over(self) -> bool:
        return self._stop.is_set() or self._volume.log.failure is not None

    def _pause(self, seconds: float) -> None:
        """Wait, but not when a round is asked for."""
        if seconds > 0:
            self._wake.wait(seconds)
        if not self._stop.is_set():
            self._wake.clear()
