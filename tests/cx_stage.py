"""The CX on a stage: an agent that publishes invented records, workers as processes, and the journal read with a reader of its own.

The journal is judged record by record: a loop over positions and its own digest chain, not the code under test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from stream.codec import decode_journal, encode_writes, unpack
from stream.config import KafkaConfig
from stream.consumer import PartitionReader
from stream.control import ControlWriter, VolumeDeclaration
from stream.journal import JournalBatch, JournalFence, JournalGap
from stream.producer import OrderedProducer
from stream.record import Batch, Kind
from stream.topics import Topics, data_topics, journal_topic, shared_topics, writes_topic

WAIT_S = 90.0
_WORKER = """
import faulthandler
import sys
from pathlib import Path
faulthandler.enable()  # a worker that does not stop is aborted, and its log tells where every thread was
from cx_consumers import app
from stream.config import load
from stream.log import configure
config = load(None)
configure(config.log, "cx")
sys.exit(app.run(config, Path(sys.argv[1]), sys.argv[2]))
"""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for another process; fail with `what` when it takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:.0f} s for: {what}"
        time.sleep(0.02)


class Agent:
    """Publish records of one volume, as a publisher does: one claim, consecutive sequences, several records a message."""

    def __init__(self, config: KafkaConfig, volume: str, *, epoch: int = 1, claim: bytes = b"claim--1", sequence: int = 0) -> None:
        self.volume = volume
        self.epoch = epoch
        self.claim = claim
        self.sequence = sequence
        self.sent: list[tuple[int, int, bytes]] = []  # position and payload of each record, in order
        self._config = config
        self._random = random.Random(volume)
        self._producer = OrderedProducer(config, writes_topic(volume), lambda tag, kafka_offset: None, queue_bytes_max=32 << 20)

    def start_epoch(self, *, clean: bool = True) -> None:
        self._records([Kind.EPOCH_START], [b""], {0: {"clean": str(clean).lower(), "first": "false"}})

    def mark(self, kind: Kind, **told: str) -> None:
        self._records([kind], [b""], {0: told})

    def write(self, records: int = 4, size: int = 4096) -> None:
        """Publish one message of that many writes."""
        self._records([Kind.WRITE] * records, [self._random.randbytes(size) for _ in range(records)], {})

    def skip(self, records: int) -> None:
        """Take positions and publish nothing: the messages are lost."""
        self.sequence += records

    def raw(self, value: bytes) -> None:
        """Publish bytes that are no message of ours."""
        self._send(value, 0, 0)

    def flush(self) -> None:
        assert self._producer.flush(30.0), "the broker did not take all messages"

    def close(self) -> None:
        self._producer.close()

    def _records(self, kinds: list[Kind], bodies: list[bytes], marks: dict[int, dict[str, str]]) -> None:
        first = self.sequence + 1
        self.sequence += len(kinds)
        batch = Batch(
            self.volume, self.epoch, first, time.time_ns(), bytes(kinds), bytes(len(kinds)), [4096 * index for index in range(len(kinds))],
            [len(body) for body in bodies], [0] * len(kinds), b"".join(bodies), marks,
        )  # fmt: skip
        self.sent.extend((self.epoch, first + index, body) for index, body in enumerate(bodies))
        self._send(encode_writes(batch, self.claim), first, self.sequence)

    def _send(self, value: bytes, first: int, last: int) -> None:
        headers = [
            ("volume", self.volume.encode()), ("epoch", b"%d" % self.epoch), ("first", b"%d" % first), ("last", b"%d" % last),
            ("kind", b"writes"), ("incarnation", self.claim),
        ]  # fmt: skip
        while True:
            try:
                self._producer.produce(value, headers, None, key=self.volume)
                break
            except BufferError:
                self._producer.poll(0.05)
        self._producer.poll(0)


@dataclass
class Read:
    """What a reader of the journal holds who believes only what fences leave valid."""

    records: list[tuple[int, int, bytes]] = field(default_factory=list)
    gaps: list[JournalGap] = field(default_factory=list)
    fences: int = 0
    stale: int = 0
    messages: int = 0


def read_journal(config: KafkaConfig, volume: str) -> Read:
    """Read a journal from its start; assert that every valid message follows the one before, and every digest is right."""
    told = Read()
    fence, position, digest = -1, (0, 0), bytes(16)
    with PartitionReader(config, journal_topic(volume)) as reader:
        start, end = reader.bounds()
        for message in reader.read_range(start, end):
            entry = decode_journal(message.value, topic=message.topic, kafka_offset=message.kafka_offset)
            if isinstance(entry, JournalFence):
                fence, told.fences = message.kafka_offset, told.fences + 1
                continue
            if entry.writer != fence:  # an older worker's; or of one that did not notice that the topic was made anew
                told.stale += 1
                continue
            told.messages += 1
            if isinstance(entry, JournalGap):
                told.gaps.append(entry)
                continue
            assert isinstance(entry, JournalBatch)
            assert (entry.follows.epoch, entry.follows.sequence) == position, f"kafka_offset {message.kafka_offset} follows something else"
            assert entry.digest_before == digest
            batch = unpack(entry)
            for index, one in enumerate(batch.records()):
                told.records.append((one.position.epoch, one.position.sequence, one.payload))
                meta = struct.pack(
                    "<QQBBQQQ", one.position.epoch, one.position.sequence, one.kind, one.flags, one.offset_bytes, one.length_bytes,
                    one.capture_time_ns,
                )  # fmt: skip
                content = b"".join(f"{key}\0{value}\0".encode() for key, value in sorted(one.attributes.items()))
                body = xxhash.xxh3_128_digest(one.payload if one.kind == 1 else content) if one.kind == 1 or index in batch.marks else b""
                digest = xxhash.xxh3_128_digest(digest + meta + body)
            assert entry.state.digest == digest
            position = entry.state.position.epoch, entry.state.position.sequence
    return told


class Worker:
    """A CX worker as a process."""

    def __init__(self, config: KafkaConfig, state_dir: Path, name: str) -> None:
        self.name = name
        self.state_dir = state_dir
        settings = {"HOSTOFFLOAD_KAFKA_BOOTSTRAP": config.bootstrap, "HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "1"}
        with (state_dir / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(state_dir), name], env=os.environ | settings, stderr=log, stdout=log
            )

    def facts(self, volume: str) -> dict[str, object]:
        """Return what the worker last reported of the volume; empty if it does not have it."""
        try:
            report = json.loads((self.state_dir / "status" / f"cx-{self.name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return report["volumes"].get(volume, {})

    def volumes(self) -> set[str]:
        try:
            return set(json.loads((self.state_dir / "status" / f"cx-{self.name}.json").read_text(encoding="utf-8"))["volumes"])
        except FileNotFoundError:
            return set()

    def log(self) -> str:
        return (self.state_dir / f"{self.name}.log").read_text(encoding="utf-8", errors="replace")

    def stop(self, timeout_s: float = 30.0) -> int:
        """Ask the worker to stop and return its exit code; one that does not is aborted, and its log shows where it stood."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(timeout_s)
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10.0)
        (self.state_dir / "status" / f"cx-{self.name}.json").unlink(missing_ok=True)


class Stage:
    """A broker's corner: volumes declared with their topics, workers started, all removed at the end."""

    def __init__(self, bootstrap: str, state_dir: Path) -> None:
        self.config = KafkaConfig(bootstrap=bootstrap)
        self.state_dir = state_dir
        self.topics = Topics(self.config)
        self.topics.ensure(shared_topics(self.config))
        self.control = ControlWriter(self.config)
        self.workers: list[Worker] = []
        self.agents: list[Agent] = []
        self.volumes: list[str] = []
        self.lasting = True  # False: the broker ends with the test, and may be dead already

    def add(self, volume: str, *, codec: str = "snappy") -> Agent:
        """Declare a volume and return an agent that has started its first epoch."""
        self.make_topics(volume)
        self.declare(volume, codec=codec)
        return self.agent(volume)

    def make_topics(self, volume: str) -> None:
        self.topics.ensure(data_topics(volume, self.config))
        if volume not in self.volumes:
            self.volumes.append(volume)

    def declare(self, volume: str, *, codec: str = "snappy", state: str = "active") -> None:
        self.control.put(VolumeDeclaration(volume, "agent", "/dev/null", 1 << 30, state=state, codec=codec, declared_at_ns=time.time_ns()))

    def agent(self, volume: str, **how) -> Agent:
        agent = Agent(self.config, volume, **how)
        agent.start_epoch()
        agent.flush()
        self.agents.append(agent)
        return agent

    def worker(self, name: str) -> Worker:
        worker = Worker(self.config, self.state_dir, name)
        self.workers.append(worker)
        return worker

    def journaled(self, agent: Agent) -> None:
        """Wait until a worker reports the agent's last record as durable in the journal."""
        wanted = f"{agent.epoch:08d}-{agent.sequence:016d}"
        wait_until(
            lambda: any(worker.facts(agent.volume).get("position") == wanted for worker in self.workers if worker.process.poll() is None),
            f"{agent.volume} journaled up to {wanted}",
        )

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
            print(f"--- the log of worker {worker.name} ends:\n{worker.log()[-8000:]}")  # pytest shows it when the test failed
        for agent in self.agents:
            agent.close()
        for volume in self.volumes:
            self.control.forget(f"volume/{volume}")
        self.control.close()
        if self.lasting:
            self.topics.delete([topic(volume) for volume in self.volumes for topic in (writes_topic, journal_topic)])


@contextmanager
def stage(bootstrap: str, state_dir: Path) -> Iterator[Stage]:
    """Set a stage and clear it."""
    one = Stage(bootstrap, state_dir)
    try:
        yield one
    finally:
        one.close()
