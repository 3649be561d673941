"""The broker's folder `<state>/broker/`: where everything lies, what a broker keeps for life, and the lock on it.

Used by the local brokers, `choose` and `current`. `broker.json` is replaced atomically; a reader never waits for the lock.

    broker.json          kind, bootstrap, ports, cluster id
    server.properties    written anew at each start
    log4j2.xml           a copy, so that a container sees it too
    data/                Kafka's log folder
    broker.log[.1 .2]    Kafka's log, bounded; broker.out: what the JVM itself says, from the last start only
    lock                 held while somebody starts or stops
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stream.errors import IntegrityError, RetryError

KINDS = ("external", "docker", "jars")
LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What the state folder remembers of its broker; `port` and the rest are None for an external one."""

    kind: str
    bootstrap: str
    port: int | None = None
    controller_port: int | None = None
    cluster_id: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of broker: {self.kind!r}")
        local = (self.port, self.controller_port, self.cluster_id)
        if self.kind != "external" and None in local:
            raise ValueError("a local broker has two ports and a cluster id")


class BrokerFolder:
    """Name the files below `<state>/broker/` and guard them."""

    def __init__(self, state_dir: Path) -> None:
        self.root = Path(os.path.abspath(state_dir)) / "broker"
        self.state_file = self.root / "broker.json"
        self.properties = self.root / "server.properties"
        self.log4j2 = self.root / "log4j2.xml"
        self.data = self.root / "data"
        self.log = self.root / "broker.log"
        self.out = self.root / "broker.out"

    def load(self) -> BrokerState | None:
        """Return what was saved, or None if this folder never had a broker. Raises IntegrityError for a broken file."""
        try:
            return BrokerState(**json.loads(self.state_file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                "The broker's state file can't be read.",
                hint="restore it, or remove it if the topics of this broker are not needed any more",
                path=self.state_file,
                got=str(error),
            ) from error

    def save(self, state: BrokerState) -> None:
        """Replace the saved state: durable on return, the old or the new one after a crash, never a part."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_durably(self.state_file, json.dumps(asdict(state), indent=1) + "\n")

    @contextlib.contextmanager
    def locked(self, deadline_s: float) -> Iterator[None]:
        """Hold the folder alone; the kernel lets go of it when the holder dies. Raises RetryError after `deadline_s`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with file_lock(self.root / "lock", deadline_s, "Somebody else is starting or stopping this broker."):
            yield


@contextlib.contextmanager
def file_lock(path: Path, deadline_s: float, sentence: str) -> Iterator[None]:
    """Hold an exclusive flock on `path`. Raises RetryError with `sentence` after `deadline_s`."""
    until = time.monotonic() + deadline_s
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RetryError(sentence, hint="try again in a moment", path=path) from None
                time.sleep(LOCK_POLL_S)
        yield


def write_durably(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically and durably."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
