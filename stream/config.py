"""The configuration: one TOML file, overridden by `HOSTOFFLOAD_<SECTION>_<KEY>`; an unknown key is an error.

Every key is declared once, in the dataclasses below, with its unit in its name and its meaning beside it; `docs/operating.md`
lists the same keys and a test compares them. Settings that carry a guarantee are not here: they are constants of the code.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stream.errors import ConfigError

ENVIRONMENT_PREFIX = "HOSTOFFLOAD_"
BUFFER_BYTES_MIN = 96 << 20
_MASK = "********"


def key(default: Any, meaning: str, *, minimum: float | None = None, choices: tuple[str, ...] = (), secret: bool = False) -> Any:
    """Declare one key: its default, its meaning, and what it may be."""
    told = {"meaning": meaning, "minimum": minimum, "choices": choices, "secret": secret}
    return field(default=default, repr=not secret, metadata=told)


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    bootstrap: str = key("", "host:port of one or more brokers, comma separated; empty: the local broker")
    replication_factor: int = key(1, "replicas of each topic", minimum=1)
    min_insync_replicas: int = key(1, "replicas that must have a message before it counts as durable", minimum=1)
    retention_ms: int = key(86_400_000, "how long Kafka keeps the data topics, in ms; -1 for ever", minimum=-1)
    retention_bytes: int = key(-1, "how many bytes Kafka keeps of each data topic; -1 without a limit", minimum=-1)
    security_protocol: str = key(
        "plaintext", "how clients talk to the broker", choices=("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
    )
    ssl_ca: str = key("", "PEM file of the authorities that may sign the broker's certificate; empty: those of the system")
    ssl_certificate: str = key("", "PEM file of this client's own certificate and its chain; empty: it shows none")
    ssl_key: str = key("", "PEM file of the private key, without a passphrase, of that certificate")
    sasl_mechanism: str = key("SCRAM-SHA-512", "how the password is proved", choices=("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"))
    sasl_username: str = key("", "user name at the broker")
    sasl_password: str = key("", "the password itself, best by its environment variable; one of three ways", secret=True)
    sasl_password_file: str = key("", "file whose first line is the password; read again for each new connection's client")
    sasl_password_command: str = key("", "shell line that prints the password; asked again after a minute")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    name: str = key("", "name of this agent in the stream; empty: the host's name")
    buffer_bytes_max: int = key(256 << 20, "memory for captured writes, for all volumes together", minimum=BUFFER_BYTES_MIN)
    ring_dir: str = key("/dev/shm", "folder of the shared memory, in memory")
    flush_policy: str = key("local", "what a flush of a new volume waits for", choices=("local", "stream"))
    overflow: str = key(
        "bitmap", "what a full buffer does: give order up and track changes, or hold writes", choices=("bitmap", "throttle")
    )
    throttle_s_max: float = key(30.0, "how long a write is held by `throttle`, in s; then order is given up too", minimum=0)
    flush_in_gap: str = key("local", "a flush under `stream` while order is lost: source alone, or EIO", choices=("local", "fail"))
    verify_bytes_per_s: int = key(1 << 20, "speed at which each volume is verified in the background; 0: only when asked", minimum=0)
    sync_bytes_per_s_max: int = key(0, "speed limit of the first copy and of resync, for each volume; 0 without a limit", minimum=0)
    listen: str = key("", "host:port of the NBD server; empty: only the unix socket in the state folder")
    tls_certificate: str = key("", "PEM file of the certificate of the NBD server over TCP; if set, clients must use TLS and show one")
    tls_key: str = key("", "PEM file of its private key, without a passphrase")
    tls_client_ca: str = key("", "PEM file of the authorities whose certificates clients must show")
    connections_max: int = key(64, "NBD connections served at once", minimum=1)
    heartbeat_s: float = key(1.0, "a mark is sent when nothing else was for this long", minimum=0.05)
    compare_wait_s: float = key(
        20.0,
        "how long a target may take to answer with digests of 256 MiB, in seconds; then everything is sent; 0 compares nothing",
        minimum=0,
    )


@dataclass(frozen=True, slots=True)
class CxConfig:
    worker: str = key("", "name of this worker; empty: host's name and process id")
    codec: str = key("snappy", "compression of the journal", choices=("none", "snappy", "zstd", "lz4"))
    store_url: str = key("", "object store of the segments: a path or a URL; empty: store/ in the state folder")
    segment_bytes_max: int = key(32 << 20, "a segment is sealed at this size", minimum=1 << 20)
    segment_age_s_max: float = key(5.0, "a segment is sealed at this age", minimum=0.1)
    pipeline_bytes_max: int = key(128 << 20, "messages that a worker holds at once, for all volumes together", minimum=16 << 20)


@dataclass(frozen=True, slots=True)
class TargetConfig:
    name: str = key("target", "name of this target in the stream")
    also: str = key("", "names of further targets that `up` runs here, comma separated: each keeps replicas of its own, at its own pace")
    apply_window_bytes_max: int = key(16 << 20, "bytes applied before one fdatasync and checkpoint", minimum=1 << 20)
    during_resync: str = key("hold", "keep the replica consistent during a resync, or follow it", choices=("hold", "follow"))


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    retention: str = key(
        "any write 24 h, 5 min for 7 d, 1 h for 30 d, 1 d for 365 d", "how long every write, and each coarser step, can be gone back to"
    )
    bookmarks_d: float = key(365.0, "how long bookmarks can be gone back to, in days; -1 for ever", minimum=-1)
    bytes_max: int = key(0, "bytes of a volume's history; beyond it the finest and oldest goes before its time; 0: no limit", minimum=0)
    codec: str = key("zstd", "compression of folds", choices=("none", "snappy", "zstd", "lz4"))
    every_s: float = key(20.0, "how often a CX worker looks what is to be folded or deleted, in s", minimum=0.1)
    scratch_dir: str = key("", "folder for what is being folded, on a disk; empty: the state folder")
    encryption_key_file: str = key("", "file of keys, one a line in base64: the first seals what is stored from now on, all are read by")
    encryption_key_command: str = key("", "shell line that prints those keys, in place of a file")
    encryption_required: bool = key(False, "refuse a store that has objects without a seal: for when the last of them has expired")


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str = key("info", "least important line written", choices=("debug", "info", "warning", "error"))
    format: str = key("text", "form of a line", choices=("text", "json"))


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    up: str = key("", "host:port where `up` serves metrics and health of all that it runs; empty: nowhere")
    agent: str = key("", "the same for `agent run`: capture and publisher")
    cx: str = key("", "the same for `cx run`: one worker")
    target: str = key("", "the same for `target run`: one target")


@dataclass(frozen=True, slots=True)
class Config:
    """What is in force; made by `load`, never changed afterwards."""

    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    cx: CxConfig = field(default_factory=CxConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)


SECTIONS: Mapping[str, type] = MappingProxyType(
    {
        "kafka": KafkaConfig,
        "agent": AgentConfig,
        "cx": CxConfig,
        "target": TargetConfig,
        "history": HistoryConfig,
        "metrics": MetricsConfig,
        "log": LogConfig,
    }
)
_OTHER_VARIABLES = frozenset(f"{ENVIRONMENT_PREFIX}{name}" for name in ("STATE", "CONFIG", "CACHE", "IMAGE", "BROKER_IMAGE"))


def load(path: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file, then the environment over it. Raises ConfigError that names the key, the value and what would do."""
    told: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    if path is not None:
        for section, keys in _read(path).items():
            if section not in SECTIONS or not isinstance(keys, dict):
                raise ConfigError(f"{path}: unknown section [{section}]", hint=f"Sections are: {', '.join(SECTIONS)}.")
            told[section].update({name: (value, str(path)) for name, value in keys.items()})
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in _OTHER_VARIABLES:
            section, _, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
            if section not in SECTIONS:
                raise ConfigError(f"{variable} names no section", hint=f"Use HOSTOFFLOAD_<SECTION>_<KEY>; sections: {', '.join(SECTIONS)}.")
            told[section][name] = (text, variable)
    return Config(**{name: _section(name, told[name]) for name in SECTIONS})


def host_name() -> str:
    """Return this host's name in the form that names of agents and workers have."""
    return socket.gethostname().split(".")[0].lower() or "host"


def describe(config: Config) -> dict[str, dict[str, Any]]:
    """Return what is in force, secrets masked."""
    shown: dict[str, dict[str, Any]] = {}
    for section in SECTIONS:
        values = getattr(config, section)
        shown[section] = {
            one.name: _MASK if one.metadata["secret"] and getattr(values, one.name) else getattr(values, one.name) for one in fields(values)
        }
    return shown


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}", hint="Name the config by --config or HOSTOFFLOAD_CONFIG.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="See the config table in docs/operating.md.") from error


def _section(section: str, told: dict[str, tuple[Any, str]]) -> Any:
    declared = {one.name: one for one in fields(SECTIONS[section])}
    values = {}
    for name, (value, source) in told.items():
        if name not in declared:
            raise ConfigError(f"{source}: unknown key {section}.{name}", hint=f"Keys of [{section}]: {', '.join(declared)}.")
        values[name] = _value(declared[name], section, value, source)
    return SECTIONS[section](**values)


def _value(one: Any, section: str, value: Any, source: str) -> Any:
    expected = type(one.default)
    shown = _MASK if one.metadata["secret"] else repr(value)
    try:
        if expected is bool and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        elif expected in (int, float) and not isinstance(value, bool):
            value = expected(value)
        if not isinstance(value, expected):
            raise ValueError(value)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{source}: {section}.{one.name} must be a {expected.__name__}, not {shown}", hint=one.metadata["meaning"]
        ) from error
    minimum, choices = one.metadata["minimum"], one.metadata["choices"]
    if minimum is not None and value < minimum:
        raise ConfigError(f"{source}: {section}.{one.name} is {value}, the least is {minimum}", hint=one.metadata["meaning"])
    if choices and value not in choices:
        raise ConfigError(f"{source}: {section}.{one.name} is {value!r}", hint=f"Use one of: {', '.join(choices)}.")
    return value
