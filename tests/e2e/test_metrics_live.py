"""Metrics of a live `up`, scraped by a real Prometheus: every metric, every query of the dashboard, every rule, and a fault."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hostoffload.broker.ports import free_ports
from hostoffload.metrics.table import METRICS
from nbd.client import Client
from stream.position import Position
from tests.e2e.system import make_source, running, wait_until
from tests.kafka_fixture import OwnBroker
from tests.prometheus_server import Prometheus, scraping
from tests.tidy.test_metric_lists import ALERTS, QUERIES, RULES
from tests.tools import need

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
MIB = 1 << 20
WAIT_S = 90
SETTINGS = {
    "HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX": str(4 * MIB),  # so that the first copy is seen by a scrape
    "HOSTOFFLOAD_AGENT_VERIFY_BYTES_PER_S": str(8 * MIB),
    "HOSTOFFLOAD_HISTORY_EVERY_S": "1",
    "HOSTOFFLOAD_HISTORY_RETENTION": "any write 10 s, 2 s for 1 d",
    "HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "1",
}


class Endpoint:
    """The endpoint of `up`, as anybody may ask it."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://{self.address}{path}", timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return the samples of each name."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        told: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in families:
            for one in family.samples:
                told.setdefault(one.name, []).append((one.labels, one.value))
        return told

    def value(self, name: str, **labels: str) -> float | None:
        """Return the one sample with these labels, None if there is none."""
        found = [value for told, value in self.samples().get(name, ()) if labels.items() <= told.items()]
        assert len(found) <= 1, (name, labels, found)
        return found[0] if found else None

    def lag(self, volume: str, stage: str) -> float:
        """Return the RPO lag of a stage in seconds; infinite while it is not told."""
        told = self.value("hostoffload_rpo_seconds", volume=volume, stage=stage)
        return math.inf if told is None else told


@contextlib.contextmanager
def written_to(uri: str) -> Iterator[None]:
    """Write some 300 KB/s to a volume meanwhile."""
    over = threading.Event()

    def write() -> None:
        with Client(uri) as client:
            while not over.wait(0.2):
                client.write(0, os.urandom(64 << 10))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def test_a_live_system_is_told_as_it_is(own_broker: OwnBroker, tmp_path: Path) -> None:
    need("prometheus", "promtool")
    (port,) = free_ports(1)
    endpoint, name = Endpoint(port), own_broker.fresh_volume_name()
    environment = SETTINGS | {f"HOSTOFFLOAD_METRICS_{one}": endpoint.address for one in ("UP", "AGENT", "CX", "TARGET")}
    with running(tmp_path / "system", bootstrap=own_broker.bootstrap, environment=environment) as system:
        wait_until(lambda: answers(endpoint), "the endpoint answers", WAIT_S)
        wait_until(lambda: endpoint.get("/readyz") == (200, "ok\n") == endpoint.get("/healthz"), "all is well", WAIT_S)
        source = make_source(system.folder / "source.img", 32 * MIB, 24 * MIB)
        with scraping(endpoint.address, ALERTS, system.folder / "prometheus") as prometheus:
            uri = system.add(name, source)
            with written_to(uri):
                everything_is_told(endpoint, prometheus, name)
                as_status_says(endpoint, system.status(name), name)
                a_silent_target_is_told_as_silent(endpoint, system.processes("target")[0]["pid"], name)
            system.check_equal(name, source)
            rules_are_evaluated(prometheus)
        lint = subprocess.run(
            ["promtool", "check", "metrics"], input=endpoint.get("/metrics")[1], capture_output=True, text=True, check=False
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr
        os.kill(system.processes("supervisor")[0]["pid"], signal.SIGKILL)
        wait_until(lambda: endpoint.value("hostoffload_process_up", process="supervisor") == 0, "the supervisor is told as down", WAIT_S)
        assert endpoint.get("/healthz")[0] == 503
        system.up()
        wait_until(lambda: endpoint.get("/readyz")[0] == 200 == endpoint.get("/healthz")[0], "all is well again", WAIT_S)
    assert not answers(endpoint), "down leaves nothing"


def answers(endpoint: Endpoint) -> bool:
    with contextlib.suppress(OSError):
        return endpoint.get("/healthz")[0] == 200
    return False


def everything_is_told(endpoint: Endpoint, prometheus: Prometheus, volume: str) -> None:
    """Every metric of the table was seen, and every query of rules and dashboard that may give something has given it."""
    wanted = {one.sample_name for one in METRICS}

    def lacking() -> set[str]:
        return wanted - {one["__name__"] for one in prometheus.ever('{__name__=~"hostoffload_.*"}')}

    ends_s = time.monotonic() + 2 * WAIT_S
    while lacking() and time.monotonic() < ends_s:
        time.sleep(1)
    assert lacking() == set()
    alerts = {rule["alert"] for rule in RULES} | {"Alerts"}
    for of, query in QUERIES.items():
        if of not in alerts:
            asked = query.replace("[1m]", "[15s]")
            wait_until(lambda asked=asked: prometheus.ever(asked) != [], f"{of} gives something: {asked}", WAIT_S)


def as_status_says(endpoint: Endpoint, before: dict, volume: str) -> None:
    """What is told now is what `status` said a moment ago, or later."""
    assert endpoint.value("hostoffload_volume_mode", volume=volume, mode=before["mode"]) == 1
    assert endpoint.value("hostoffload_captured_bytes_total", volume=volume) >= before["captured_bytes"] > 0
    assert endpoint.value("hostoffload_buffer_max_bytes") == before["buffer_bytes_max"]
    assert endpoint.value("hostoffload_gaps_total", volume=volume) == before["gaps"] == 0
    for stage, fact in (("captured", "captured"), ("published", "published"), ("journaled", "journaled")):
        sequence = Position.parse(before["position"][fact]).sequence
        assert endpoint.value("hostoffload_position_sequence", volume=volume, stage=stage) >= sequence > 0
    applied = Position.parse(before["position"]["applied"]).sequence
    assert endpoint.value("hostoffload_replica_applied_sequence", volume=volume) >= applied > 0
    for stage in ("stream", "journal", "store", "replica"):
        wait_until(lambda stage=stage: 0 <= endpoint.lag(volume, stage) < WAIT_S, f"the lag of {stage} is told", WAIT_S)
    assert endpoint.value("hostoffload_volume_error", volume=volume, part="capture") == 0


def a_silent_target_is_told_as_silent(endpoint: Endpoint, pid: int, volume: str) -> None:
    """A target that is stopped says nothing any more: its facts go, the lag of its replica rises, the age of its report is seen."""
    os.kill(pid, signal.SIGSTOP)
    try:
        applied = "hostoffload_replica_applied_sequence"
        wait_until(lambda: endpoint.value(applied, volume=volume) is None, "what the target said is not told any more", WAIT_S)
        wait_until(lambda: endpoint.value("hostoffload_report_age_seconds", process="target") > 10, "the age of its report", WAIT_S)
        assert endpoint.value("hostoffload_process_up", process="target") == 1
        wait_until(lambda: endpoint.get("/readyz") == (503, "target target is silent\n"), "it is told as silent", WAIT_S)
        wait_until(lambda: 10 < endpoint.lag(volume, "replica") < math.inf, "its lag is told by the agent", WAIT_S)
        wait_until(lambda: endpoint.lag(volume, "journal") < endpoint.lag(volume, "replica"), "the journal goes on", WAIT_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: endpoint.value(applied, volume=volume) is not None, "the target tells again", WAIT_S)
    wait_until(lambda: endpoint.lag(volume, "replica") < 5, "its lag is gone", WAIT_S)


def rules_are_evaluated(prometheus: Prometheus) -> None:
    """Every rule was evaluated without an error, and none fires for a system that is well."""
    rules = [rule for group in prometheus.ask("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {(one["name"], one["health"]) for one in rules} == {(rule["alert"], "ok") for rule in RULES}
    assert [one for one in rules if one["state"] == "firing"] == []
