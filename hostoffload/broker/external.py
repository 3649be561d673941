"""The `external` kind: somebody else's Kafka, named by --bootstrap or KAFKA_BOOTSTRAP.

It is only asked whether it answers; nothing is started, stopped or configured here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hostoffload.broker import probe
from hostoffload.broker.folder import BrokerFolder, BrokerState
from hostoffload.broker.interface import BrokerStatus


class ExternalBroker:
    """Point at a Kafka that others run (see `interface.Broker` for the guarantees)."""

    kind = "external"

    def __init__(self, folder: BrokerFolder, bootstrap: str) -> None:
        self._folder = folder
        self.bootstrap = bootstrap

    def start(self, deadline_s: float) -> None:
        """Check that it answers, then remember it. Raises RetryError if it does not answer within `deadline_s`."""
        self.wait_ready(deadline_s)
        self.prepare()

    def stop(self, deadline_s: float) -> None:
        """Leave it alone."""

    def status(self) -> BrokerStatus:
        """Report by one ping; a broker behind TLS answers no ping and is reported as not ready."""
        return BrokerStatus(self.kind, self.bootstrap, None, probe.ping(self.bootstrap))

    def prepare(self) -> None:
        """Remember the address in the state folder, beside the local broker's identity if there was one."""
        known = self._folder.load()
        if known is None:
            self._folder.save(BrokerState(self.kind, self.bootstrap))
        elif (known.kind, known.bootstrap) != (self.kind, self.bootstrap):
            self._folder.save(BrokerState(self.kind, self.bootstrap, known.port, known.controller_port, known.cluster_id))

    def argv(self) -> Sequence[str]:
        """Return nothing: there is no process to run."""
        return []

    def environment(self) -> dict[str, str]:
        """Return the caller's environment."""
        return dict(os.environ)

    def wait_ready(self, deadline_s: float) -> None:
        """List its topics once. Raises RetryError if it does not answer within `deadline_s`."""
        probe.cluster(self.bootstrap, deadline_s)
