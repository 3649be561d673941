"""`Part`: one container of a deployment, as an operator sees it from outside."""

from __future__ import annotations

import json
import subprocess
import time
from urllib.error import HTTPError
from urllib.request import urlopen

from docker.models.networks import Network
from prometheus_client.parser import text_string_to_metric_families
from testcontainers.core.container import DockerContainer

METRICS_PORT = 9640
ANSWER_S = 20
COMMAND_S_MAX = 300
STOP_S = 60
READY_S = 120


class Part:
    """A started container. `door` is the network by which this machine speaks to it, whatever becomes of the others."""

    def __init__(self, name: str, made: DockerContainer, door: Network | None) -> None:
        self.name = name
        self.made = made
        self._container = made.get_wrapped_container()
        self._door = door
        if door is not None:
            door.connect(self._container)

    @property
    def id(self) -> str:
        return self._container.id

    def run(self, *command: object, code: int = 0) -> str:
        """Run a command inside and return its stdout; the exit code must be the expected one."""
        words = ["docker", "exec", self.id, *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=COMMAND_S_MAX)
        assert done.returncode == code, f"{self.name}: {' '.join(words[3:])}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def hostoffload(self, *arguments: object, code: int = 0) -> str:
        """Run a command of ours inside."""
        return self.run("hostoffload", *arguments, code=code)

    def address(self) -> str:
        """Return where this machine reaches it now; another start may give it another address. Raises ConnectionError while it is down."""
        assert self._door is not None
        self._container.reload()
        found = self._container.attrs["NetworkSettings"]["Networks"][self._door.name]["IPAddress"]
        if not found:
            raise ConnectionError(f"{self.name} is down")
        return found

    def get(self, path: str) -> tuple[int, str]:
        """Ask its endpoint of metrics and health."""
        try:
            with urlopen(f"http://{self.address()}:{METRICS_PORT}{path}", timeout=ANSWER_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float | None:
        """Return the one sample with these labels, None if there is none."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        found = [one.value for family in families for one in family.samples if one.name == name and labels.items() <= one.labels.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else None

    def health(self) -> str:
        """Return what the engine's health check found: starting, healthy, unhealthy; none without a check."""
        self._container.reload()
        return self._container.attrs["State"].get("Health", {}).get("Status", "none")

    def wait_ready(self) -> None:
        """Wait until the service can do its work; its last lines are told if it can't."""
        ends_s = time.monotonic() + READY_S
        while True:
            try:
                status, told = self.get("/readyz")
            except OSError as error:
                status, told = 0, str(error)
            if status == 200:
                return
            assert time.monotonic() < ends_s, f"{self.name} is not ready: {told}\n{self.log()}"
            time.sleep(0.2)

    def log(self, lines: int = 30) -> str:
        return self._container.logs(tail=lines).decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL to all that runs in it."""
        self._container.kill()
        self._container.wait(timeout=STOP_S)

    def stop(self) -> int:
        """SIGTERM, as `docker stop` does; return the exit code. SIGKILL, 137, if it takes too long."""
        self._container.stop(timeout=STOP_S)
        return self._container.wait(timeout=STOP_S)["StatusCode"]

    def start(self) -> None:
        """Start it again, on what it left."""
        self._container.start()

    def pause(self) -> None:
        self._container.pause()

    def unpause(self) -> None:
        self._container.unpause()

    def facts(self) -> dict:
        """Return what the engine knows of it."""
        self._container.reload()
        return json.loads(json.dumps(self._container.attrs))
