"""A real Prometheus (Debian: prometheus) of one test: it scrapes one endpoint every second and evaluates the alert rules."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from hostoffload.broker.ports import free_ports
from tests.tools import need

ANSWER_S = 60
STOP_S = 20
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: hostoffload
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """Ask it what it has seen."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._began_s = time.time()

    def ask(self, path: str, **arguments: object) -> Any:
        """Return `data` of an answer of its API."""
        with urlopen(f"{self._url}{path}?{urlencode(arguments)}", timeout=ANSWER_S) as answer:
            return json.load(answer)["data"]

    def now(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of what a query gives now."""
        return [(one["metric"], float(one["value"][1])) for one in self.ask("/api/v1/query", query=query)["result"]]

    def ever(self, query: str) -> list[dict[str, str]]:
        """Return the labels of all that a query gave at any second since the start."""
        found = self.ask("/api/v1/query_range", query=query, start=self._began_s, end=time.time(), step=1)
        return [one["metric"] for one in found["result"]]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urlopen(f"{self._url}/-/ready", timeout=ANSWER_S) as answer:
            return answer.status == 200
        return False


@contextlib.contextmanager
def scraping(target: str, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """Run one that scrapes `target` (host:port), from when it is ready."""
    need("prometheus")
    folder.mkdir()
    config = folder / "prometheus.yaml"
    config.write_text(CONFIG.format(rules=rules, target=target))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(port)
        deadline_s = time.monotonic() + ANSWER_S
        while not prometheus.answers():
            assert server.poll() is None and time.monotonic() < deadline_s, (folder / "log").read_text()
            time.sleep(0.1)
        yield prometheus
    finally:
        server.terminate()
        server.wait(STOP_S)
