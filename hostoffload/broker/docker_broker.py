"""The `docker` kind: the same Kafka in a container, on the host's network and on the state folder's data.

The container runs the java command of the jars kind on the image's own jars, with `<state>/broker` mounted at the same path, as the
user who owns that folder. So one data folder serves both kinds, its files belong to the operator, and the container itself can be thrown
away at any time. The host's network is used because published ports go through a user-space proxy (61 MB/s instead of 270); Kafka
listens on 127.0.0.1 only, as in the other kind.

The image is `apache/kafka`, or what HOSTOFFLOAD_BROKER_IMAGE names: it must have java on its PATH and Kafka's jars in /opt/kafka/libs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence

from hostoffload.broker import process
from hostoffload.broker.engine import Engine
from hostoffload.broker.folder import BrokerFolder
from hostoffload.broker.local import LocalBroker
from hostoffload.broker.settings import KAFKA_VERSION, BrokerSettings
from stream.errors import RetryError

IMAGE_DEFAULT = f"apache/kafka:{KAFKA_VERSION}"
CLASS_PATH = "/opt/kafka/libs/*"
TOOL_S_MAX = 120
STOP_EXTRA_S = 20


def image() -> str:
    """Return the image's name: HOSTOFFLOAD_BROKER_IMAGE, else apache/kafka of our version."""
    return os.environ.get("HOSTOFFLOAD_BROKER_IMAGE") or IMAGE_DEFAULT


class DockerBroker(LocalBroker):
    """Run Kafka in a container named after the state folder."""

    kind = "docker"

    def __init__(
        self, folder: BrokerFolder, settings: BrokerSettings, say: Callable[[str], None], engine: Engine, image_name: str
    ) -> None:
        super().__init__(folder, settings, say)
        self._engine = engine
        self._image = image_name
        self.container = "hostoffload-broker-" + hashlib.sha256(os.fsencode(folder.root)).hexdigest()[:12]

    def argv(self) -> Sequence[str]:
        """Return the `docker run` that stays with the container, passes SIGTERM on and ends when it ends.

        Not `docker start --attach`: told to end, newer clients return before the container has ended (28.2; 20.10 waits).
        """
        return ["docker", "run", *self._run_options()]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment: the client needs DOCKER_HOST and HOME."""
        return dict(os.environ)

    def prepare(self) -> None:
        """Make the configuration and the storage, and clear away an ended container (see `interface.Broker.prepare`)."""
        if process.find(self.folder.properties) is not None:
            return
        super().prepare()
        self._remove()

    def _install(self) -> None:
        lacks = self._engine.lacks(self._image, self.say)
        if lacks is not None:
            raise RetryError(f"The docker broker can't be used: {lacks}.", hint="start Docker, or use --broker jars")

    def _run_tool(self, arguments: Sequence[str]) -> None:
        self._engine.run(["run", "--rm", *self._options(), self._image, "-cp", CLASS_PATH, *arguments], TOOL_S_MAX)

    def _launch(self) -> None:
        self._engine.run(["run", "--detach", *self._run_options()])

    def _end(self, deadline_s: float) -> None:
        # An engine that does not answer must not keep the broker alive: its process is ended all the same.
        with contextlib.suppress(RetryError):
            if self._engine.container(self.container) is not None:
                self._engine.run(["stop", "--time", str(max(int(deadline_s), 1)), self.container], deadline_s + STOP_EXTRA_S)
        process.end(self.folder.properties, deadline_s)
        with contextlib.suppress(RetryError):
            self._remove()

    def _remove(self) -> None:
        if self._engine.container(self.container) is not None:
            self._engine.run(["rm", "--force", "--volumes", self.container])

    def _run_options(self) -> list[str]:
        named = ["--name", self.container, "--label", "hostoffload=broker", *self._options()]
        return [*named, self._image, *self.java_options(self.folder.log), "-cp", CLASS_PATH, *self.main()]

    def _options(self) -> list[str]:
        owner = (0, 0) if self._engine.is_rootless() else (os.getuid(), os.getgid())
        return [
            "--network=host",
            f"--user={owner[0]}:{owner[1]}",
            "--userns=host",
            "--security-opt=label=disable",
            "--log-driver=none",
            f"--workdir={self.folder.root}",
            f"--volume={self.folder.root}:{self.folder.root}",
            "--entrypoint=java",
        ]
