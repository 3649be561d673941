"""A Kafka of the session that trusts nobody: TLS, SASL and an authorizer, with users and certificates made here.

It has three listeners: SASL_SSL for users with passwords (SCRAM and PLAIN), SSL that asks for a client's certificate, and SASL_PLAINTEXT.
The user `admin` may do everything, the others nothing until an ACL says so. Needs Java and Kafka's jars, as `tests.kafka_fixture` has them.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hostoffload.broker.archive import ClassArchive
from hostoffload.broker.jars import KafkaJars, cache_dir
from hostoffload.broker.java_broker import find_java, missing
from hostoffload.broker.ports import free_ports
from hostoffload.broker.settings import BrokerSettings, new_cluster_id, server_properties
from stream.access import check_access
from stream.config import KafkaConfig
from stream.errors import HostoffloadError
from tests.certificates import Authority
from tests.tools import lacking

ADMIN = "admin"
USERS = (ADMIN, "agent", "cx", "target", "operator", "stranger")
START_S = 90
STOP_S = 30


@dataclass(frozen=True, slots=True)
class SecureKafka:
    """The broker's addresses, its authority, and the passwords of `USERS`."""

    folder: Path
    authority: Authority
    sasl_ssl: str
    mutual: str
    sasl_plain: str
    passwords: dict[str, str]

    def client(self, user: str = ADMIN, **changed: object) -> KafkaConfig:
        """Return the config of a user on the SASL_SSL listener."""
        config = KafkaConfig(
            bootstrap=self.sasl_ssl,
            security_protocol="sasl_ssl",
            ssl_ca=str(self.authority.ca),
            sasl_username=user,
            sasl_password=self.passwords[user],
        )
        return replace(config, **changed)

    def environment(self, user: str = ADMIN) -> dict[str, str]:
        """Return the variables that make a service this user's, its password in a file."""
        word = self.folder / f"{user}.password"
        word.write_text(f"{self.passwords[user]}\n")
        return {
            "HOSTOFFLOAD_KAFKA_BOOTSTRAP": self.sasl_ssl,
            "HOSTOFFLOAD_KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
            "HOSTOFFLOAD_KAFKA_SSL_CA": str(self.authority.ca),
            "HOSTOFFLOAD_KAFKA_SASL_USERNAME": user,
            "HOSTOFFLOAD_KAFKA_SASL_PASSWORD_FILE": str(word),
        }


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """One secured broker for the session."""
    jars = KafkaJars(cache_dir())
    lacks = missing(jars)
    if lacks is not None:
        lacking(f"no Kafka for the tests: {lacks}")
    jars.ensure(print, START_S)
    folder = tmp_path_factory.mktemp("secure")
    kafka, ports = _plan(folder)
    properties = folder / "server.properties"
    properties.write_text(_properties(kafka, ports, folder))
    properties.chmod(0o600)
    java = find_java()
    command = [java, *ClassArchive(jars, java).options(), "-Xmx512m", "-XX:+UseG1GC", "-cp", jars.class_path]
    scram = [f"--add-scram=SCRAM-SHA-{bits}=[name={user},password={kafka.passwords[user]}]" for user in USERS for bits in (256, 512)]
    form = ["kafka.tools.StorageTool", "format", "-t", new_cluster_id(), "-c", str(properties), *scram]
    subprocess.run([*command, *form], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=START_S)
    process = _start([*command, "kafka.Kafka", str(properties)], folder)
    try:
        _wait(kafka, process, folder)
        yield kafka
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
        shutil.rmtree(folder, ignore_errors=True)


def _plan(folder: Path) -> tuple[SecureKafka, list[int]]:
    ports = free_ports(4)
    places = [f"127.0.0.1:{port}" for port in ports[:3]]
    words = {user: f"secret-of-{user}-7Xq" for user in USERS}
    return SecureKafka(folder, Authority(folder), *places, words), ports


def _properties(kafka: SecureKafka, ports: Sequence[int], folder: Path) -> str:
    certificate, key = kafka.authority.sign("broker", ("127.0.0.1",))
    store = folder / "broker.pem"
    store.write_bytes(key.read_bytes() + certificate.read_bytes())
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in zip(("SECURE", "MUTUAL", "OPEN"), ports, strict=False))
    word = kafka.passwords[ADMIN]
    scram = f'org.apache.kafka.common.security.scram.ScramLoginModule required username="{ADMIN}" password="{word}";'
    plain_users = " ".join(f'user_{user}="{password}"' for user, password in kafka.passwords.items())
    plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required {plain_users};"
    lines = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{ports[3]}",
        "advertised.listeners": listeners,
        "inter.broker.listener.name": "SECURE",
        "listener.security.protocol.map": "SECURE:SASL_SSL,MUTUAL:SSL,OPEN:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": store,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": kafka.authority.ca,
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
        "listener.name.open.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{ADMIN};User:ANONYMOUS;User:CN=admin",  # ANONYMOUS: the node itself, at its controller's plain listener
        "num.io.threads": 2,
    }
    for listener in ("secure", "open"):
        for bits in (256, 512):
            lines[f"listener.name.{listener}.scram-sha-{bits}.sasl.jaas.config"] = scram
    lines["listener.name.secure.plain.sasl.jaas.config"] = plain
    told = server_properties(BrokerSettings(), data=folder / "data", port=ports[0], controller_port=ports[3])
    kept = [line for line in told.splitlines() if line.partition("=")[0] not in lines]
    return "\n".join([*kept, *(f"{key}={value}" for key, value in lines.items())]) + "\n"


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig", "KILL"] if setpriv is not None else []
    with (folder / "broker.out").open("wb") as out:
        return subprocess.Popen([*bound, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder)


def _wait(kafka: SecureKafka, process: subprocess.Popen[bytes], folder: Path) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            return check_access(kafka.client())
        except HostoffloadError as error:
            if process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"the broker does not start: {(folder / 'broker.out').read_text()[-2000:]}") from error
            time.sleep(0.2)
