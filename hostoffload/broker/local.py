"""What the two local kinds share: identity, configuration, the storage, and the wait until it is ready.

A local broker is one JVM that is broker and controller. It keeps its ports and its cluster id for life, because clients and
checkpoints know them. Both kinds run the same command on the same folder, one of them inside a container; the subclass says how a
java command is run, started and ended.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from hostoffload.broker import ports, probe, process
from hostoffload.broker.folder import BrokerFolder, BrokerState
from hostoffload.broker.interface import BrokerStatus
from hostoffload.broker.settings import BrokerSettings, new_cluster_id, server_properties
from stream.errors import ConfigError, HostoffloadError, RetryError

LOCK_WAIT_S = 60.0
ANSWER_S = 0.5
POLL_S = 0.03
STARTING_S = 2.0
# A killed JVM is gone from the process table some milliseconds before its sockets are.
PORT_RELEASE_S = 3.0
LOG4J2 = Path(__file__).with_name("log4j2.xml")


class LocalBroker(ABC):
    """Run Kafka on this machine with its data below the state folder (see `interface.Broker` for the guarantees)."""

    kind: str

    def __init__(self, folder: BrokerFolder, settings: BrokerSettings, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.settings = settings
        self.say = say
        self._state = self._identity()
        self.bootstrap = self._state.bootstrap

    @abstractmethod
    def argv(self) -> Sequence[str]:
        """Return the command that runs the broker in the foreground."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return the environment for `argv`."""

    @abstractmethod
    def _install(self) -> None:
        """Have Kafka's program at hand (jars or image)."""

    @abstractmethod
    def _run_tool(self, arguments: Sequence[str]) -> None:
        """Run one of Kafka's classes to its end. Raises RetryError with what it said if it fails."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the broker so that it outlives the caller."""

    @abstractmethod
    def _end(self, deadline_s: float) -> None:
        """End the broker that runs."""

    def start(self, deadline_s: float) -> None:
        """Adopt or start the broker and wait until it is ready (see `interface.Broker.start`)."""
        with self.folder.locked(deadline_s):
            if process.find(self.folder.properties) is None:
                self.prepare()
                self._launch()
        self.wait_ready(deadline_s)

    def stop(self, deadline_s: float) -> None:
        """End the broker, keep its data (see `interface.Broker.stop`)."""
        with self.folder.locked(LOCK_WAIT_S):
            self._end(deadline_s)

    def status(self) -> BrokerStatus:
        """Report from the process table and one ping."""
        pid = process.find(self.folder.properties)
        return BrokerStatus(self.kind, self.bootstrap, pid, pid is not None and probe.ping(self.bootstrap))

    def prepare(self) -> None:
        """Write the configuration and format the storage if that was not done (see `interface.Broker.prepare`)."""
        if process.find(self.folder.properties) is not None:
            return
        self._install()
        self._check_ports()
        state = self._state
        self.folder.data.mkdir(parents=True, exist_ok=True)
        self.folder.properties.write_text(
            server_properties(self.settings, data=self.folder.data, port=state.port, controller_port=state.controller_port)
        )
        shutil.copyfile(LOG4J2, self.folder.log4j2)
        if not (self.folder.data / "meta.properties").exists():
            command = ["kafka.tools.StorageTool", "format", "--ignore-formatted"]
            self._run_tool([*command, "-t", state.cluster_id, "-c", str(self.folder.properties)])
        if self.folder.load() != state:
            self.folder.save(state)

    def wait_ready(self, deadline_s: float) -> None:
        """Poll until an admin client lists the topics of *this* cluster with its broker alive (see `interface.Broker`)."""
        until = time.monotonic() + deadline_s
        seen = False
        starting_until = time.monotonic() + STARTING_S
        while True:
            if probe.ping(self.bootstrap):
                with contextlib.suppress(RetryError):
                    if self._is_ours(probe.cluster(self.bootstrap, ANSWER_S)):
                        return
            running = process.find(self.folder.properties) is not None
            if not running and (seen or time.monotonic() > starting_until):
                raise RetryError(
                    "The broker ended while it was starting.",
                    hint=f"read {self.folder.log} and {self.folder.out}",
                    log=process.tail(self.folder.log),
                    out=process.tail(self.folder.out),
                )
            seen = seen or running
            if time.monotonic() >= until:
                raise RetryError(
                    "The broker is not ready yet.",
                    hint=f"it goes on starting; ask again, or read {self.folder.log}",
                    bootstrap=self.bootstrap,
                    deadline_s=round(deadline_s, 1),
                )
            time.sleep(POLL_S)

    def java_options(self, log: Path) -> list[str]:
        """Return the JVM's options: a modest heap, an end (and so a restart) when memory runs out, no files outside the folder.

        The quick compiler only: the other one takes a quarter of a core for the first half minute, which is when a backlog is drained.
        """
        return [
            f"-Xms{self.settings.heap_mib_min}m",
            f"-Xmx{self.settings.heap_mib_max}m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:+ExitOnOutOfMemoryError",
            "-XX:-UsePerfData",
            f"-XX:ErrorFile={self.folder.root}/jvm-error.log",
            "-Djava.awt.headless=true",
            "-Dlog4j2.disable.jmx=true",
            f"-Dlog4j2.configurationFile={self.folder.log4j2}",
            f"-Dhostoffload.broker.log={log}",
        ]

    def main(self) -> list[str]:
        """Return the last two arguments of the broker's command; `process.find` knows it by them."""
        return [process.MAIN_CLASS, str(self.folder.properties)]

    def _is_ours(self, answer: probe.Cluster) -> bool:
        if answer.cluster_id not in (None, self._state.cluster_id):
            raise ConfigError(
                "Another Kafka answers at this broker's address.",
                hint="end it, or use it with --bootstrap",
                bootstrap=self.bootstrap,
                expected=self._state.cluster_id,
                got=answer.cluster_id,
            )
        return answer.cluster_id is not None and answer.brokers > 0

    def _identity(self) -> BrokerState:
        state = self.folder.load()
        if state is not None and state.kind == self.kind:
            return state
        with self.folder.locked(LOCK_WAIT_S):
            state = self.folder.load()
            if state is not None and state.port is not None:
                port, controller_port, cluster_id = state.port, state.controller_port, state.cluster_id
            else:
                port, controller_port = ports.free_ports(2)
                cluster_id = self._formatted_id() or new_cluster_id()
            state = BrokerState(self.kind, f"127.0.0.1:{port}", port, controller_port, cluster_id)
            self.folder.save(state)
        return state

    def _formatted_id(self) -> str | None:
        """Return the cluster id of a storage that is already there (only `broker.json` was lost), else None."""
        try:
            lines = (self.folder.data / "meta.properties").read_text().splitlines()
        except FileNotFoundError:
            return None
        return next((line.partition("=")[2] for line in lines if line.startswith("cluster.id=")), None)

    def _check_ports(self) -> None:
        for port in (self._state.port, self._state.controller_port):
            if not ports.becomes_free(port, PORT_RELEASE_S):
                raise ConfigError(
                    f"The broker's port {port} is taken by another process.",
                    hint=f"`ss -ltnp 'sport = :{port}'` shows which; end it, or use another state folder with --state",
                    port=port,
                )


def tool_failed(arguments: Sequence[str], said: bytes, path: Path) -> HostoffloadError:
    """Make the error for a tool of Kafka that ended badly, with its last line."""
    lines = said.decode(errors="replace").strip().splitlines()
    tool = arguments[0].rsplit(".", 1)[-1]
    said_last = lines[-1] if lines else ""
    return RetryError(f"Kafka's {tool} failed.", hint="the fact `said` is its last line", path=path, said=said_last)
