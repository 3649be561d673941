"""Health: whether a service is stuck, and whether it can do its work. Pure but for the sockets that `readiness` asks.

*Healthy* asks for a restart when it is not: a process lives and has not reported for `STUCK_S_MIN`. What a restart does not help is no
matter of it: a broker that is away, a process that the supervisor starts again by itself. *Ready* means: each process of the service
has reported since it started (so it has found its broker), and at the agent clients can connect.
"""

from __future__ import annotations

import time

from hostoffload import readiness
from hostoffload.local_state import LocalState
from hostoffload.metrics.scope import Scope, age_s, is_fresh

STUCK_S_MIN = 60.0


def ill(scope: Scope, local: LocalState, now_ns: int) -> list[str]:
    """Return what is stuck, in words; empty if the service is healthy."""
    told = [
        f"{one.kind} {one.instance} has not reported for {age:.0f} s"
        for one in scope.reports(local)
        if (age := age_s(one, now_ns)) >= STUCK_S_MIN
    ]
    if scope.is_supervised and local.supervisor is None:
        told.append("the supervisor does not run")
    return told


def unready(scope: Scope, local: LocalState, now_ns: int) -> list[str]:
    """Return what is lacking, in words; empty if the service is ready."""
    if scope.is_supervised:
        lacking = [f"{name} is not ready" for name in readiness.lacking(scope.state_dir, local)]
    else:
        lacking = [] if scope.reports(local) else [f"{scope.name} has not reported yet: it waits for Kafka"]
    silent = [f"{one.kind} {one.instance} is silent" for one in scope.reports(local) if not is_fresh(one, now_ns)]
    return lacking or silent


def healthz(scope: Scope) -> list[str]:
    """Return what is stuck now."""
    return ill(scope, scope.read(), time.time_ns())


def readyz(scope: Scope) -> list[str]:
    """Return what is lacking now."""
    return unready(scope, scope.read(), time.time_ns())
