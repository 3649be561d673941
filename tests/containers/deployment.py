"""A hostoffload of containers: brokers, agent, two CX workers, a target, each on its own as `docker/compose.yaml` has them.

Volumes, replicas and state folders are folders of this machine, so that what is in them can be compared from outside. Everything hangs
on one network; agent and services have a second one, the door, by which tests reach them while the first is cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from docker.models.networks import Network
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network as MadeNetwork

import docker
from tests.containers.images import Images
from tests.containers.part import Part
from tests.e2e.system import first_difference, make_source, wait_until

USER = 1000  # of both images
NBD_PORT = 10809
MIB = 1 << 20
STATE = "/var/lib/hostoffload"
TARGET = "replica"
NO_CHECK = {"test": ["NONE"]}
MEMORY = {"ipc_mode": "shareable", "shm_size": "1g", "healthcheck": NO_CHECK}
SYNC_S = 180
BROKER_S = 90
SETTINGS = {"HOSTOFFLOAD_AGENT_BUFFER_BYTES_MAX": str(96 * MIB), "HOSTOFFLOAD_CX_STORE_URL": "/store", "HOSTOFFLOAD_TARGET_NAME": TARGET}


class Deployment:
    """Made by `deployed`."""

    def __init__(self, images: Images, folder: Path, brokers: int, broker_volume: str | None) -> None:
        self.images = images
        self.folder = folder
        self.engine = docker.from_env()
        self.brokers: list[Part] = []
        self.parts: dict[str, Part] = {}
        self._names = [f"broker-{number + 1}" for number in range(brokers)]
        self._broker_volume = broker_volume
        self._made: list[DockerContainer | MadeNetwork] = []

    # -- making it -----------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Start everything and wait until it is ready."""
        self._network, self._door = self._new_network(), self._new_network()
        for number, broker in enumerate(self._names, 1):
            self.brokers.append(self._broker(number, broker))
        memory = self._start("memory", None, None, entrypoint=["tini", "--", "sleep", "infinity"], **MEMORY)
        self.parts["memory"] = memory
        self._service("agent", ["agent", "run"], {"volumes": "/volumes"}, ipc_mode=f"container:{memory.id}")
        for worker in ("cx-1", "cx-2"):
            self._service(worker, ["cx", "run"], {"store": "/store"})
        self._service("target", ["target", "run"], {"store": "/store", "replicas": "/replicas"})
        for part in self.services():
            part.wait_ready()

    def remove(self) -> None:
        """End and remove all of it."""
        for one in reversed(self._made):
            one.remove() if isinstance(one, MadeNetwork) else one.stop()
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _new_network(self) -> MadeNetwork:
        made = MadeNetwork().create()
        self._made.append(made)
        return made

    def _broker(self, number: int, name: str) -> Part:
        replicas = min(3, len(self._names))
        voters = ",".join(f"{one}@{other}:9093" for one, other in enumerate(self._names, 1))
        environment = {
            "CLUSTER_ID": "aG9zdG9mZmxvYWQtdGVzdA",
            "KAFKA_NODE_ID": str(number),
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": voters,
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{name}:9092",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": str(replicas),
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": str(replicas),
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": str((replicas + 1) // 2),
            "KAFKA_HEAP_OPTS": "-Xms256m -Xmx512m",
        }
        made = DockerContainer(self.images.kafka, env=environment, hostname=name)
        if self._broker_volume is not None:
            made.with_volume_mapping(self._broker_volume, "/var/lib/kafka/data", "rw")
        return self._started(name, made, door=False)

    def _service(self, name: str, command: list[str], folders: dict[str, str], **options: object) -> None:
        replicas = min(3, len(self._names))
        environment = SETTINGS | {
            "HOSTOFFLOAD_KAFKA_BOOTSTRAP": ",".join(f"{one}:9092" for one in self._names),
            "HOSTOFFLOAD_KAFKA_REPLICATION_FACTOR": str(replicas),
            "HOSTOFFLOAD_KAFKA_MIN_INSYNC_REPLICAS": str((replicas + 1) // 2),
        }
        if name == "agent":
            del environment["HOSTOFFLOAD_TARGET_NAME"]
            environment["HOSTOFFLOAD_AGENT_LISTEN"] = f"0.0.0.0:{NBD_PORT}"
        mounts = folders | {f"state/{name}": STATE}
        self.parts[name] = self._start(name, command, environment, mounts, **options)

    def _start(
        self,
        name: str,
        command: list[str] | None,
        environment: dict[str, str] | None,
        mounts: dict[str, str] | None = None,
        **options: object,
    ) -> Part:
        """Start a container of our image, hardened as compose does it."""
        hard = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"], "hostname": name}
        made = DockerContainer(self.images.ours, command=command, env=environment, **hard, **options)
        made.with_tmpfs_mount("/tmp")
        for folder, inside in (mounts or {}).items():
            path = self.folder / folder
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.chown(path, USER, USER)
            made.with_volume_mapping(path, inside, "rw")
        return self._started(name, made, door=environment is not None)

    def _started(self, name: str, made: DockerContainer, *, door: bool) -> Part:
        self._made.append(made)
        made.with_network(self._network).with_network_aliases(name).start()
        return Part(name, made, self._network_of(self._door) if door else None)

    def _network_of(self, made: MadeNetwork) -> Network:
        return self.engine.networks.get(made.id)

    # -- using it ------------------------------------------------------------------------------------------------------

    def services(self) -> list[Part]:
        """Return agent, CX workers and target."""
        return [part for name, part in self.parts.items() if name != "memory"]

    @property
    def agent(self) -> Part:
        return self.parts["agent"]

    @property
    def target(self) -> Part:
        return self.parts["target"]

    def source(self, volume: str) -> Path:
        return self.folder / "volumes" / f"{volume}.img"

    def replica(self, volume: str) -> Path:
        return self.folder / "replicas" / f"{volume}.img"

    def add(self, volume: str, size_bytes: int, used_bytes: int = 0) -> None:
        """Make a source and protect it, as the operator does."""
        os.chown(make_source(self.source(volume), size_bytes, used_bytes), USER, USER)
        options = ["--source", f"/volumes/{volume}.img", "--replica", f"/replicas/{volume}.img", "--target", TARGET]
        self.agent.hostoffload("volume", "add", volume, *options)

    def uri(self, volume: str) -> str:
        """Return where a client on this machine finds the volume now."""
        return f"nbd://{self.agent.address()}:{NBD_PORT}/{volume}"

    def status(self, volume: str) -> dict:
        return json.loads(self.agent.hostoffload("status", volume, "--json"))["volumes"][0]

    def mode(self, volume: str) -> str:
        """Return the mode by the metrics, which cost no process."""
        modes = ("SYNC", "DATA", "BITMAP", "RESYNC", "OFFLINE")
        return next((one for one in modes if self.agent.metric("hostoffload_volume_mode", volume=volume, mode=one)), "unknown")

    def check_equal(self, volume: str) -> dict:
        """Wait until in sync, then compare every byte from outside; something must have gone through the agent."""
        self.agent.hostoffload("wait", volume, "--in-sync", "--timeout", SYNC_S)
        status = self.status(volume)
        assert status["mode"] == "DATA" and status["captured_bytes"] > 0, status
        assert first_difference(self.source(volume), self.replica(volume)) is None
        return status

    def cut(self, part: Part) -> None:
        """Take a part from the network of all others; the door stays."""
        self._network_of(self._network).disconnect(part.id)

    def heal(self, part: Part) -> None:
        """Give it back, with a new address maybe."""
        self._network.connect(part.id, network_aliases=[part.name])

    def restore(self) -> None:
        """Bring back what a test that failed left killed, frozen or cut."""
        for part in (*self.brokers, *self.parts.values()):
            facts = part.facts()
            if facts["State"]["Paused"]:
                part.unpause()
            if not facts["State"]["Running"]:
                part.start()
            if self._network.name not in facts["NetworkSettings"]["Networks"]:
                self.heal(part)
        self.wait_brokers()

    def remove_volume(self, volume: str) -> None:
        """Stop protecting it: what the next test sees is its own."""
        self.agent.hostoffload("volume", "remove", volume)

    def leader(self, topic: str) -> Part:
        """Return the broker that leads a topic of one partition."""
        ask = ["/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", f"{self._names[0]}:9092", "--describe", "--topic", topic]
        told = self.brokers[0].run(*ask)
        return self.brokers[int(told.split("Leader: ")[1].split()[0]) - 1]

    def wait_brokers(self) -> None:
        """Wait until every broker takes connections."""
        for broker in self.brokers:
            wait_until(lambda broker=broker: _listens(broker), f"{broker.name} listens", BROKER_S)


def _listens(broker: Part) -> bool:
    with contextlib.suppress(AssertionError, docker.errors.APIError):
        broker.run("bash", "-c", ": >/dev/tcp/127.0.0.1/9092")
        return True
    return False


@contextlib.contextmanager
def deployed(images: Images, folder: Path, *, brokers: int, broker_volume: str | None = None) -> Iterator[Deployment]:
    """Run a deployment; what its parts said last is told if a test fails while it is made."""
    deployment = Deployment(images, folder, brokers, broker_volume)
    try:
        deployment.make()
        yield deployment
    except BaseException:
        for part in (*deployment.brokers, *deployment.parts.values()):
            print(f"--- {part.name}\n{part.log()}")
        raise
    finally:
        deployment.remove()
