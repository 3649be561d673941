"""Kafka's jars from Maven's central repository, kept in a cache that all state folders of a user share.

Used by the jars broker. The cache folder's name carries the Kafka version and a digest of `pom.xml`, so another version never mixes in.
A marker with every jar's size is written last: without it, or if a size differs, everything is fetched again. A lock makes the second
of two callers wait for the first. Maven checks each file against the repository's checksums (`--strict-checksums`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from hostoffload.broker.folder import file_lock, write_durably
from hostoffload.broker.plan import INSTALL_HINT
from hostoffload.broker.settings import KAFKA_VERSION
from stream.errors import RetryError

POM = Path(__file__).with_name("pom.xml")
FETCH_TRIES_MAX = 2
FETCH_TRY_S_MAX = 600
FETCH_LINES_SHOWN = 8



def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's cache: HOSTOFFLOAD_CACHE, else `hostoffload` below XDG_CACHE_HOME or ~/.cache."""
    if named := environment.get("HOSTOFFLOAD_CACHE"):
        return Path(named).absolute()
    below = environment.get("XDG_CACHE_HOME")
    return (Path(below) if below else Path.home() / ".cache") / "hostoffload"


class KafkaJars:
    """The class path of Kafka in the cache: `complete` looks, `ensure` fetches what is missing."""

    def __init__(self, cache: Path, pom: Path = POM) -> None:
        self._pom = pom
        digest = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
        self.folder = cache / f"kafka-{KAFKA_VERSION}-{digest}"
        self.libs = self.folder / "libs"
        self._marker = self.folder / "complete.json"

    @property
    def class_path(self) -> str:
        """What `java -cp` takes: Java itself expands the star."""
        return f"{self.libs}/*"

    def complete(self) -> bool:
        """Tell whether every jar of the marker is there in its size. Under a millisecond."""
        try:
            wanted = json.loads(self._marker.read_text())
            return bool(wanted) and wanted == self._sizes()
        except (OSError, ValueError):
            return False

    def ensure(self, say: Callable[[str], None], deadline_s: float) -> None:
        """Have all jars in place on return; nothing is fetched if they are.

        Safe for several callers at once; killed in the middle, the next call starts over. `deadline_s` bounds the wait for
        another caller. Raises RetryError with Maven's last lines if they can't be fetched.
        """
        if self.complete():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_name(self.folder.name + ".lock")
        with file_lock(lock, deadline_s, "Somebody else is fetching Kafka's jars."):
            if self.complete():
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.libs.mkdir(parents=True)
            say(f"fetching Kafka {KAFKA_VERSION} with Maven (45 MB, once)")
            self._fetch()
            write_durably(self._marker, json.dumps(self._sizes(), indent=1) + "\n")

    def _fetch(self) -> None:
        pom = self.folder / "pom.xml"
        shutil.copyfile(self._pom, pom)
        command = ["mvn", "--batch-mode", "--strict-checksums", "--file", str(pom), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={self.libs}"]
        said = ""
        for _ in range(FETCH_TRIES_MAX):
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=FETCH_TRY_S_MAX,
                    check=False,
                )
            except FileNotFoundError:
                raise RetryError("Maven is not installed, so Kafka can't be fetched.", hint=INSTALL_HINT) from None
            except subprocess.TimeoutExpired as slow:
                said = (slow.stdout or b"").decode(errors="replace")
                continue
            if done.returncode == 0 and self._sizes():
                return
            said = done.stdout.decode(errors="replace")
        raise RetryError(
            "Maven could not fetch Kafka.",
            hint="is the network there, or does ~/.m2/settings.xml name a mirror? Otherwise name a broker with --bootstrap",
            said="\n" + "\n".join(said.strip().splitlines()[-FETCH_LINES_SHOWN:]),
        )

    def _sizes(self) -> dict[str, int]:
        return {jar.name: jar.stat().st_size for jar in sorted(self.libs.glob("*.jar"))}
