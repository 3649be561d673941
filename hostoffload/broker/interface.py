"""What every kind of broker offers, and what it reports.

The command line uses `start`, `stop` and `status`; a supervisor that wants the process as its own child uses `prepare`, `argv`,
`environment` and `wait_ready` instead of `start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """A report: `pid` is the JVM's on this machine (None if it does not run here), `ready` means it answers requests."""

    kind: str
    bootstrap: str
    pid: int | None
    ready: bool


class Broker(Protocol):
    """A Kafka for this machine, of one of the kinds `external`, `docker`, `jars`."""

    kind: str
    bootstrap: str

    def start(self, deadline_s: float) -> None:
        """Return when Kafka is ready for requests; start it if it does not run. Idempotent; several callers do no harm.

        `deadline_s` bounds the wait for readiness; fetching jars or an image before the first start has limits of its own.
        The broker outlives the caller and keeps none of its files open. Raises ConfigError if its port belongs to somebody else,
        RetryError if it is not ready in time (it may still come) or ends at once (with the last lines of its log).
        """

    def stop(self, deadline_s: float) -> None:
        """End the broker cleanly, by force after `deadline_s`; all data is kept. Idempotent; an external one is left alone."""

    def status(self) -> BrokerStatus:
        """Report within 0.2 s, whatever is dead."""

    def prepare(self) -> None:
        """Make everything that `argv` needs (jars or image, storage, configuration). Idempotent, harmless to a running broker.

        Raises as `start` does, and RetryError if the jars can't be fetched.
        """

    def argv(self) -> Sequence[str]:
        """Return the command that runs the broker in the foreground; call `prepare` before each run of it.

        SIGTERM ends it cleanly, and it ends when the broker ends. Empty for an external broker. A broker that runs already
        (`status().pid`) is adopted: running the command a second time fails and harms nothing.
        """

    def environment(self) -> dict[str, str]:
        """Return the environment for `argv`."""

    def wait_ready(self, deadline_s: float) -> None:
        """Return when Kafka is ready for requests. Raises as `start` does."""
