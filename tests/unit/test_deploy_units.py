"""The systemd units: what they run is there, what they may write is what is written, and systemd itself finds nothing wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hostoffload import layout
from hostoffload.cli import parser
from hostoffload.context import Context
from hostoffload.services import agent_services, command, further_target
from stream.config import LogConfig, load
from stream.errors import ConfigError
from tests.systemd_units import CONFIG, DEPLOY, PROGRAM, RUN, SERVICES, STATE, Unit, services, unit
from tests.tidy.tree import ROOT
from tests.tools import need

DOCS = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitMEMLOCK": "0",
}
EXPOSURE_MAX = 20  # of 100; systemd calls up to 20 OK


@pytest.mark.parametrize("one", services(), ids=lambda one: one.name)
def test_a_service_runs_a_command_that_is_there(one: Unit) -> None:
    program, *arguments = one.command
    assert program == PROGRAM
    options = parser().parse_args(arguments)
    assert callable(options.run)


def test_each_service_of_the_supervisor_has_a_unit_with_at_least_its_time_to_stop() -> None:
    context, config = Context(STATE), load(None, {})
    supervised = {tuple(spec.argv()[-2:]): spec.stop_s for spec in agent_services(context, config)}
    supervised |= {("cx", "run"): 10.0, ("target", "run"): further_target(context, config, "late").stop_s}
    assert command(context, ["cx", "run"])[-2:] == ["cx", "run"]
    told = {tuple(one.command[1:3]): float(one.one("Service", "TimeoutStopSec")) for one in services()}
    assert set(told) == set(supervised)
    assert all(told[name] >= stop_s for name, stop_s in supervised.items())


@pytest.mark.parametrize("one", services(), ids=lambda one: one.name)
def test_a_service_may_write_what_it_uses_and_nothing_else(one: Unit) -> None:
    assert one.environment["HOSTOFFLOAD_STATE"] == str(STATE)
    assert one.environment["HOSTOFFLOAD_CONFIG"] == str(CONFIG)
    assert [Path(path) for path in one.one("Service", "ReadWritePaths").split()] == [STATE, RUN]
    assert {key: one.one("Service", key) for key in HARDENED} == HARDENED


@pytest.mark.parametrize("one", services(), ids=lambda one: one.name)
def test_a_service_comes_back_for_ever_but_not_with_a_config_that_it_refuses(one: Unit) -> None:
    assert one.one("Service", "Restart") == "always"
    assert one.one("Unit", "StartLimitIntervalSec") == "0"
    assert one.one("Service", "RestartPreventExitStatus") == str(ConfigError.exit_code)


def test_the_ring_outlives_the_agent_s_processes() -> None:
    for name in ("hostoffload-capture", "hostoffload-publisher"):
        one = unit(f"{name}.service")
        assert one.one("Service", "RemoveIPC") == "no" and not one.all("Service", "DynamicUser")
        assert one.one("Service", "KillMode") == "mixed"
    assert not unit("hostoffload-publisher.service").all("Service", "PrivateIPC")
    capture = unit("hostoffload-capture.service")
    assert "hostoffload-publisher.service" in capture.one("Unit", "After").split(), "capture stops first, and drains into the publisher"
    assert (DEPLOY / "sysusers.d" / "hostoffload.conf").read_text(encoding="utf-8").splitlines()[-1].startswith("u hostoffload ")


def test_the_socket_is_the_one_that_clients_are_told(tmp_path: Path) -> None:
    one = unit("hostoffload-capture.socket")
    with tempfile.TemporaryDirectory(prefix="ho-run-") as run:
        (tmp_path / "run").symlink_to(run)
        told = layout.nbd_socket(tmp_path)
    assert one.one("Socket", "ListenStream") == str(RUN / told.relative_to(run))
    assert one.one("Socket", "SocketMode") == "0600"
    assert "hostoffload-capture.socket" in unit("hostoffload-capture.service").one("Unit", "Requires").split()


def test_all_parts_speak_of_one_user_and_the_same_folders() -> None:
    tmpfiles = (DEPLOY / "tmpfiles.d" / "hostoffload.conf").read_text(encoding="utf-8")
    lines = {tuple(line.split()) for line in tmpfiles.splitlines() if not line.startswith("#")}
    assert {("d", str(folder), "0700", "hostoffload", "hostoffload", "-") for folder in (STATE, RUN)} <= lines
    assert ("L", str(STATE / "run"), "-", "-", "-", "-", str(RUN)) in lines
    assert ("L", str(STATE / "config.toml"), "-", "-", "-", "-", str(CONFIG)) in lines
    assert {(one.one("Service", "User"), one.one("Service", "Group")) for one in services()} == {("hostoffload", "hostoffload")}


def test_the_config_file_is_one_and_changes_little() -> None:
    config = load(DEPLOY / "etc" / "hostoffload.toml", {})
    assert config.log == LogConfig(format="json")
    assert config.kafka.bootstrap and config.agent == load(None, {}).agent


def test_every_setting_of_a_service_is_explained() -> None:
    told = {key for one in services() for key in one.keys("Service")} | unit("hostoffload-capture.socket").keys("Socket")
    silent = sorted(key for key in told if f"`{key}" not in DOCS)
    assert silent == []


def test_every_unit_is_installed_and_started_by_the_docs() -> None:
    for path in sorted(DEPLOY.rglob("*.*")):
        if path.is_file():
            assert path.name in DOCS or f"{path.parent.name}/*" in DOCS, path.name
    assert all(name in DOCS for name in SERVICES)


@pytest.fixture
def runnable(tmp_path: Path) -> list[str]:
    """The units with a program that is there, for systemd to look at."""
    need("systemd-analyze")
    for path in (DEPLOY / "systemd").iterdir():
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8").replace(PROGRAM, sys.executable), encoding="utf-8")
    return [str(path) for path in sorted(tmp_path.iterdir())]


def test_systemd_finds_nothing_wrong(runnable: list[str]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *runnable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_calls_them_hardened(runnable: list[str]) -> None:
    files = [path for path in runnable if path.endswith(".service")]
    arguments = ["--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}"]
    done = subprocess.run(["systemd-analyze", "security", *arguments, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_user_and_folders_are_made_by_systemd_s_own_tools(tmp_path: Path) -> None:
    need("systemd-sysusers", "systemd-tmpfiles", root=True)
    for kind in ("sysusers.d", "tmpfiles.d"):
        folder = tmp_path / "usr" / "lib" / kind
        folder.mkdir(parents=True)
        (folder / "hostoffload.conf").write_bytes((DEPLOY / kind / "hostoffload.conf").read_bytes())
    (tmp_path / "etc").mkdir()
    for words in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = subprocess.run([*words, f"--root={tmp_path}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (user,) = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text(encoding="ascii").splitlines() if "hostoffload" in line]
    assert 0 < int(user[2]) < 1000, "no system user: logind would remove its shared memory"
    for folder in (STATE, RUN):
        found = (tmp_path / folder.relative_to("/")).stat()
        assert found.st_mode & 0o777 == 0o700 and found.st_uid == int(user[2])
    assert os.readlink(tmp_path / "var" / "lib" / "hostoffload" / "run") == str(RUN)
