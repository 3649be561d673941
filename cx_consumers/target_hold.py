"""A hold: the replica stays consistent before a gap while the target reads on, until the gap is closed (design section 7, rule 25). Pure.

The held message must not be lost meanwhile: a hold ends as a `follow` before the journal's retention can reach it. Kafka deletes a
segment when its newest message is older than `retention.ms`, or when what comes after it is more than `retention.bytes`; the held
message is safe at least as long as neither is true of it. If a store has what follows it, up to some kafka_offset, the same holds of the
first message that is not stored: a hold lasts as long as the store keeps up.
"""

from __future__ import annotations

from collections import deque

from cx_consumers.target_chain import ChainState, Step, mark_indexes, opens_gap
from stream.config import KafkaConfig
from stream.journal import FIRST_COPY
from stream.position import Position
from stream.record import Batch

RETENTION_SHARE_MAX = 0.5
MARK_INTERVAL_MS = 1000


def begins_hold(before: ChainState, after: ChainState) -> bool:
    """Tell whether a message ends consistency: all was closed before it and something is open after it."""
    return before.whole and not after.whole and FIRST_COPY not in {gap.reason for gap in after.open_gaps}


def gap_opened(done: Step, batch: Batch | None) -> tuple[Position, int]:
    """Return the position of the first gap that a message opens, and how many of its records (`batch`) come before that."""
    for index in mark_indexes(batch) if batch is not None else ():
        if opens_gap(batch, index):
            return Position(batch.epoch, batch.first_sequence + index), index
    before = (*done.before.open_gaps, *done.before.own_gaps)
    return min(gap.position for gap in (*done.state.open_gaps, *done.state.own_gaps) if gap not in before), 0


class Hold:
    """One hold: where it stands, what has been read ahead of it, and whether retention comes near.

    `held` is the state of the replica, `gap` the position of the gap that it stands right before, `begins_at` the kafka_offset of the
    message that opens it: at or, behind a split that never ended, above it.
    """

    def __init__(self, held: ChainState, begins_at: int, gap: Position, config: KafkaConfig) -> None:
        self.held = held
        self.begins_at = begins_at
        self.gap = gap
        self.seen = held
        self.waiting_bytes = 0
        self._config = config
        self._log_bytes = 0
        self._first_ms: int | None = None
        self._last_ms = 0
        self._marks: deque[tuple[int, int, int]] = deque()  # kafka_offset of a message, its time, the bytes before it: one a second
        self._quiet: tuple[int, float] = (-1, 0.0)  # what was seen, and since when nothing more is
        self._log_start: int | None = None
        self._log_step = 0

    @property
    def over(self) -> bool:
        """Tell whether all is closed again after the message that began it."""
        return self.seen.kafka_offset > self.begins_at and self.seen.whole

    def saw(self, seen: ChainState, *, log_bytes: int, payload_bytes: int, timestamp_ms: int) -> None:
        """Count a message read ahead; `seen` is the state after it."""
        self.seen = seen
        if not self._marks or timestamp_ms >= self._marks[-1][1] + MARK_INTERVAL_MS:
            self._marks.append((seen.kafka_offset - 1, timestamp_ms, self._log_bytes))
        self._log_bytes += log_bytes
        self.waiting_bytes += payload_bytes
        self._first_ms = timestamp_ms if self._first_ms is None else self._first_ms
        self._last_ms = timestamp_ms

    def must_end(self, held_s: float, log_start: int | None, stored_to: int | None = None) -> str | None:
        """Return why the hold can't last any longer, None if it can.

        `log_start` is the journal's now, None if it was not asked for; `stored_to` the kafka_offset below which a store has everything
        behind the held position, None if none has.
        """
        if self._quiet[0] != self.seen.kafka_offset:
            self._quiet = self.seen.kafka_offset, held_s
        age_ms, waiting_bytes = self._waiting(held_s, stored_to)
        retention_ms, retention_bytes = self._config.retention_ms, self._config.retention_bytes
        behind = "" if stored_to is None else ", and the store does not keep up"
        if 0 <= retention_ms * RETENTION_SHARE_MAX < age_ms:
            return f"held for {age_ms / 1000:.0f} s of the {retention_ms / 1000:.0f} s that the journal keeps{behind}"
        if 0 <= retention_bytes * RETENTION_SHARE_MAX < waiting_bytes:
            return f"{waiting_bytes} bytes wait of the {retention_bytes} that the journal keeps{behind}"
        if log_start is not None:
            self._log_step = 0 if self._log_start is None else log_start - self._log_start
            self._log_start = log_start
        if self._log_start is not None and self._log_step > 0:
            needed = self.held.kafka_offset if stored_to is None else stored_to
            if self._log_start + self._log_step >= needed:
                return f"the journal's start moved to {self._log_start}, needed is {needed}{behind}"
        return None

    def _waiting(self, held_s: float, stored_to: int | None) -> tuple[float, int]:
        """Return the age of the oldest message that must not be lost, in ms, and the bytes of the journal from it on."""
        if stored_to is None:
            span_ms = 0 if self._first_ms is None else self._last_ms - self._first_ms
            return max(held_s * 1000, span_ms), self._log_bytes
        if stored_to >= self.seen.kafka_offset:
            return 0.0, 0
        while len(self._marks) > 1 and self._marks[1][0] <= stored_to:
            self._marks.popleft()
        _, timestamp_ms, before_bytes = self._marks[0]
        return self._last_ms - timestamp_ms + (held_s - self._quiet[1]) * 1000, self._log_bytes - before_bytes
