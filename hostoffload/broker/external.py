"""The `external` kind: somebody else's Kafka, named by --bootstrap or KAFKA_BOOTSTRAP.

It is only asked whether it answers, and takes us; nothing is started, stopped or configured here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from hostoffload.broker import probe
from hostoffload.broker.folder import BrokerFolder, BrokerState
from hostoffload.broker.interface import BrokerStatus
from stream.config import KafkaConfig
from stream.security import uses_tls


class ExternalBroker:
    """Point at a Kafka that others run (see `interface.Broker` for the guarantees)."""

    kind = "external"

    def __init__(self, folder: BrokerFolder, bootstrap: str, config: KafkaConfig) -> None:
        self._folder = folder
        self._config = replace(config, bootstrap=bootstrap)
        self.bootstrap = bootstrap

    def start(self, deadline_s: float) -> None:
        """Check that it answers, then remember it. Raises RetryError if it does not answer within `deadline_s`."""
        self.wait_ready(deadline_s)
        self.prepare()

    def stop(self, deadline_s: float) -> None:
        """Leave it alone."""

    def status(self) -> BrokerStatus:
        """Report by one ping, which over TLS is a handshake."""
        return BrokerStatus(self.kind, self.bootstrap, None, probe.ping(self.bootstrap, tls=uses_tls(self._config)))

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
        """Ask it once as a client. Raises RetryError if it does not answer within `deadline_s`, ConfigError if it refuses us."""
        from stream.access import check_access  # 60 ms to import, which a report never pays

        check_access(self._config, deadline_s, deadline_s)
        if self._config.security_protocol == "plaintext":
            probe.cluster(self.bootstrap, deadline_s)
