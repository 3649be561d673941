"""Put a made journal into a real Kafka, declare its volume, and run a real target process on it. For the target's integration and crash
tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from confluent_kafka import Producer

from stream.config import Config, KafkaConfig, TargetConfig
from stream.consumer import StoredMessage
from stream.control import ControlWriter, Replica, VolumeDeclaration
from stream.schema import MESSAGE_BYTES_MAX
from stream.topics import Topics, data_topics, journal_topic, shared_topics

WAIT_S = 90.0
_PROGRAM = """
import sys
from pathlib import Path
from cx_consumers.target import run
from stream.config import load
from stream.log import configure
config = load(None)
configure(config.log, "target")
sys.exit(run(config, Path(sys.argv[1])))
"""


def config_of(bootstrap: str, **target: object) -> Config:
    """Return the config of a target at this broker, under a name of its own."""
    return replace(Config(), kafka=KafkaConfig(bootstrap=bootstrap), target=replace(TargetConfig(), **target))


class Feed:
    """One volume's journal in Kafka. Messages must be produced in the order in which they were made."""

    def __init__(self, config: Config, volume: str, size_bytes: int) -> None:
        self.config = config
        self.volume = volume
        self.size_bytes = size_bytes
        self.topics = Topics(config.kafka)
        self.topics.ensure([*shared_topics(config.kafka), data_topics(volume, config.kafka)[1]])
        self._producer = Producer(
            {
                "bootstrap.servers": config.kafka.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.max.bytes": MESSAGE_BYTES_MAX,
            }
        )
        self._control = ControlWriter(config.kafka)
        self._sent = 0

    def send(self, messages: list[StoredMessage]) -> None:
        """Append the messages of the list that were not sent yet; they are durable on return."""
        for message in messages[self._sent :]:
            self.send_raw(message.value)
        self._sent = len(messages)
        assert self._producer.flush(WAIT_S) == 0

    def send_raw(self, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(journal_topic(self.volume), value, self.volume, partition=0)
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)

    def make_anew(self) -> None:
        """Delete the journal's topic and create it again, empty."""
        self.topics.delete([journal_topic(self.volume)])
        wait_for(lambda: journal_topic(self.volume) not in self.topics.names(), "the topic is gone")
        self.topics.ensure([data_topics(self.volume, self.config.kafka)[1]])
        self._sent = 0

    def declare(self, path: Path, *, state: str = "active", delay_s: float = 0.0) -> None:
        replicas = (Replica(self.config.target.name, str(path), delay_s),)
        self._control.put(VolumeDeclaration(self.volume, "agent", "/source", self.size_bytes, state, replicas=replicas))


class TargetProcess:
    """A real target process on a state folder."""

    def __init__(self, config: Config, state_dir: Path) -> None:
        self.config = config
        self.state_dir = state_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TargetProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def start(self) -> None:
        environment = os.environ | {
            "HOSTOFFLOAD_KAFKA_BOOTSTRAP": self.config.kafka.bootstrap,
            "HOSTOFFLOAD_KAFKA_RETENTION_MS": str(self.config.kafka.retention_ms),
            "HOSTOFFLOAD_TARGET_NAME": self.config.target.name,
            "HOSTOFFLOAD_TARGET_DURING_RESYNC": self.config.target.during_resync,
            "HOSTOFFLOAD_TARGET_APPLY_WINDOW_BYTES_MAX": str(self.config.target.apply_window_bytes_max),
        }
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with open(self.state_dir / "target.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self.state_dir)], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(WAIT_S)

    def stop(self) -> tuple[int, float]:
        """SIGTERM; return the exit code and how long the end took."""
        began_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(WAIT_S)
        return code, time.monotonic() - began_s

    def facts(self, volume: str) -> dict:
        """Return what this process's local report says of the volume, {} if it says nothing."""
        try:
            told = json.loads((self.state_dir / "status" / f"target-{self.config.target.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return told["volumes"].get(volume, {}) if told["pid"] == self.pid else {}

    def wait(self, volume: str, holds: Callable[[dict], bool], what: str) -> dict:
        """Return the volume's facts as soon as `holds` is true of them."""
        wait_for(lambda: holds(self.facts(volume)), lambda: f"{what}: {self.facts(volume)}")
        return self.facts(volume)

    def checkpoint(self, volume: str) -> dict:
        return json.loads((self.state_dir / "target" / f"{volume}.json").read_text())


def wait_for(holds: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Return as soon as it holds; fail with `what` after `WAIT_S`."""
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s, what if isinstance(what, str) else what()
        time.sleep(0.02)
