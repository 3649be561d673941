"""Metrics and health: what is told of reports that are there, old, dead or silent, and that nothing else is told."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cx_consumers.target_facts import VolumeFacts
from hostoffload import metrics
from hostoffload.broker.external import ExternalBroker
from hostoffload.broker.folder import BrokerFolder
from hostoffload.broker.ports import free_ports
from hostoffload.cli.service import run_service
from hostoffload.context import Context
from hostoffload.local_state import LocalState, Report, Supervised, SupervisorFacts
from hostoffload.metrics import endpoint as endpoint_module
from hostoffload.metrics import health as health_module
from hostoffload.metrics.collector import collected
from hostoffload.metrics.endpoint import Endpoint
from hostoffload.metrics.health import STUCK_S_MIN, ill, unready
from hostoffload.metrics.scope import FRESH_S_MAX, Scope
from hostoffload.metrics.table import METRICS, Metric
from hostoffload.services import all_services
from stream.config import Config, KafkaConfig, MetricsConfig, TargetConfig
from stream.errors import ConfigError
from stream.position import ZERO, Position
from stream.report import Reporter

NOW_NS = 1_800_000_000 * 10**9
ME = os.getpid()
WAIT_S = 60


def report(kind: str, facts: dict[str, Any], *, instance: str = "one", age_s: float = 0.5, alive: bool = True, pid: int = ME) -> Report:
    return Report(kind, instance, pid, NOW_NS - int(age_s * 1e9), alive, {"db": facts})


def samples(*reports: Report, service: str = "up", supervisor: SupervisorFacts | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what an endpoint tells at NOW_NS, without families that have no sample."""
    found = collected(Scope(service, service, Path("/nowhere")), LocalState(reports, supervisor, {}), NOW_NS)
    return {name: values for name, values in found.items() if values}


CAPTURE = {
    "position": str(Position(1, 9)),
    "serving": True,
    "mode": "DATA",
    "mode_since": 17.5,
    "captured_bytes": 4096,
    "gaps": 0,
    "error": None,
}


class TestTruth:
    def test_a_fact_becomes_a_sample(self) -> None:
        told = samples(report("capture", CAPTURE))
        assert told["hostoffload_captured_bytes"] == {("db",): 4096.0}
        assert told["hostoffload_volume_mode_since_timestamp_seconds"] == {("db",): 17.5}
        assert told["hostoffload_volume_mode"] == {
            ("db", mode): float(mode == "DATA") for mode in ("SYNC", "DATA", "BITMAP", "RESYNC", "OFFLINE")
        }
        assert told["hostoffload_volume_error"] == {("db", "capture"): 0.0}

    def test_what_is_unknown_is_absent(self) -> None:
        told = samples(report("publisher", {"position": str(ZERO), "rpo_stream_ms": 1500.0, "rpo_replica_ms": None, "outage_s": None}))
        assert told["hostoffload_rpo_seconds"] == {("db", "stream"): 1.5}
        assert "hostoffload_outage_seconds" not in told
        assert "hostoffload_position_sequence" not in told

    @pytest.mark.parametrize("gone", [{"alive": False}, {"age_s": FRESH_S_MAX + 0.1}])
    def test_what_is_not_of_now_is_absent(self, gone: dict[str, Any]) -> None:
        told = samples(report("capture", CAPTURE, **gone), report("cx", {"position": str(Position(1, 4))}))
        assert told["hostoffload_position_sequence"] == {("db", "journaled"): 4.0}
        assert {"hostoffload_captured_bytes", "hostoffload_volume_mode", "hostoffload_volume_error"}.isdisjoint(told)

    def test_a_volume_that_is_not_served_tells_its_mode_alone(self) -> None:
        told = samples(report("capture", {"position": str(ZERO), "serving": False, "mode": "OFFLINE", "error": "no such file"}))
        assert told["hostoffload_volume_mode"][("db", "OFFLINE")] == 1.0
        assert told["hostoffload_volume_error"] == {("db", "capture"): 1.0}
        assert "hostoffload_volume_mode_since_timestamp_seconds" not in told

    def test_a_target_that_has_not_looked_yet_counts_nothing(self) -> None:
        """Its counts start from the checkpoint: told as 0 first, they would look like an increase afterwards."""
        _, facts = VolumeFacts(error="the disk is away", state="retrying").told()
        told = samples(report("target", {"position": str(ZERO), **facts}))
        assert told["hostoffload_replica_error"] == {("db", "one"): 1.0}
        assert told["hostoffload_replica_state"][("db", "one", "retrying")] == 1.0
        assert {
            one for one in told if one.startswith(("hostoffload_verify", "hostoffload_replica_gaps", "hostoffload_replica_open"))
        } == set()
        assert "hostoffload_replica_consistent" not in told

    def test_a_worker_that_has_just_taken_a_volume_counts_no_gaps(self) -> None:
        assert "hostoffload_cx_open_gaps" not in samples(report("cx", {"position": str(ZERO), "open_gaps": 0}))
        assert samples(report("cx", {"position": str(Position(1, 1)), "open_gaps": 2}))["hostoffload_cx_open_gaps"] == {("db",): 2.0}

    @pytest.mark.parametrize(("label", "value"), [("consistent_at", 1.0), ("not_until", 0.0)])
    def test_the_label_of_a_replica(self, label: str, value: float) -> None:
        _, facts = VolumeFacts(position=Position(1, 5), gaps=3, **{label: Position(1, 5)}).told()
        told = samples(report("target", {"position": str(Position(1, 5)), **facts}))
        assert told["hostoffload_replica_consistent"] == {("db", "one"): value}
        assert told["hostoffload_replica_gaps"] == {("db", "one"): 3.0}

    def test_of_two_that_tell_of_one_volume_the_newer_counts(self) -> None:
        old = report("cx", {"position": str(Position(1, 4))}, instance="old", age_s=3)
        new = report("cx", {"position": str(Position(1, 7))}, instance="new", age_s=1)
        assert samples(old, new)["hostoffload_position_sequence"] == {("db", "journaled"): 7.0}
        assert samples(new, old)["hostoffload_position_sequence"] == {("db", "journaled"): 7.0}

    def test_every_target_tells_of_its_own_replica(self) -> None:
        told = samples(
            *(report("target", {"position": str(Position(1, at)), "state": "held"}, instance=name) for name, at in [("a", 4), ("b", 6)])
        )
        assert told["hostoffload_replica_applied_sequence"] == {("db", "a"): 4.0, ("db", "b"): 6.0}

    def test_the_facts_of_the_table_are_those_that_targets_report(self) -> None:
        told = {"position", *VolumeFacts().told()[1]}
        assert {fact.key for metric in METRICS for fact in metric.facts if fact.kind == "target"} <= told


class TestProcesses:
    SUPERVISOR = SupervisorFacts(
        ME,
        5.0,
        "all",
        (
            Supervised("cx", "cx", ME, 6.0, 2, None, None),
            Supervised("target", "target-late", None, None, 7, 1, None),
            Supervised("export", "export-1", None, None, 0, None, None),
        ),
    )

    def test_one_that_is_down_is_told_as_down(self) -> None:
        told = samples(report("cx", {"position": str(ZERO)}, age_s=3), supervisor=self.SUPERVISOR)
        assert told["hostoffload_process_up"] == {("supervisor", "supervisor"): 1.0, ("cx", "cx"): 1.0, ("target", "target-late"): 0.0}
        assert told["hostoffload_process_restarts"] == {("cx", "cx"): 2.0, ("target", "target-late"): 7.0}
        assert told["hostoffload_report_age_seconds"] == {("supervisor", "supervisor"): 3.0, ("cx", "cx"): 3.0}
        assert told["hostoffload_process_start_timestamp_seconds"] == {("supervisor", "supervisor"): 5.0, ("cx", "cx"): 6.0}
        assert ("target", "target-late") not in told["hostoffload_process_resident_memory_bytes"]

    def test_memory_and_processor_time_are_the_kernels(self) -> None:
        told = samples(service="cx")
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        rss = int(status["VmRSS"].split()[0]) * 1024
        assert told["hostoffload_process_resident_memory_bytes"][("cx", "cx")] == pytest.approx(rss, rel=0.2)
        spent_s = time.process_time()
        assert told["hostoffload_process_cpu_seconds"][("cx", "cx")] == pytest.approx(spent_s, abs=1.0)

    def test_without_a_supervisor_that_is_what_is_down(self) -> None:
        assert samples()["hostoffload_process_up"] == {("supervisor", "supervisor"): 0.0}

    @pytest.mark.parametrize(
        ("service", "volumes"), [("up", {"db", "others", "mine"}), ("agent", {"db"}), ("cx", {"mine"}), ("target", set())]
    )
    def test_each_service_tells_of_its_own(self, service: str, volumes: set[str]) -> None:
        reports = (
            report("capture", CAPTURE, pid=ME + 1),
            Report("cx", "other", ME + 2, NOW_NS, True, {"others": {"position": str(Position(1, 1))}}),
            Report("cx", "mine", ME, NOW_NS, True, {"mine": {"position": str(Position(1, 1))}}),
        )
        told = samples(*reports, service=service)
        assert {
            labels[0] for name in ("hostoffload_position_sequence", "hostoffload_captured_bytes") for labels in told.get(name, {})
        } == volumes


class TestHealth:
    def test_one_that_does_not_report_is_stuck(self) -> None:
        scope = Scope("cx", "cx", Path("/nowhere"))
        for age_s, healthy in ((STUCK_S_MIN - 1, True), (STUCK_S_MIN + 1, False)):
            assert (ill(scope, LocalState((report("cx", {}, age_s=age_s),), None, {}), NOW_NS) == []) is healthy
        assert ill(scope, LocalState((report("cx", {}, age_s=1e6, alive=False),), None, {}), NOW_NS) == [], "it is started anew"

    def test_one_that_has_not_reported_yet_is_healthy_and_not_ready(self) -> None:
        scope = Scope("cx", "cx", Path("/nowhere"))
        assert ill(scope, LocalState((), None, {}), NOW_NS) == []
        assert unready(scope, LocalState((), None, {}), NOW_NS) == ["cx has not reported yet: it waits for Kafka"]
        assert unready(scope, LocalState((report("cx", {}, age_s=FRESH_S_MAX + 1),), None, {}), NOW_NS) == ["cx one is silent"]
        assert unready(scope, LocalState((report("cx", {}),), None, {}), NOW_NS) == []

    def test_a_process_that_is_down_makes_all_unready_and_nothing_unhealthy(self) -> None:
        state = LocalState((), TestProcesses.SUPERVISOR, {})
        scope = Scope("up", "up", Path("/nowhere"))
        assert ill(scope, state, NOW_NS) == []
        assert "target-late is not ready" in unready(scope, state, NOW_NS)
        assert ill(scope, LocalState((), None, {}), NOW_NS) == ["the supervisor does not run"]


class Served:
    """An endpoint of this very process as a CX worker, and the reports that it reads."""

    def __init__(self, folder: Path) -> None:
        self.reporter = Reporter(folder, "cx", "worker", None)
        self.endpoint = Endpoint(("127.0.0.1", 0), Scope("cx", "cx", folder))
        self.endpoint.start()
        self.port = 0
        deadline_s = time.monotonic() + WAIT_S
        while not self.port:
            assert time.monotonic() < deadline_s
            self.port = self.endpoint._server.server_port if self.endpoint._server is not None else 0

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        try:
            with urlopen(Request(f"http://127.0.0.1:{self.port}{path}", method=method), timeout=WAIT_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path)
    yield found
    found.endpoint.stop()


class TestEndpoint:
    def test_it_tells_what_was_reported_last(self, served: Served) -> None:
        served.reporter.report({"db": (Position(2, 7), {"journaled_bytes": 12, "persisted": None})})
        status, text = served.get("/metrics")
        told = {one.name: one for one in text_string_to_metric_families(text)}
        assert status == 200
        assert [(one.name, one.labels, one.value) for one in told["hostoffload_cx_journaled_bytes"].samples] == [
            ("hostoffload_cx_journaled_bytes_total", {"volume": "db"}, 12.0)
        ]
        assert told["hostoffload_position_sequence"].samples[0].labels == {"volume": "db", "stage": "journaled"}
        assert all(name.startswith("hostoffload_") for name in told), "nothing of the client library's own"
        served.reporter.report({"db": (Position(2, 9), {"journaled_bytes": 30, "persisted": str(Position(2, 9))})})
        assert 'hostoffload_position_sequence{stage="persisted",volume="db"} 9.0' in served.get("/metrics")[1]

    def test_health(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        assert served.get("/healthz") == (200, "ok\n")
        assert served.get("/readyz") == (503, "cx has not reported yet: it waits for Kafka\n")
        served.reporter.report({})
        assert served.get("/readyz") == (200, "ok\n")
        monkeypatch.setattr(health_module, "STUCK_S_MIN", 0.0)
        assert served.get("/healthz")[0] == 503

    @pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 405)])
    def test_there_is_nothing_else(self, served: Served, path: str, method: str, status: int) -> None:
        assert served.get(path, method)[0] == status

    def test_a_report_that_is_damaged_ends_nothing(self, served: Served) -> None:
        served.reporter._path.write_text("{")
        assert served.get("/metrics")[0] == 200
        assert served.get("/readyz")[0] == 503

    def test_clients_that_say_nothing_keep_few_threads_and_no_service(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_module._Handler, "timeout", 10 * WAIT_S)
        before = threading.active_count()
        idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3 * endpoint_module.REQUESTS_MAX)]
        for one in idle[endpoint_module.REQUESTS_MAX :]:
            one.settimeout(WAIT_S)
            assert one.recv(1) == b"", "hung up on"
        assert threading.active_count() <= before + endpoint_module.REQUESTS_MAX
        for one in idle:
            one.close()
        answered, ends_s = 0, time.monotonic() + WAIT_S
        while answered != 200 and time.monotonic() < ends_s:
            with contextlib.suppress(OSError):
                answered = served.get("/healthz")[0]
        assert answered == 200

    def test_an_address_that_is_taken_is_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoint_module, "RETRY_S", 0.01)
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            waiting = Endpoint(("127.0.0.1", port), Scope("cx", "cx", tmp_path))
            waiting.start()
            time.sleep(0.05)
            assert waiting._server is None
        deadline_s = time.monotonic() + WAIT_S
        while waiting._server is None:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        waiting.stop()

    def test_a_service_that_was_started_again_has_its_address_at_once(self, served: Served, tmp_path: Path) -> None:
        """Though the connections of those who asked the one before it are not forgotten yet: here the server hung up first."""
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            while client.recv(4096):
                pass
        served.endpoint.stop()
        again = endpoint_module._Server(("127.0.0.1", served.port), endpoint_module.app_of(Scope("cx", "cx", tmp_path)))
        again.server_close()


class TestConfig:
    def test_no_address_serves_nowhere(self, tmp_path: Path) -> None:
        before = threading.active_count()
        metrics.start(Config(), "cx", tmp_path, "cx")
        assert threading.active_count() == before

    @pytest.mark.parametrize("wrong", ["9640", "host:", ":9640", "host:http", "127.0.0.1:0"])
    def test_a_wrong_address_is_named(self, wrong: str) -> None:
        with pytest.raises(ConfigError, match=r"metrics\.cx is"):
            metrics.address_of(Config(metrics=MetricsConfig(cx=wrong)), "cx")


class TestServices:
    @pytest.fixture(autouse=True)
    def kept(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Services configure the log of their process, and take the environment's word."""
        for name in [one for one in os.environ if one.startswith("HOSTOFFLOAD_")]:
            monkeypatch.delenv(name)
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        root.handlers[:], root.level = handlers, level

    def test_a_service_can_be_asked_while_it_waits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (port,) = free_ports(1)
        monkeypatch.setenv("HOSTOFFLOAD_METRICS_CX", f"127.0.0.1:{port}")
        told: list[int] = []

        def body(_: Config) -> int:
            deadline_s = time.monotonic() + WAIT_S
            while not told and time.monotonic() < deadline_s:
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/healthz", timeout=WAIT_S) as answer:
                    told.append(answer.status)
            return 0

        assert run_service(Context(tmp_path / "state"), "cx", body, uses_kafka=False, metrics="cx") == 0
        assert told == [200]

    def test_a_wrong_address_ends_it_with_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOSTOFFLOAD_METRICS_TARGET", "nowhere")
        assert run_service(Context(tmp_path / "state"), "target", lambda _: 0, uses_kafka=False, metrics="target") == 2

    def test_what_up_runs_leaves_the_metrics_to_one_process(self, tmp_path: Path) -> None:
        broker = ExternalBroker(BrokerFolder(tmp_path), "127.0.0.1:9092", KafkaConfig())
        config = Config(metrics=MetricsConfig(up="127.0.0.1:9640", cx="127.0.0.1:9641"), target=TargetConfig(also="late"))
        specs = {one.name: one for one in all_services(Context(tmp_path), config, broker)}
        assert specs.keys() == {"capture", "publisher", "cx", "target", "target-late", "metrics"}
        for name, one in specs.items():
            own = {key: value for key, value in one.environment.items() if key.startswith("HOSTOFFLOAD_METRICS_")}
            none = {f"HOSTOFFLOAD_METRICS_{service}": "" for service in ("AGENT", "CX", "TARGET")}
            assert own == ({} if name == "metrics" else none)
        assert specs["metrics"].rank > max(one.rank for name, one in specs.items() if name != "metrics"), "it tells what is down"
        assert "metrics" not in {one.name for one in all_services(Context(tmp_path), Config(), broker)}


def test_names_are_those_that_prometheus_asks_for() -> None:
    for one in METRICS:
        assert not one.name.endswith("_total") and one.name.startswith("hostoffload_")
        assert one.sample_name.endswith("_total") == (one.kind == "counter")
    assert len({one.name for one in METRICS}) == len(METRICS)
    assert Metric("a", "counter", (), "").sample_name == "a_total"
