"""What a seed chooses before anything runs: the machine room, its settings, its load, and which faults may happen."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from stream.config import AgentConfig, Config, CxConfig, KafkaConfig, TargetConfig

MIB = 1 << 20
CHUNK = 256 << 10

FAULTS = {
    "kill_capture": 5,
    "kill_publisher": 5,
    "kill_cx": 4,
    "kill_target": 5,
    "kill_at_a_line": 4,
    "stop_capture": 2,
    "stop_publisher": 1,
    "stop_cx": 1,
    "stop_target": 2,
    "freeze": 3,
    "broker_down": 3,
    "outage": 1,
    "broker_loses": 1,
    "cut_off": 3,
    "slow_network": 2,
    "break_producers": 2,
    "rebalance": 2,
    "slow_disk": 2,
    "source_error": 3,
    "source_full": 2,
    "replica_error": 2,
    "state_full": 1,
    "store_fails": 2,
    "host_power": 3,
    "target_power": 3,
    "clock_jump": 1,
    "retention_writes": 1,
    "retention_journal": 1,
    "writes_anew": 1,
    "journal_anew": 1,
    "ask_resync": 1,
    "ask_verify": 2,
    "host_reboot": 2,
    "meddle": 1,
    "pause": 1,
}
"""The faults by name, and how often each is chosen among those that the seed allows."""


@dataclass(frozen=True, slots=True)
class VolumePlan:
    """One volume: its size, what stands on it at first, and how its application uses it."""

    name: str
    size_bytes: int
    filled: float
    flush_policy: str
    codec: str
    punches: bool
    threads: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    volumes: tuple[VolumePlan, ...]
    config: Config
    load_s: float
    faults: dict[str, int]
    fault_every_s: float
    operations_max: int
    write_sectors: tuple[int, ...]
    pause_s: float
    mixed: dict[str, float]
    switch_every: float
    hot_share: float
    cx_workers: int = 2
    passed_over: float = 0.0
    clear_after_s: float = 30.0


def plan_of(seed: int, *, emphasis: tuple[str, ...] = ()) -> Plan:
    """Return the plan of a seed; `emphasis` names faults that are allowed and frequent whatever the seed says."""
    rng = random.Random(seed * 7919 + 17)
    volumes = tuple(_volume(rng, index) for index in range(1 if rng.random() < 0.7 and "ask_bookmark" not in emphasis else 2))
    share = rng.choice((0.15, 0.3, 0.5, 1.0))
    faults = {name: weight for name, weight in FAULTS.items() if rng.random() < share}
    if not emphasis and random.Random(f"{seed}/bookmark").random() < 0.5:  # apart: the other choices of a seed stay what they were
        faults["ask_bookmark"] = 4
    faults |= {name: 12 for name in emphasis}
    calm = not emphasis and rng.random() < 0.04
    pressed = rng.random() < 0.35
    if pressed and faults:
        faults |= {"outage": 4, "slow_network": 8}
    return Plan(
        seed=seed,
        volumes=volumes,
        config=_config(rng, len(volumes)),
        load_s=rng.uniform(2.5, 7.0),
        faults={} if calm else faults,
        fault_every_s=rng.choice((0.3, 0.6, 1.2)),
        operations_max=rng.randint(60, 220) * (2 if pressed else 1),
        write_sectors=rng.choice(((64, 600), (1, 1300))) if pressed else rng.choice(((1, 16), (1, 64), (8, 8), (1, 600), (64, 1300))),
        pause_s=rng.choice((0.005, 0.02)) if pressed else rng.choice((0.0, 0.005, 0.02, 0.08)),
        mixed={
            "write": 1.0,
            "zero": rng.choice((0.0, 0.1, 0.3)),
            "trim": rng.choice((0.0, 0.1, 0.3)),
            "flush": rng.choice((0.02, 0.1, 0.3)),
            "fua": rng.choice((0.0, 0.1)),
            "read": rng.choice((0.0, 0.1)),
        },
        switch_every=rng.choice((3.0, 10.0, 30.0)),
        hot_share=rng.choice((0.0, 0.5, 0.9)),
        cx_workers=rng.choice((1, 2, 2)),
        passed_over=rng.choice((0.0, 0.0, 0.05)),
        clear_after_s=rng.choice((0.5, 1.0, 30.0)),
    )


def _volume(rng: random.Random, index: int) -> VolumePlan:
    return VolumePlan(
        name=f"v{index + 1}",
        size_bytes=rng.choice((1, 1, 2, 3, 6)) * MIB + rng.choice((0, 0, 4096 * 5)),
        filled=rng.choice((0.0, 0.3, 1.0)),
        flush_policy=rng.choice(("local", "stream")),
        codec=rng.choice(("snappy", "none", "lz4", "zstd")),
        punches=rng.random() < 0.8,
        threads=rng.randint(1, 3),
    )


def _config(rng: random.Random, volumes: int) -> Config:
    chunks = rng.randint(18, 36) + 6 * volumes
    return Config(
        kafka=replace(KafkaConfig(bootstrap="simulated:9092"), retention_ms=rng.choice((86_400_000, 86_400_000, 20_000))),
        agent=replace(
            AgentConfig(name="host"),
            buffer_bytes_max=chunks * CHUNK * 8 // 7 + CHUNK,
            heartbeat_s=rng.choice((0.5, 1.0, 3.0)),
            sync_bytes_per_s_max=rng.choice((0, 0, 4 * MIB)),
            overflow=rng.choice(("bitmap", "bitmap", "throttle")),
            throttle_s_max=rng.choice((0.1, 1.0, 30.0)),
            flush_in_gap=rng.choice(("local", "local", "fail")),
            verify_bytes_per_s=rng.choice((0, MIB, 8 * MIB)),
            compare_wait_s=rng.choice((0.0, 1.0, 5.0)),
        ),
        cx=replace(CxConfig(worker="w"), segment_bytes_max=rng.choice((64 << 10, 1 * MIB)), segment_age_s_max=rng.choice((0.2, 1.0))),
        target=replace(
            TargetConfig(), apply_window_bytes_max=rng.choice((64 << 10, 1 * MIB)), during_resync=rng.choice(("hold", "hold", "follow"))
        ),
    )
