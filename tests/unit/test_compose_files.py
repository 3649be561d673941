"""The compose files without an engine: what they name exists, and nothing in them is secret, privileged or unwatched."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.tidy.tree import ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
THREE = yaml.safe_load((DOCKER / "compose.three.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "hostoffload/hostoffload" in one["image"]}
WATCH = {"prometheus", "grafana"}


def test_only_watching_waits_for_its_profile() -> None:
    assert {name for name, one in SERVICES.items() if "profiles" in one} == WATCH
    assert all(SERVICES[name]["profiles"] == ["watch"] for name in WATCH)


def test_one_variable_names_another_kafka() -> None:
    brokers = [SERVICES["broker"], *(one for name, one in THREE["services"].items() if name.startswith("broker-"))]
    assert len(brokers) == 3 and {one["image"] for one in brokers} == {"${HOSTOFFLOAD_BROKER_IMAGE:-apache/kafka:4.3.1}"}


def test_our_services_have_no_privilege_and_a_name_that_stays() -> None:
    for name, one in OURS.items():
        assert one["read_only"] and one["cap_drop"] == ["ALL"] and "privileged" not in one, name
        assert name == "memory" or one["hostname"] == name


def test_what_is_scraped_is_what_runs() -> None:
    told = yaml.safe_load((DOCKER / "prometheus" / "compose.yaml").read_text(encoding="utf-8"))
    (job,) = told["scrape_configs"]
    assert job["job_name"] == "hostoffload", "the alert rules ask for it"
    assert {one for group in job["static_configs"] for one in group["targets"]} == {f"{name}:9640" for name in OURS.keys() - {"memory"}}
    assert all((DOCKER / "prometheus" / rules).is_file() for rules in told["rule_files"])


def test_the_dashboard_is_provisioned_where_it_is_mounted() -> None:
    mounts = dict(one.split(":")[:2] for one in SERVICES["grafana"]["volumes"])
    provisioning = DOCKER / "grafana" / "provisioning"
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "hostoffload.yaml").read_text(encoding="utf-8"))["providers"]
    assert mounts["./grafana/hostoffload.json"].startswith(provider["options"]["path"] + "/")
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://prometheus:9090"


def test_ports_are_this_machine_s_alone_and_volumes_are_declared() -> None:
    for one in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", ()))
        for mount in one.get("volumes", ()):
            name = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", mount).split(":")[0]
            assert name in COMPOSE["volumes"] or (DOCKER / name).exists(), mount


def test_three_brokers_are_asked_for_wherever_messages_are_made() -> None:
    for name in OURS.keys() - {"memory"}:
        told = THREE["services"][name]["environment"]
        assert told["HOSTOFFLOAD_KAFKA_REPLICATION_FACTOR"] == 3 and told["HOSTOFFLOAD_KAFKA_MIN_INSYNC_REPLICAS"] == 2
        assert len(told["HOSTOFFLOAD_KAFKA_BOOTSTRAP"].split(",")) == 3
