"""The whole system on a Kafka that asks for TLS and a password: it works, and the password shows up nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import System, make_source, running, wait_until
from tests.kafka_fixture import fresh_volume_name
from tests.secure_kafka import ADMIN, SecureKafka

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@pytest.fixture(scope="module")
def system(secure_kafka: SecureKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    environment = {**secure_kafka.environment(), "HOSTOFFLOAD_LOG_LEVEL": "debug", "HOSTOFFLOAD_AGENT_NAME": "secured"}
    with running(tmp_path_factory.mktemp("secured"), environment=environment) as one:
        yield one


def test_a_volume_goes_through_and_the_password_is_nowhere(system: System, secure_kafka: SecureKafka) -> None:
    name = fresh_volume_name("tls")
    source = make_source(system.folder / "source.img", 16 << 20, used_bytes=4 << 20)
    said = [system.add(name, source)]
    with Client(said[0]) as client:
        client.write_all([(offset, os.urandom(20_000)) for offset in range(0, 12 << 20, 1 << 19)])
        client.flush()
    system.check_equal(name, source)
    wait_until(lambda: _run(system.environment, "check", name).returncode == 0, "a segment is in the store")
    said += [system.run("status", "--json"), system.run("points", name, "--json"), system.run("config", "check")]
    word = secure_kafka.passwords[ADMIN].encode()
    assert word not in "".join(said).encode()
    assert _processes_of(system), "nothing runs"
    assert [path for path, line in _processes_of(system).items() if word in line] == []
    assert [path for path in system.state.rglob("*") if path.is_file() and word in path.read_bytes()] == []
    assert (system.state / "log" / "cx.log").stat().st_size > 0


def test_a_password_in_the_environment_is_masked(system: System, secure_kafka: SecureKafka) -> None:
    environment = {**system.environment, "HOSTOFFLOAD_KAFKA_SASL_PASSWORD": "word-in-variable"}
    environment.pop("HOSTOFFLOAD_KAFKA_SASL_PASSWORD_FILE")
    done = _run(environment, "config", "check")
    assert done.returncode == 0 and 'sasl_password = "********"' in done.stdout and "word-in-variable" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"SASL_USERNAME": "nobody"}, "error: Kafka refuses the user nobody: wrong name or password"),
        ({"SSL_CA": "/etc/hostname"}, "error: kafka.ssl_ca can't be used"),
        ({"SSL_CA": ""}, "is not trusted: "),
        ({"SECURITY_PROTOCOL": "plaintext"}, "error: kafka.security_protocol is plaintext, so the certificates are not used"),
    ],
)
def test_a_command_that_is_refused_says_why_in_a_sentence(system: System, changed: dict[str, str], sentence: str) -> None:
    done = _run({**system.environment, **{f"HOSTOFFLOAD_KAFKA_{key}": value for key, value in changed.items()}}, "volume", "list")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr and "hint: " in done.stderr and len(done.stderr.splitlines()) == 2, done.stderr


def test_a_service_that_is_refused_ends_and_says_why(system: System, secure_kafka: SecureKafka, tmp_path: Path) -> None:
    word = tmp_path / "wrong"
    word.write_text("not-the-word\n")
    environment = {**system.environment, "HOSTOFFLOAD_KAFKA_SASL_PASSWORD_FILE": str(word), "HOSTOFFLOAD_STATE": str(tmp_path / "state")}
    done = _run(environment, "cx", "run")
    assert done.returncode == 2, done.stderr
    assert "Kafka refuses the user admin" in done.stderr and "not-the-word" not in done.stderr


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hostoffload", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _processes_of(system: System) -> dict[str, bytes]:
    """Return the command lines of everything that runs on this state folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if os.fsencode(system.state) in line:
            found[str(path)] = line
    return found
