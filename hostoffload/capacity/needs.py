"""What protecting a workload needs: bandwidth, Kafka's disk, the store, the buffer. Pure; each figure is a formula of docs/planning.md.

Figures are upper bounds where something is not known: bytes count as incompressible without a ratio, as never overwritten without extents;
what can't even be bounded is None. Growth takes the mean rate that was seen as the rate of every day.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.messages import PUBLISH_BYTES_MAX
from agent.pool import CHUNK_BYTES, pool_chunks
from agent.ring import ENTRY_BYTES
from history.levels import AS_WRITTEN, SNAPSHOT
from history.retention import SNAPSHOT_AFTER
from history.retention_table import FOR_EVER, RetentionTable
from hostoffload.capacity.overwrites import BLOCK_BYTES
from hostoffload.capacity.workload import Workload
from stream.config import BUFFER_BYTES_MIN, Config

DAY_S = 86_400
MIB = 1 << 20

RECORD_BYTES = 20
"""Of a message for each record beside its payload, at most: kind, flags, offset, length, age (a test encodes them)."""
MESSAGE_BYTES = 576
"""Of a message beside its records, at most: fields, checksum, Kafka headers and batch frame (the same test)."""
INDEX_BYTES = 16
"""Of a segment for each record or extent in its index, about (`history.builder.RECORD_COST_BYTES`)."""
ROUNDS_PER_S = 1000
"""Messages a second that the publisher makes at most while none is full (`agent.publisher.LINGER_S`)."""
SEGMENT_BYTES = 1 << 30
"""Kafka deletes whole files of its log: one of them, of its default `log.segment.bytes`, may be kept beyond the retention."""

REQUEST_BYTES = 28
"""Of the buffer for each write: the NBD request is received in front of its payload (NBD protocol, "Request message")."""
CHUNK_USE = 7 / 8
"""Share of a chunk that payload fills at least: a short write that its end has no room for, at most 32 of 256 KiB, goes to the next."""
LANES = 8
"""Connections that may hold a chunk which they have not filled."""
RESERVED_CHUNKS = 2


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Payload in bytes a second. None: intervals are too long to tell, or too few."""

    mean: float
    p95: float
    peak_1s: float | None
    peak_10s: float | None
    interval_s: float


@dataclass(frozen=True, slots=True)
class Kafka:
    """Bytes of the volume's two topics. `kept_s` None: for ever, and then there is no sum. `disk_bytes` is over all replicas."""

    writes_bytes_per_day: float
    journal_bytes_per_day: float
    kept_s: float | None
    writes_bytes: float | None
    journal_bytes: float | None
    disk_bytes: float | None


@dataclass(frozen=True, slots=True)
class Level:
    """One row of the retention table. `span_s` 0: as written. `kept_s` None: for ever. `each_bytes` None: nothing bounds it.

    `at_most`: a bound and no measurement; `why` says what was not seen, or what was.
    """

    level: int
    span_s: float
    kept_s: float | None
    each_bytes: float | None
    count: float | None
    at_most: bool
    why: str

    @property
    def bytes(self) -> float | None:
        """Return what the level holds once its oldest goes."""
        return None if self.each_bytes is None or self.count is None else self.each_bytes * self.count

    @property
    def bytes_per_day(self) -> float | None:
        """Return what is added to it in a day."""
        return None if self.each_bytes is None or not self.span_s else self.each_bytes * DAY_S / self.span_s


@dataclass(frozen=True, slots=True)
class Store:
    """`growth_bytes_per_day` while nothing is old enough to go; `full_bytes` once all levels are full: None if one is kept for ever."""

    as_written_bytes_per_day: float
    growth_bytes_per_day: float | None
    full_bytes: float | None
    at_most: bool
    levels: tuple[Level, ...]
    scratch_bytes: float


@dataclass(frozen=True, slots=True)
class Buffer:
    """`needed_bytes` for `outage_s`: None if none is wanted, or the workload was not seen for that long.

    `bridged_s`: the longest outage that the present buffer is sure to bridge; `bridged_all`: as long as the workload was seen, or longer.
    """

    present_bytes: int
    bridged_s: int
    bridged_all: bool
    outage_s: float | None
    payload_bytes: int | None
    writes: int | None
    needed_bytes: int | None


def bandwidth(workload: Workload) -> Bandwidth:
    """Return what was seen of the rate."""
    return Bandwidth(workload.bytes_per_s, workload.quantile(), workload.busiest(1), workload.busiest(10), workload.interval_s)


def kafka(workload: Workload, config: Config) -> Kafka:
    """Return what the writes and the journal topic take."""
    overhead = _overhead_per_s(workload)
    writes = workload.bytes_per_s + overhead
    journal = workload.bytes_per_s / (workload.ratio or 1) + overhead
    kept_s = None if config.kafka.retention_ms < 0 else config.kafka.retention_ms / 1000
    sums = [None if kept_s is None and config.kafka.retention_bytes < 0 else _kept(rate, kept_s, config) for rate in (writes, journal)]
    disk = None if None in sums else sum(sums) * config.kafka.replication_factor
    return Kafka(writes * DAY_S, journal * DAY_S, kept_s, *sums, disk)


def store(workload: Workload, config: Config, table: RetentionTable) -> Store:
    """Return what the segments take, level by level."""
    spans_s = [step.span_ns / 1e9 for step in table.steps]
    indexed_per_s = INDEX_BYTES * _records(workload.bytes_per_s, workload.writes_per_s)
    written = workload.bytes_per_s / (workload.ratio or 1) + _overhead_per_s(workload) + indexed_per_s
    kept_s = None if table.any_write_ns >= FOR_EVER else table.any_write_ns / 1e9
    why = "as the journal, and its index"
    levels = [Level(AS_WRITTEN, 0, kept_s, written, None if kept_s is None else kept_s + spans_s[0], workload.ratio is None, why)]
    for number, step in enumerate(table.steps, 1):
        kept_s = None if step.keep_ns >= FOR_EVER else step.keep_ns / 1e9
        later_s = spans_s[number] if number < len(spans_s) else SNAPSHOT_AFTER * spans_s[-1]
        count = None if kept_s is None else (kept_s + later_s) / spans_s[number - 1]
        each, at_most, why = _fold(workload, spans_s[number - 1])
        levels.append(Level(number, spans_s[number - 1], kept_s, each, count, at_most, why))
    levels.append(_snapshot(workload))
    growing = [one.bytes_per_day for one in levels[1:-1]]
    growth = None if None in growing else written * DAY_S + sum(growing)
    full = None if any(one.bytes is None for one in levels) else sum(one.bytes for one in levels)
    longest = workload.most(spans_s[0])
    scratch = longest[0] if longest is not None else workload.bytes_per_s * spans_s[0]
    return Store(written * DAY_S, growth, full, any(one.at_most for one in levels), tuple(levels), scratch)


def buffer(workload: Workload, config: Config, outage_s: float | None) -> Buffer:
    """Return what `agent.buffer_bytes_max` must be for an outage, and how long the present one lasts; for this volume alone."""
    present = config.agent.buffer_bytes_max
    seen_s = int(workload.seconds)
    low, high = 0, seen_s
    while low < high:
        middle = (low + high + 1) // 2
        if buffer_bytes(*workload.most(middle)) <= present:
            low = middle
        else:
            high = middle - 1
    most = workload.most(outage_s) if outage_s is not None else None
    needed = None if most is None else max(BUFFER_BYTES_MIN, buffer_bytes(*most))
    return Buffer(present, low, low == seen_s, outage_s, *(most or (None, None)), needed)


def buffer_bytes(payload_bytes: int, writes: int) -> int:
    """Return the least `agent.buffer_bytes_max`, in whole MiB, whose pool holds these writes of one volume."""
    taken = payload_bytes / CHUNK_USE + writes * REQUEST_BYTES + _records(payload_bytes, writes) * ENTRY_BYTES
    chunks = -int(-taken // CHUNK_BYTES) + LANES + RESERVED_CHUNKS
    size_bytes = chunks * CHUNK_BYTES // MIB * MIB
    while pool_chunks(size_bytes) < chunks:
        size_bytes += MIB
    return size_bytes


def _overhead_per_s(workload: Workload) -> float:
    """Return what travels beside the payload, at most: a message a write, or as many as the publisher makes at a high rate."""
    records_per_s = _records(workload.bytes_per_s, workload.writes_per_s)
    messages_per_s = min(records_per_s, ROUNDS_PER_S + workload.bytes_per_s / PUBLISH_BYTES_MAX)
    return records_per_s * RECORD_BYTES + messages_per_s * MESSAGE_BYTES


def _records(payload: float, writes: float) -> float:
    """Return how many records writes become at most: one more at each end of a chunk that one of them runs over."""
    return writes + payload / (CHUNK_BYTES * CHUNK_USE)


def _kept(rate: float, kept_s: float | None, config: Config) -> float:
    """Return what Kafka keeps of one topic: by age or by size, whichever ends sooner, and one file of its log."""
    limit = config.kafka.retention_bytes
    by_age = rate * kept_s if kept_s is not None else float("inf")
    return (min(by_age, limit) if limit >= 0 else by_age) + SEGMENT_BYTES


def _fold(workload: Workload, span_s: float) -> tuple[float, bool, str]:
    """Return the bytes of one fold of that span, whether they are a bound, and why."""
    blocks, at_most, why = _unique_bytes(workload, span_s)
    compressed = blocks / (workload.fold_ratio or 1) + blocks / BLOCK_BYTES * INDEX_BYTES
    return compressed, at_most or workload.fold_ratio is None, why


def _unique_bytes(workload: Workload, span_s: float) -> tuple[float, bool, str]:
    """Return the bytes of the blocks that a window of that span holds in the mean; a bound if it was never seen whole."""
    seen = workload.overwrites or ()
    for one in seen:
        if one.window_s == span_s:
            return one.unique_bytes_each, False, f"seen in {one.windows} windows"
    shorter = max((one for one in seen if one.window_s < span_s), key=lambda one: one.window_s, default=None)
    if shorter is not None:
        bound, why = (
            shorter.unique_bytes_each * span_s / shorter.window_s,
            f"no whole window was seen: as if no two of {shorter.window_s} s overlapped",
        )
    else:
        bound, why = workload.bytes_per_s * span_s, "overwrites are not known: as if there were none"
    if workload.size_bytes is not None and workload.size_bytes < bound:
        bound, why = float(workload.size_bytes), "no more than the volume's size"
    return bound, True, why


def _snapshot(workload: Workload) -> Level:
    """The newest snapshot, and the one before while it is made; each holds what was ever written."""
    if workload.size_bytes is None:
        return Level(SNAPSHOT, 0, None, None, 2, True, "the volume's size is not known")
    each = workload.size_bytes / (workload.fold_ratio or 1) + workload.size_bytes / BLOCK_BYTES * INDEX_BYTES
    return Level(SNAPSHOT, 0, None, each, 2, True, "no more than the volume's size, twice while a new one is made")
