"""Bookmarks and groups by the command line of a running system: what is printed, what is refused, a frozen application."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import System, make_source, running
from tests.kafka_fixture import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
MIB = 1 << 20


def refused(system: System, *arguments: str) -> tuple[int, str]:
    """Run a command that is refused; return its exit code and what it said."""
    command = [sys.executable, "-m", "hostoffload", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=system.environment)
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_bookmarks_of_a_volume_and_a_group(kafka: Kafka, tmp_path: Path) -> None:
    a, b = sorted((kafka.fresh_volume_name("a"), kafka.fresh_volume_name("b")))
    group = kafka.fresh_volume_name("g")
    with running(tmp_path / "system", bootstrap=kafka.bootstrap) as system:
        for name in (a, b):
            uri = system.add(name, make_source(system.folder / f"{name}.img", 8 * MIB))
            with Client(uri) as client:
                client.write(0, os.urandom(65536))
            system.wait_in_sync(name)
        before = system.status(a)["position"]["captured"]
        told = json.loads(system.run("bookmark", a, "before upgrade", "--json"))
        assert told["position"] > before and told["positions"] == {a: told["position"]}
        assert 0 <= told["stopped_ms"] <= 300
        assert refused(system, "bookmark", a, "before upgrade")[0] == 2
        source = system.folder / f"{a}.img"
        at_bookmark = source.read_bytes()
        with Client(system.run("volume", "add", a, "--source", str(source), "--replica", str(system.replica(source)))) as client:
            client.write(0, os.urandom(65536))
        system.run("restore", a, "--at", "before upgrade", "--to", tmp_path / "restored.img")
        assert (tmp_path / "restored.img").read_bytes() == at_bookmark != source.read_bytes()

        system.run("group", "create", group, b, a)
        (listed,) = json.loads(system.run("group", "list", "--json"))["groups"]
        assert (listed["group"], listed["volumes"]) == (group, [a, b])
        log = tmp_path / "log"
        frozen = ("--freeze", f"echo frozen >> {log}", "--thaw", f"echo thawed >> {log}")
        told = json.loads(system.run("bookmark", group, "nightly", *frozen, "--json"))
        assert set(told["positions"]) == {a, b} and told["group"] == group and told["frozen_ms"] > 0
        assert log.read_text().split() == ["frozen", "thawed"]
        code, said = refused(system, "bookmark", b, "nightly")
        assert code == 2 and f"Volume {b} has a bookmark 'nightly' already, at {told['positions'][b]}" in said

        system.run("volume", "pause", b)
        code, said = refused(system, "bookmark", group, "later", *frozen)
        assert code == 3 and f"{b} is paused" in said
        assert log.read_text().split() == ["frozen", "thawed"], "what can be known before is refused before"
        code, said = refused(system, "group", "create", a, b)
        assert code == 2 and "There is a volume" in said
        source, replica = str(system.folder / f"{a}.img"), str(tmp_path / "replica.img")
        assert refused(system, "volume", "add", group, "--source", source, "--replica", replica)[0] == 2
        system.run("group", "remove", group)
        assert json.loads(system.run("group", "list", "--json")) == {"groups": []}
        for name in (a, b):
            system.run("volume", "remove", name)
