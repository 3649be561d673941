"""Several servers under the same load, in turns: each round measures all of them within seconds, the next one in another order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bench.load import Load, run
from bench.results import Comparison, Round


class Server(Protocol):
    """An NBD server that can be measured."""

    name: str
    uri: str

    def cpu_s(self) -> float:
        """Return the processor time that it has used, all its processes together."""

    def settle(self) -> None:
        """Return when nothing of what was written is on its way any more."""


def compare(load: Load, servers: Sequence[Server], size_bytes: int, rounds: int, say: Callable[[str], None]) -> Comparison:
    """Measure the load on every server, `rounds` times; the first server is the yardstick."""
    found: dict[str, list[Round]] = {server.name: [] for server in servers}
    for number in range(rounds):
        first = number % len(servers)
        for server in (*servers[first:], *servers[:first]):
            say(f"{load.name}, round {number + 1} of {rounds}: {server.name}")
            found[server.name].append(measure(load, server, size_bytes))
    return Comparison(load.name, found)


def measure(load: Load, server: Server, size_bytes: int) -> Round:
    """Measure one server once; what it still has on its way counts against its durable rate and its processor time."""
    cpu_s = server.cpu_s()
    measured = run(load, server.uri, size_bytes)
    ended_s = time.monotonic()
    server.settle()
    drain_s = time.monotonic() - ended_s
    return Round(
        writes_per_s=measured.writes_per_s,
        mb_per_s=measured.mb_per_s,
        p50_us=measured.p50_us,
        p99_us=measured.p99_us,
        durable_mb_per_s=measured.bytes / 1e6 / (measured.seconds + drain_s),
        cpu_s_per_gb=(server.cpu_s() - cpu_s) / (measured.bytes / 1e9),
    )
