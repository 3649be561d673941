"""TLS of the NBD server over TCP, from the `[agent]` section: what its clients must show, and what they are shown."""

from __future__ import annotations

import ssl

from nbd.tls import server_context
from stream.config import AgentConfig
from stream.errors import ConfigError

KEYS = ("tls_certificate", "tls_key", "tls_client_ca")


def listener_tls(config: AgentConfig) -> ssl.SSLContext | None:
    """Return the context for clients over TCP, None if TLS is not configured. Raises ConfigError that names the key or file."""
    unset = [name for name in KEYS if not getattr(config, name)]
    if len(unset) == len(KEYS):
        return None
    if unset:
        told = " and ".join(f"agent.{name}" for name in unset)
        raise ConfigError(
            f"{told} {'is' if len(unset) == 1 else 'are'} not set",
            hint="TLS for NBD needs agent.tls_certificate, agent.tls_key and agent.tls_client_ca; see docs/security.md.",
        )
    try:
        return server_context(config.tls_certificate, config.tls_key, config.tls_client_ca)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The NBD server can't have TLS: {reason}",
            hint="Certificate, key and clients' authorities are PEM files; the key belongs to the certificate.",
            certificate=config.tls_certificate,
            key=config.tls_key,
            client_ca=config.tls_client_ca,
        ) from error
