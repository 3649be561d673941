"""Which kind of broker to use, and why. Pure: what is installed is asked through `Tools`, one kind at a time and only if it matters.

A broker that was named wins; one that runs is kept; else what this folder used before; else Docker if it works; else the jars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stream.errors import ConfigError

LOCAL_KINDS = ("docker", "jars")
INSTALL_HINT = (
    "install Java and Maven (Debian: apt-get install openjdk-17-jre-headless maven) or Docker (Debian: apt-get install docker.io), "
    "or name a Kafka with --bootstrap HOST:PORT"
)


class Tools(Protocol):
    """What this machine offers."""

    def lacks(self, kind: str) -> str | None:
        """Say in a few words what `docker` or `jars` lacks here, or None if it works. May pull an image."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for, and what the state folder knows.

    `bootstrap` was named by an option, `environment` by KAFKA_BOOTSTRAP, which may have been set for something else. `recorded` is the
    kind that the folder used last, `running` the local address that a broker of this folder serves right now.
    """

    bootstrap: str | None = None
    environment: str | None = None
    force: str | None = None
    recorded: str | None = None
    recorded_bootstrap: str | None = None
    running: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision: `bootstrap` is set for an external broker only."""

    kind: str
    why: str
    bootstrap: str | None = None


def plan(wish: Wish, tools: Tools, say: Callable[[str], None]) -> Plan:
    """Decide; tell `say` when a kind is passed over. Raises ConfigError for a contradiction, and when nothing works."""
    if wish.force is not None and wish.force not in LOCAL_KINDS:
        raise ConfigError("The kind of broker must be docker or jars.", got=wish.force)
    if wish.force is not None and wish.bootstrap is not None:
        raise ConfigError("A broker is either named or started here, not both.", hint="leave out --bootstrap or --broker")
    if wish.running is not None:
        return _keep_running(wish, say)
    named = wish.bootstrap or (wish.environment if wish.force is None else None)
    if named is not None:
        return Plan("external", "it was named", named)
    if wish.force is not None:
        lacks = tools.lacks(wish.force)
        if lacks is not None:
            raise ConfigError(f"The {wish.force} broker can't be used: {lacks}.", hint=INSTALL_HINT)
        return Plan(wish.force, "it was asked for")
    if wish.recorded == "external":
        return Plan("external", "this state folder used it before", wish.recorded_bootstrap)
    return _first_that_works(wish, tools, say)


def _keep_running(wish: Wish, say: Callable[[str], None]) -> Plan:
    assert wish.recorded is not None
    if wish.bootstrap not in (None, wish.running):
        raise ConfigError(
            "A broker of this state folder is running, and another one was named.",
            hint="stop it first: hostoffload broker stop",
            running=wish.running,
            got=wish.bootstrap,
        )
    if wish.force not in (None, wish.recorded):
        raise ConfigError(
            f"The broker of this state folder runs as {wish.recorded}.", hint="stop it first: hostoffload broker stop", got=wish.force
        )
    if wish.bootstrap is None and wish.environment not in (None, wish.running):
        say(f"broker: the one of this state folder runs at {wish.running}, so KAFKA_BOOTSTRAP is not used")
    return Plan(wish.recorded, "it is running")


def _first_that_works(wish: Wish, tools: Tools, say: Callable[[str], None]) -> Plan:
    order = sorted(LOCAL_KINDS, key=lambda kind: kind != wish.recorded)
    lacking: dict[str, str] = {}
    for kind in order:
        lacks = tools.lacks(kind)
        if lacks is None:
            if lacking:
                passed_over = "; ".join(f"{name}: {reason}" for name, reason in lacking.items())
                say(f"broker: {kind}, because {passed_over}")
            return Plan(kind, "it works here")
        lacking[kind] = lacks
    reasons = "; ".join(f"{kind}: {reason}" for kind, reason in lacking.items())
    raise ConfigError(f"No Kafka can be started here ({reasons}).", hint=INSTALL_HINT)
