"""The broker's memory and settings: what is saved comes back, what Kafka can't carry is refused, ports stay out of clients' range."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hostoffload.broker import BrokerSettings, choose, current
from hostoffload.broker.folder import BrokerFolder, BrokerState, file_lock
from hostoffload.broker.ports import becomes_free, free_ports, is_free
from hostoffload.broker.settings import server_properties
from stream.errors import ConfigError, IntegrityError, RetryError

STATE = BrokerState("jars", "127.0.0.1:20001", 20001, 20002, "abcdefghijklmnopqrstuv")


def parsed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def test_state_comes_back_and_leaves_no_other_file(tmp_path: Path) -> None:
    folder = BrokerFolder(tmp_path)
    assert folder.load() is None
    folder.save(STATE)
    folder.save(BrokerState("external", "k:9092", 20001, 20002, STATE.cluster_id))
    assert folder.load() == BrokerState("external", "k:9092", 20001, 20002, STATE.cluster_id)
    assert [path.name for path in folder.root.iterdir()] == ["broker.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "jars"}', '{"kind": "jars", "bootstrap": "b"}', '{"kind": "x", "bootstrap": "b"}']
)
def test_a_broken_state_file_stops_with_its_path(tmp_path: Path, text: str) -> None:
    folder = BrokerFolder(tmp_path)
    folder.root.mkdir()
    folder.state_file.write_text(text)
    with pytest.raises(IntegrityError) as caught:
        folder.load()
    assert caught.value.facts["path"] == folder.state_file


def test_a_folder_that_never_had_a_broker_has_no_report(tmp_path: Path) -> None:
    assert current(tmp_path / "nothing") is None
    assert not (tmp_path / "nothing").exists()


def test_the_report_of_a_dead_external_broker_is_quick(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        BrokerFolder(tmp_path).save(BrokerState("external", address))
        report = current(tmp_path)
    assert (report.kind, report.bootstrap, report.pid, report.ready) == ("external", address, None, False)


def test_the_variable_names_a_broker_unless_a_kind_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "k:9092")
    chosen = choose(tmp_path, bootstrap=None, force=None, say=print)
    assert (chosen.kind, chosen.bootstrap) == ("external", "k:9092")
    assert choose(tmp_path, bootstrap="other:1", force=None, say=print).bootstrap == "other:1"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ConfigError, match="The jars broker can't be used: Java is not installed"):
        choose(tmp_path, bootstrap=None, force="jars", say=print)


def test_the_lock_excludes_and_is_released(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock", 0, "taken"), pytest.raises(RetryError, match="taken"), file_lock(tmp_path / "lock", 0, "taken"):
        pass
    with file_lock(tmp_path / "lock", 0, "taken"):
        pass


def test_the_configuration_is_loopback_only_and_for_one_node() -> None:
    told = parsed(server_properties(BrokerSettings(), data=Path("/s/broker/data"), port=20001, controller_port=20002))
    assert told["listeners"] == "CLIENT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20002"
    assert told["advertised.listeners"] == "CLIENT://127.0.0.1:20001"
    assert told["log.dirs"] == "/s/broker/data"
    assert told["auto.create.topics.enable"] == "false"
    assert int(told["message.max.bytes"]) > 4 * 1024 * 1024
    factors = [value for key, value in told.items() if key.endswith(("replication.factor", "min.isr", "min.insync.replicas"))]
    assert factors == ["1"] * 7


@pytest.mark.parametrize("path", ["/a,b", "/a:b", "/a\\b", "/a\nb", '/a"b'])
def test_a_path_that_kafka_would_misread_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        server_properties(BrokerSettings(), data=Path(path), port=1, controller_port=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heap_mib_min": 2048},
        {"heap_mib_min": 8, "heap_mib_max": 8},
        {"session_timeout_ms": 499, "heartbeat_ms": 100},
        {"heartbeat_ms": 1000},
    ],
)
def test_settings_validate_themselves(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        BrokerSettings(**wrong)


def test_ports_are_free_different_and_below_the_range_for_clients() -> None:
    range_min = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_ports(20)
    assert len(set(found)) == 20
    assert all(is_free(port) for port in found)
    assert range_min < 17000 or max(found) < range_min


def test_a_listener_takes_a_port_and_gives_it_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert not becomes_free(port, 0)
    assert becomes_free(port, 5)
