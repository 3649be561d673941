"""The `jars` kind: Kafka's JVM as a process of this machine, from Maven's jars.

Chosen when Docker does not work or `--broker jars` is given. Needs Java 17 or newer; Maven only until the jars are in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from hostoffload.broker import process
from hostoffload.broker.archive import ClassArchive
from hostoffload.broker.folder import BrokerFolder
from hostoffload.broker.jars import KafkaJars
from hostoffload.broker.local import LocalBroker, tool_failed
from hostoffload.broker.settings import BrokerSettings
from stream.errors import ConfigError

JAVA_VERSION_MIN = 17
JAVA_ANSWER_S = 20
TOOL_S_MAX = 120
FETCH_WAIT_S = 900
FOREIGN_VARIABLES = ("KAFKA_", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")


class JavaBroker(LocalBroker):
    """Run Kafka as a detached JVM."""

    kind = "jars"

    def __init__(
        self, folder: BrokerFolder, settings: BrokerSettings, say: Callable[[str], None], jars: KafkaJars
    ) -> None:
        super().__init__(folder, settings, say)
        self._jars = jars
        self._child: subprocess.Popen[bytes] | None = None

    def argv(self) -> Sequence[str]:
        """Return the java command; Kafka ends cleanly on SIGTERM."""
        java = find_java()
        archive = ClassArchive(self._jars, java).options()
        return [java, *archive, *self.java_options(self.folder.log), "-cp", self._jars.class_path, *self.main()]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment without Java's and Kafka's own variables, which would change this broker by accident."""
        return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}

    def _install(self) -> None:
        self._jars.ensure(self.say, FETCH_WAIT_S)
        ClassArchive(self._jars, find_java()).ensure(self.say)

    def _run_tool(self, arguments: Sequence[str]) -> None:
        java = find_java()
        archive = ClassArchive(self._jars, java).options()
        command = [java, *archive, "-XX:TieredStopAtLevel=1", "-cp", self._jars.class_path, *arguments]
        done = subprocess.run(
            command,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_S_MAX,
            check=False,
        )
        if done.returncode:
            raise tool_failed(arguments, done.stdout, self.folder.data)

    def _launch(self) -> None:
        self._child = process.spawn(self.argv(), self.environment(), out=self.folder.out, folder=self.folder.root)

    def _end(self, deadline_s: float) -> None:
        process.end(self.folder.properties, deadline_s)
        if self._child is not None:
            self._child.wait()
            self._child = None


def missing(jars: KafkaJars) -> str | None:
    """Say in a few words what the jars kind lacks on this machine, or None if it can work."""
    try:
        version = java_version(find_java())
    except ConfigError as error:
        return error.sentence.rstrip(".")
    if version < JAVA_VERSION_MIN:
        return f"Java is version {version}, Kafka needs {JAVA_VERSION_MIN}"
    if not jars.complete() and shutil.which("mvn") is None:
        return "Maven (mvn) is not installed"
    return None


def java_version(java: str) -> int:
    """Return the major version that `java -version` tells. Raises ConfigError if it can't be run."""
    try:
        command = [java, "-version"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=JAVA_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError("Java can't be run.", path=java, got=str(error)) from error
    found = re.search(rb'version "(?:1\.)?(\d+)', done.stderr)
    if found is None:
        raise ConfigError("Java does not tell its version.", path=java)
    return int(found.group(1))


def find_java() -> str:
    """Return the `java` to use: JAVA_HOME's, else the one on the PATH. Raises ConfigError if there is none."""
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return str(Path(home) / "bin" / "java")
    found = shutil.which("java")
    if found is None:
        raise ConfigError("Java is not installed.", hint="Debian: apt-get install openjdk-17-jre-headless")
    return found
