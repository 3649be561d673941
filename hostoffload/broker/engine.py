"""Docker's engine through its command line: does it answer, is an image there, and the broker's container.

Every call has a time limit; an engine that hangs is one that does not answer. Names no credentials and changes nothing but the
container and image that it is told.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stream.errors import RetryError

CALL_S_MAX = 30
PULL_S_MAX = 600


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine reports it; `pid` is its first process on this machine, None if it does not run."""

    running: bool
    pid: int | None
    image: str


class Engine:
    """Call the `docker` command."""

    def __init__(self, command: str = "docker") -> None:
        self._command = command

    def lacks(self, image: str, say: Callable[[str], None]) -> str | None:
        """Say why no container of `image` can run on this machine, or None. Pulls the image if it is not there."""
        if shutil.which(self._command) is None:
            return "Docker is not installed"
        if os.environ.get("DOCKER_HOST", "unix:").split(":")[0] != "unix":
            return "DOCKER_HOST names an engine on another machine"
        code, said = self._call(["version", "--format", "{{.Server.Version}}"])
        if code:
            return "Docker's engine does not answer"
        if self._call(["image", "inspect", "--format", "{{.Id}}", image])[0] == 0:
            return None
        say(f"pulling the image {image}")
        code, said = self._call(["pull", "--quiet", image], PULL_S_MAX)
        return None if code == 0 else f"the image {image} is not here and does not come ({_last_line(said)})"

    def is_rootless(self) -> bool:
        """Tell whether the engine itself runs as a normal user: root inside a container is then that user outside."""
        return "rootless" in self._call(["info", "--format", "{{json .SecurityOptions}}"])[1]

    def container(self, name: str) -> Container | None:
        """Return the container of this name, or None if there is none. Raises RetryError if the engine does not answer."""
        code, said = self._call(["container", "inspect", "--format", "{{json .}}", name])
        if code:
            if "no such container" in said.lower():
                return None
            raise RetryError("Docker's engine does not answer.", hint="is it running?", got=_last_line(said))
        told = json.loads(said)
        running = bool(told["State"]["Running"])
        return Container(running, told["State"]["Pid"] if running else None, told["Config"]["Image"])

    def run(self, arguments: Sequence[str], time_s_max: float = CALL_S_MAX) -> str:
        """Run `docker` with these arguments and return what it said. Raises RetryError with its last line if it fails."""
        code, said = self._call(arguments, time_s_max)
        if code:
            raise RetryError(f"`docker {arguments[0]}` failed.", hint="the fact below is its last line", said=_last_line(said))
        return said

    def _call(self, arguments: Sequence[str], time_s_max: float = CALL_S_MAX) -> tuple[int, str]:
        try:
            done = subprocess.run(
                [self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=time_s_max,
                check=False,
                text=True,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, str(error)
        return done.returncode, done.stdout


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1] if lines else ""
