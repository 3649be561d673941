"""TCP ports of 127.0.0.1 for a local broker: found once, kept for life.

Ports come from below the kernel's range for outgoing connections: one from inside it could belong to somebody's client when the
broker starts again.
"""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

from stream.errors import ConfigError

PORT_MIN = 15000
EPHEMERAL_MIN_DEFAULT = 32768
TRIES_MAX = 500
RELEASE_POLL_S = 0.02


def is_free(port: int) -> bool:
    """Tell whether nobody listens on this port of 127.0.0.1 (connections on their way out don't count)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
        return True


def becomes_free(port: int, deadline_s: float) -> bool:
    """Tell whether nobody listens on this port, waiting up to `deadline_s` for somebody who is about to end."""
    until = time.monotonic() + deadline_s
    while not is_free(port):
        if time.monotonic() >= until:
            return False
        time.sleep(RELEASE_POLL_S)
    return True


def free_ports(count: int, *, seed: int | None = None) -> list[int]:
    """Return `count` different free ports, at random so that two brokers made at once don't meet.

    Raises ConfigError if there are none.
    """
    ephemeral_min = _ephemeral_min()
    port_max = ephemeral_min - 1 if ephemeral_min > PORT_MIN + 1000 else 65000
    dice = random.Random(seed)
    found: list[int] = []
    for _ in range(TRIES_MAX):
        port = dice.randint(PORT_MIN, port_max)
        if port not in found and is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise ConfigError("No free TCP port was found for the broker.", hint="look at `ss -ltn`", tries=TRIES_MAX)


def _ephemeral_min() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return EPHEMERAL_MIN_DEFAULT
