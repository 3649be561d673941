"""Digests that the agent asks a target for: which parts of the replica it need not be sent again (design rule 3).

The target's control thread puts requests into a volume's `Inbox`; the volume's session, which alone may read the replica, answers them
between its windows, a piece at a time, so that applying and reports go on. A request is answered when everything before the gap that it
names is in the replica: the session holds right before that gap, or has applied it. Each chunk is digested as it is then or later, and
later records are applied over it whatever the answer was; so a chunk that equals the source's, read by the agent after that, will be
equal when the same records were applied to it.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cx_consumers.replica import ReplicaVolume
from cx_consumers.target_verify import Spans, spans_of
from stream.control import Answer, Request
from stream.errors import ConfigError
from stream.position import Position
from stream.record import DIGEST_BYTES

DIGEST_CHUNK_BYTES = 64 << 10
ASK_BYTES_MAX = 256 << 20
ASK_EXTENTS_MAX = 4096
PIECE_BYTES_MAX = 8 << 20
WAITING_MAX = 4096
UNREADABLE = bytes(DIGEST_BYTES)
"""The digest of a chunk that the disk can't read: equal to nothing."""


@dataclass(frozen=True, slots=True)
class DigestAsk:
    """A request that is understood: the digests of these extents, once everything before `gap` is applied."""

    id: str
    volume: str
    gap: Position
    spans: Spans


def digest_ask(request: Request) -> DigestAsk:
    """Read a request of kind `digest`. Raises ConfigError when it can't be understood or asks for too much."""
    told = request.attributes
    gap = Position.parse(told.get("gap", ""))
    try:
        spans = spans_of(told.get("extents", ""))
    except ValueError as error:
        raise ConfigError(f"The extents of the request are wrong: {error}", id=request.id) from error
    if not spans or len(spans) > ASK_EXTENTS_MAX or sum(end - start for start, end in spans) > ASK_BYTES_MAX:
        raise ConfigError("The request names no extents, or too much", id=request.id)
    if any(start % DIGEST_CHUNK_BYTES for start, _ in spans) or any(end % DIGEST_CHUNK_BYTES for _, end in spans[:-1]):
        raise ConfigError(f"An extent of the request is no multiple of {DIGEST_CHUNK_BYTES} bytes", id=request.id)
    return DigestAsk(request.id, request.volume, gap, spans)


class Inbox:
    """The requests of one volume that wait for their answer. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, DigestAsk] = {}

    def put(self, ask: DigestAsk) -> bool:
        """Let a request wait; False if there is no room."""
        with self._lock:
            if len(self._waiting) >= WAITING_MAX and ask.id not in self._waiting:
                return False
            self._waiting[ask.id] = ask
            return True

    def drop(self, ask_id: str) -> None:
        """Forget a request: it was answered or is not wanted any more."""
        with self._lock:
            self._waiting.pop(ask_id, None)

    def keep(self, asked: Iterable[str]) -> None:
        """Forget all but these."""
        with self._lock:
            wanted = set(asked)
            self._waiting = {one.id: one for one in self._waiting.values() if one.id in wanted}

    def holds(self, ask: DigestAsk) -> bool:
        """Tell whether this request still waits, and asks for the same."""
        with self._lock:
            return self._waiting.get(ask.id) == ask

    def find(self, holds: Callable[[DigestAsk], bool]) -> DigestAsk | None:
        """Return the oldest request of which that is true."""
        if not self._waiting:  # the usual case, looked at every turn
            return None
        with self._lock:
            return next((one for one in self._waiting.values() if holds(one)), None)


class DigestServer:
    """Answer a volume's requests from its replica. One thread uses it, while nothing else is written or read there."""

    def __init__(self, inbox: Inbox, replica: ReplicaVolume, put: Callable[[Answer], None], target: str) -> None:
        self._inbox = inbox
        self._replica = replica
        self._put = put
        self._answered_by = f"target/{target}"
        self._reading: _Reading | None = None

    def waits(self, applied: Position, held_before: Position | None) -> bool:
        """Tell whether `serve` has something to do for a replica at `applied`, held before the gap at `held_before` if any."""
        return self._next(applied, held_before) is not None

    def serve(self, applied: Position, held_before: Position | None) -> None:
        """Do one piece of work: read at most `PIECE_BYTES_MAX`, answer when the last was read. Raises RetryError if that can't be told."""
        ask = self._next(applied, held_before)
        if ask is None:
            return
        if self._reading is None:
            self._reading = _Reading(ask, applied)
        if not self._reading.read(self._replica):
            return
        self._put(self._reading.answer(self._answered_by))
        self._inbox.drop(ask.id)
        self._reading = None

    def _next(self, applied: Position, held_before: Position | None) -> DigestAsk | None:
        if self._reading is not None:
            if self._inbox.holds(self._reading.ask):
                return self._reading.ask
            self._reading = None  # the agent gave it up, or asks for something else
        return self._inbox.find(lambda one: one.gap <= applied or one.gap == held_before)


class _Reading:
    """A request that is being answered."""

    def __init__(self, ask: DigestAsk, position: Position) -> None:
        self.ask = ask
        self._position = position
        self._digests: list[bytes] = []
        self._left = [(at, min(at + DIGEST_CHUNK_BYTES, end)) for start, end in ask.spans for at in range(start, end, DIGEST_CHUNK_BYTES)]
        self._left.reverse()

    def read(self, replica: ReplicaVolume) -> bool:
        """Digest the next piece; tell whether that was the last."""
        for _ in range(PIECE_BYTES_MAX // DIGEST_CHUNK_BYTES):
            if not self._left:
                break
            start, end = self._left.pop()
            self._digests.append(replica.digest(start, end - start) or UNREADABLE)
        return not self._left

    def answer(self, answered_by: str) -> Answer:
        told = {"position": str(self._position), "digests": base64.b64encode(b"".join(self._digests)).decode()}
        return Answer(self.ask.id, True, told, answered_by, time.time_ns())


def refusal(request: Request, target: str, why: str) -> Answer:
    """Return the answer to a request that this target can't serve."""
    return Answer(request.id, False, {"error": why}, f"target/{target}", time.time_ns())
