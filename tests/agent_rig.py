"""The agent as real processes against a real broker, for integration, crash and e2e tests.

`AgentRig` declares volumes, starts and kills publisher and capture as a supervisor does (the listening socket outlives them), reads their
reports, and folds a writes topic into an image. The fold decodes by plain fastavro and the published schema: no code of the agent or of
`stream` takes part in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaException, TopicPartition

from nbd.client import Client
from stream.config import Config, host_name, load
from stream.control import ControlWriter, Request, VolumeDeclaration
from stream.errors import RetryError
from stream.topics import Topics, data_topics, shared_topics

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
WAIT_S = 60.0
WRITE, ZERO, FLUSH = 1, 2, 4
EPOCH_START, SYNC_BEGIN, SYNC_END, GAP_BEGIN, HEARTBEAT = 16, 17, 18, 19, 24
_MARK_NAMES = {16: "epoch_start", 17: "sync_begin", 18: "sync_end", 19: "gap_begin", 24: "heartbeat"}

_CAPTURE = """
import sys
from pathlib import Path
from agent.capture import run
from stream.config import load
from stream.log import configure
config = load(None)
configure(config.log, "capture")
sys.exit(run(config, Path({state!r}), Path({ring!r}), [{fd}]))
"""
_PUBLISHER = """
import sys
from pathlib import Path
from agent.publisher import run
from stream.config import load
from stream.log import configure
config = load(None)
configure(config.log, "publisher")
sys.exit(run(config, Path({state!r}), Path({ring!r})))
"""


_DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


@dataclass(slots=True)
class Fold:
    """What a writes topic says: the image, and what was seen on the way."""

    image: bytearray
    messages: int = 0
    records: int = 0
    payload_bytes: int = 0
    epochs: list[int] = field(default_factory=list)
    duplicates: int = 0
    marks: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)

    def marks_of(self, name: str) -> list[dict[str, str]]:
        return [attributes for kind, _, attributes in self.marks if kind == name]


class AgentRig:
    """Publisher and capture of one host, over a state folder and a ring folder of their own."""

    def __init__(self, folder: Path, bootstrap: str, **environment: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        unique = uuid.uuid4().hex[:12]
        self.ring = Path("/dev/shm") / f"hostoffload-test-{unique}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HOSTOFFLOAD_")}
        self.environment |= {
            "HOSTOFFLOAD_KAFKA_BOOTSTRAP": bootstrap,
            "HOSTOFFLOAD_AGENT_NAME": f"agent-{unique}",
            "HOSTOFFLOAD_AGENT_OVERFLOW": "throttle",  # these tests are about order that is kept
            "HOSTOFFLOAD_AGENT_THROTTLE_S_MAX": "3600",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.config: Config = load(None, self.environment)
        self.agent = self.config.agent.name or host_name()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.sources: dict[str, Path] = {}
        self._writer: ControlWriter | None = None
        self.socket_path = Path("/tmp") / f"hostoffload-test-{unique}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket_path))
        self._listener.listen(128)
        os.set_inheritable(self._listener.fileno(), True)

    def __enter__(self) -> AgentRig:
        return self

    def __exit__(self, *_: object) -> None:
        for kind in list(self.processes):
            self.kill(kind)
        self._listener.close()
        self.socket_path.unlink(missing_ok=True)
        shutil.rmtree(self.ring, ignore_errors=True)

    # -- what is declared ----------------------------------------------------------------------------------------------

    def declare(self, volume: str, source: Path, *, state: str = "active", flush_policy: str = "local", agent: str | None = None) -> None:
        """Make the topics and declare the volume."""
        topics = Topics(self.config.kafka)
        if volume not in self.sources:
            self._patiently(lambda: topics.ensure([*shared_topics(self.config.kafka), *data_topics(volume, self.config.kafka)]))
        self.sources[volume] = source
        declaration = VolumeDeclaration(
            volume, agent or self.agent, str(source), source.stat().st_size, state, flush_policy, declared_at_ns=time.time_ns()
        )
        self._patiently(lambda: self.control.put(declaration))

    def ask(self, volume: str, kind: str, **attributes: str) -> str:
        """Put a request into `ho.control`; return its id."""
        request = Request(f"{kind}-{volume}-{time.time_ns()}", kind, volume, attributes, "test", time.time_ns())
        self._patiently(lambda: self.control.put(request))
        return request.id

    def _patiently(self, act: Callable[[], None], timeout_s: float = 90.0) -> None:
        """Try again what a busy broker did not answer."""
        end_s = time.monotonic() + timeout_s
        while True:
            try:
                return act()
            except RetryError:
                if time.monotonic() > end_s:
                    raise

    @property
    def control(self) -> ControlWriter:
        self._writer = self._writer or ControlWriter(self.config.kafka)
        return self._writer

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, *kinds: str) -> None:
        """Start processes that do not run; both without a name."""
        for kind in kinds or ("publisher", "capture"):
            assert kind not in self.processes, f"{kind} runs"
            fd = self._listener.fileno()
            code = {"capture": _CAPTURE, "publisher": _PUBLISHER}[kind].format(state=str(self.state), ring=str(self.ring), fd=fd)
            with (self.folder / f"{kind}.log").open("ab") as log:
                self.processes[kind] = subprocess.Popen(
                    [*_DIE_WITH_US, sys.executable, "-c", code],
                    env=self.environment,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(fd,) if kind == "capture" else (),
                )

    def stop(self, *kinds: str, timeout_s: float = 40.0) -> dict[str, int]:
        """SIGTERM, one after the other, capture first; return the exit codes."""
        codes = {}
        for kind in kinds or ("capture", "publisher"):
            self.processes[kind].send_signal(signal.SIGTERM)
            codes[kind] = self.processes[kind].wait(timeout_s)
            del self.processes[kind]
        return codes

    def kill(self, *kinds: str) -> None:
        """SIGKILL, and wait until the processes are gone."""
        for kind in kinds:
            self.processes[kind].kill()
        for kind in kinds:
            self.processes.pop(kind).wait(20)

    def pid(self, kind: str) -> int:
        return self.processes[kind].pid

    def log(self, kind: str) -> str:
        path = self.folder / f"{kind}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def assert_alive(self) -> None:
        """Assert that no process ended by itself, and that none wrote a traceback."""
        for kind, process in self.processes.items():
            assert process.poll() is None, f"{kind} ended with {process.returncode}:\n{self.log(kind)[-4000:]}"
            assert "Traceback" not in self.log(kind), self.log(kind)[-4000:]

    # -- reports -------------------------------------------------------------------------------------------------------

    def report(self, kind: str, volume: str) -> dict[str, Any]:
        """Return the facts of one volume in the last report of a process that runs; empty if it told nothing yet."""
        try:
            told = json.loads((self.state / "status" / f"{kind}-{self.agent}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        if kind in self.processes and told["pid"] != self.processes[kind].pid:
            return {}
        return told["volumes"].get(volume, {}) | ({"at_ns": told["at_ns"]} if volume in told["volumes"] else {})

    def wait(self, volume: str, true: Callable[[dict[str, Any], dict[str, Any]], bool], timeout_s: float = WAIT_S) -> dict[str, Any]:
        """Wait until `true(capture's facts, publisher's facts)` of reports made after this call; return capture's."""
        began_ns, deadline_s = time.time_ns(), time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            capture, publisher = self.report("capture", volume), self.report("publisher", volume)
            with contextlib.suppress(KeyError):
                if min(capture["at_ns"], publisher["at_ns"]) >= began_ns and true(capture, publisher):
                    return capture
            self.assert_alive()
            time.sleep(0.02)
        raise AssertionError(
            f"it did not happen in {timeout_s:.0f} s\ncapture {capture}\npublisher {publisher}\n"
            f"{self.log('capture')[-1500:]}\n{self.log('publisher')[-1500:]}"
        )

    def wait_serving(self, volume: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        return self.wait(volume, lambda capture, _: capture["serving"], timeout_s)

    def wait_data(self, volume: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """Wait until the agent says DATA, nothing owed, and everything durable in Kafka."""
        return self.wait(
            volume,
            lambda capture, publisher: (
                capture["serving"]
                and capture["mode"] == "DATA"
                and capture["owed_bytes"] == 0
                and publisher["position"] >= capture["position"]
            ),
            timeout_s,
        )

    # -- clients -------------------------------------------------------------------------------------------------------

    def uri(self, volume: str) -> str:
        return f"nbd+unix:///{volume}?socket={self.socket_path}"

    def client(self, volume: str, timeout_s: float = 60.0) -> Client:
        return Client(self.uri(volume), timeout_s=timeout_s)

    # -- the stream ----------------------------------------------------------------------------------------------------

    def fold(self, volume: str, upto_offset: int | None = None, *, begins_late: bool = False) -> Fold:
        """Fold the volume's topic as order would: duplicates dropped, holes refused, the last record of each byte kept.

        A log that `begins_late`, because its topic was made anew, is passed over up to its first epoch_start.
        """
        fold = Fold(bytearray(self.sources[volume].stat().st_size))
        last, newest, incarnation, seen = 0, 0, b"", {}
        for value, headers in read_topic(self.config.kafka.bootstrap, f"ho.{volume}.writes", upto_offset):
            body = decode_plain(value)
            fold.messages += 1
            check_headers(body, headers)
            starts = EPOCH_START in body["kinds"]
            if body["epoch"] < newest or (body["epoch"] == newest and body["incarnation"] != incarnation):
                continue
            if begins_late and not newest and not starts:
                continue
            if body["epoch"] > newest:
                assert starts, f"epoch {body['epoch']} without its epoch_start"
                newest, incarnation = body["epoch"], body["incarnation"]
                last, seen = body["first_sequence"] - 1, {}  # (1, 41) may have come after the claimant looked: then (2, 41) is the first
                fold.epochs.append(newest)
            else:
                assert body["first_sequence"] <= last + 1, f"a hole in the log: {last} is followed by {body['first_sequence']}"
            for record in records_of(body):
                told = (*record[1:7], hashlib.md5(record[7]).digest())
                if record[0] <= last and record[0] in seen:
                    assert seen[record[0]] == told, f"sequence {record[0]} was published twice with different content"
                    fold.duplicates += 1
                    continue
                seen[record[0]] = told
                last = record[0]
                _apply(fold, record)
        return fold

    def assert_equal(self, volume: str, *, begins_late: bool = False) -> Fold:
        """Assert that the fold of the topic equals the source, byte for byte."""
        fold = self.fold(volume, begins_late=begins_late)
        source = self.sources[volume].read_bytes()
        assert len(source) == len(fold.image)
        if source != fold.image:
            differ = [at for at in range(0, len(source), 4096) if source[at : at + 4096] != fold.image[at : at + 4096]]
            raise AssertionError(f"{len(differ)} blocks of 4 KiB differ, the first at {differ[:10]}")
        return fold


def read_topic(bootstrap: str, topic: str, upto_offset: int | None = None) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """Yield value and headers of every message that the topic has now."""
    low, high = _bounds(bootstrap, topic)
    end = high if upto_offset is None else min(high, upto_offset)
    consumer = _consumer(bootstrap)
    try:
        consumer.assign([TopicPartition(topic, 0, low)])
        at = low
        while at < end:
            message = consumer.poll(20)
            assert message is not None and message.error() is None, f"{topic} can't be read at {at}: {message and message.error()}"
            if message.offset() >= end:
                return
            yield message.value(), dict(message.headers() or ())
            at = message.offset() + 1
    finally:
        consumer.close()


def _consumer(bootstrap: str) -> Consumer:
    return Consumer({"bootstrap.servers": bootstrap, "group.id": "test-fold", "enable.auto.commit": False, "fetch.wait.max.ms": 10})


def _bounds(bootstrap: str, topic: str) -> tuple[int, int]:
    """Return where the topic begins and ends; a broker that was frozen may have no leader for a moment.

    Each attempt has a consumer of its own: librdkafka remembers for 30 s that it was told of no partition.
    """
    deadline_s = time.monotonic() + 60
    while True:
        consumer = _consumer(bootstrap)
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        finally:
            consumer.close()


_SCHEMA = fastavro.parse_schema(json.loads((ROOT / "schemas" / "WriteBatch.avsc").read_text(encoding="utf-8")))


def decode_plain(value: bytes) -> dict[str, Any]:
    """Decode a WriteBatch as any Avro library would: two bytes of marker, eight of fingerprint, the body."""
    assert value[:2] == b"\xc3\x01"
    assert struct.unpack("<Q", value[2:10])[0] == int.from_bytes(
        bytes.fromhex(fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(_SCHEMA), "CRC-64-AVRO")), "little"
    )
    return fastavro.schemaless_reader(io.BytesIO(value[10:]), _SCHEMA, None)


def check_headers(body: dict[str, Any], headers: dict[str, bytes]) -> None:
    """Assert that the headers repeat what the body says."""
    assert headers == {
        "volume": body["volume"].encode(),
        "epoch": str(body["epoch"]).encode(),
        "first": str(body["first_sequence"]).encode(),
        "last": str(body["first_sequence"] + len(body["kinds"]) - 1).encode(),
        "kind": b"writes",
        "incarnation": body["incarnation"],
    }


def records_of(body: dict[str, Any]) -> Iterator[tuple[int, int, int, int, int, int, str, bytes]]:
    """Yield (sequence, kind, flags, offset, length, capture time, attributes as text, payload) of each record."""
    marks = {mark["index"]: mark["attributes"] for mark in body["marks"]}
    at = 0
    for index, kind in enumerate(body["kinds"]):
        length = body["lengths"][index]
        payload = body["payload"][at : at + length] if kind == WRITE else b""
        at += len(payload)
        yield (
            body["first_sequence"] + index,
            kind,
            body["flags"][index],
            body["offsets"][index],
            length,
            body["capture_time_ns"] + body["ages_ns"][index],
            json.dumps(marks.get(index, {}), sort_keys=True),
            payload,
        )
    assert at == len(body["payload"])


def _apply(fold: Fold, record: tuple[int, int, int, int, int, int, str, bytes]) -> None:
    sequence, kind, _, offset, length, _, attributes, payload = record
    fold.records += 1
    if kind == WRITE:
        fold.image[offset : offset + length] = payload
        fold.payload_bytes += length
    elif kind == ZERO:
        fold.image[offset : offset + length] = bytes(length)
    elif kind >= EPOCH_START:
        fold.marks.append((_MARK_NAMES.get(kind, str(kind)), sequence, json.loads(attributes)))
