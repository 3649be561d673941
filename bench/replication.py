"""The whole way: writes through the agent, Kafka and the CX until the target has them durably on the replica.

"Applied" is what the target's checkpoint says, the file that it replaces after fdatasync of the replica: a thread looks at it a thousand
times a second and notes when each position stood there first. Which record was captured when is read from the writes topic
afterwards; capture and this thread use the clock of the same machine. So every lag includes the fdatasync, and up to a
millisecond of not looking.
"""

from __future__ import annotations

import json
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from bench.load import Load, run
from bench.processes import Agent, wait_until
from bench.results import Lag, Throughput, percentile
from stream.codec import decode_writes
from stream.config import KafkaConfig
from stream.consumer import PartitionReader
from stream.position import Position
from stream.record import Kind
from stream.topics import writes_topic

LOOK_S = 0.001
APPLY_S_MAX = 180.0

Sight = tuple[int, int]
"""A checkpoint seen: its position's sequence, and when (ns since 1970)."""


class AppliedWatch:
    """Note when each position first stood in the target's checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.seen: list[Sight] = []
        self._path = checkpoint
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="applied", daemon=True)

    def __enter__(self) -> AppliedWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def sequence(self) -> int:
        """Return the last sequence that the replica durably has; 0 before the first look."""
        return self.seen[-1][0] if self.seen else 0

    def _watch(self) -> None:
        last = None
        while not self._over.wait(LOOK_S):
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                continue
            if (found.st_ino, found.st_mtime_ns) == last:
                continue
            last = (found.st_ino, found.st_mtime_ns)
            sequence = Position.parse(json.loads(self._path.read_bytes())["position"]).sequence
            if sequence > self.sequence:
                self.seen.append((sequence, time.time_ns()))


class Replication:
    """An agent with a CX and a target behind it."""

    def __init__(self, agent: Agent, config: KafkaConfig, size_bytes: int) -> None:
        """Start CX and target, and wait until the replica is in sync."""
        self._agent = agent
        self._config = config
        self._size_bytes = size_bytes
        self._checkpoint = agent.state / "target" / f"{agent.volume}.json"
        agent.start("cx")
        agent.start("target")
        wait_until(self._in_sync, "the replica to be in sync", agent.check, APPLY_S_MAX)

    def throughput(self, load: Load) -> Throughput:
        """Write a fixed number of bytes as fast as they are taken; return how long until the replica has them."""
        with AppliedWatch(self._checkpoint) as applied:
            began_s = time.monotonic()
            measured = run(load, self._agent.uri, self._size_bytes)
            last = self._agent.captured()
            captured_s = time.monotonic() - began_s
            self._agent.settle()
            published_s = time.monotonic() - began_s
            wait_until(lambda: applied.sequence >= last, "the replica to have everything", self._agent.check, APPLY_S_MAX)
            return Throughput(measured.bytes, captured_s, published_s, time.monotonic() - began_s)

    def lag(self, load: Load) -> Lag:
        """Write at a fixed rate; return how old records were when the replica had them."""
        with PartitionReader(self._config, writes_topic(self._agent.volume)) as reader:
            start = reader.bounds()[1]
            with AppliedWatch(self._checkpoint) as applied:
                measured = run(load, self._agent.uri, self._size_bytes)
                last = self._agent.captured()
                wait_until(lambda: applied.sequence >= last, "the replica to have everything", self._agent.check, APPLY_S_MAX)
            captured = list(self._captured(reader, start, last))
        ages = sorted(lags_ms(captured, applied.seen))
        return Lag(
            load=load.name,
            records=len(ages),
            mb_per_s=measured.mb_per_s,
            p50_ms=percentile(ages, 50),
            p99_ms=percentile(ages, 99),
            max_ms=ages[-1],
            checkpoints=len(applied.seen),
        )

    def _captured(self, reader: PartitionReader, start: int, last: int) -> Iterable[tuple[int, int]]:
        """Yield sequence and capture time of every write in the topic from `start` on, up to sequence `last`."""
        for message in reader.read_range(start, reader.bounds()[1]):
            batch, _ = decode_writes(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
            for index, (kind, age_ns) in enumerate(zip(batch.kinds, batch.ages_ns, strict=True)):
                if kind == Kind.WRITE and batch.first_sequence + index <= last:
                    yield batch.first_sequence + index, batch.capture_time_ns + age_ns

    def _in_sync(self) -> bool:
        told = self._agent.facts("target")
        return told.get("open_gaps") == 0 and Position.parse(told["position"]).sequence >= self._agent.captured()


def lags_ms(captured: Iterable[tuple[int, int]], seen: list[Sight]) -> Iterable[float]:
    """Yield, for each record, how long after its capture a checkpoint that has it was first seen; `seen` rises."""
    sequences = [sequence for sequence, _ in seen]
    for sequence, captured_ns in captured:
        yield (seen[bisect_left(sequences, sequence)][1] - captured_ns) / 1e6
