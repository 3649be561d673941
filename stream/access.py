"""Whether the broker takes this client: asked once at a start, so that a wrong password or certificate is one clear sentence.

librdkafka tries again for ever and tells the reason in its log only; here each reason is looked for by itself, in the order in which a
connection meets them: address, TLS or not, the broker's certificate, ours, the user name.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from stream import security
from stream.config import KafkaConfig
from stream.errors import ConfigError, RetryError
from stream.kafka import client_settings, translate
from stream.ping import REQUEST, address, ping
from stream.topics import CONTROL_TOPIC

ANSWER_S = 10.0
STEP_S = 0.5
_silent = logging.getLogger("stream.access.librdkafka")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


def check_access(config: KafkaConfig, ping_s: float = 1.0, answer_s: float = ANSWER_S) -> None:
    """Return when the broker has answered a client of this config; for a plain one an answered ping will do, which costs a millisecond.

    Raises ConfigError that says what is refused, RetryError if nobody answers a ping within `ping_s` or the client within `answer_s`.
    """
    security.check(config)
    tls = security.uses_tls(config)
    if not ping(config.bootstrap, ping_s, tls=tls):
        if ping(config.bootstrap, ping_s, tls=not tls):
            raise _other_protocol(config)
        raise RetryError(f"Kafka does not answer at {config.bootstrap}", hint="It is waited for.")
    if tls:
        _check_certificates(config, ping_s)
    if config.security_protocol != "plaintext":
        _ask(config, answer_s)


def _check_certificates(config: KafkaConfig, timeout_s: float) -> None:
    """Shake hands with the first server that can be reached, as any client will. Raises ConfigError."""
    context = security.tls_context(config)
    for server in config.bootstrap.split(","):
        try:
            with socket.create_connection(address(server), timeout_s) as plain:
                plain.settimeout(timeout_s)
                with context.wrap_socket(plain, server_hostname=address(server)[0]) as connection:
                    connection.sendall(REQUEST)
                    connection.recv(1)  # TLS 1.3: whether our certificate is good is told with the first bytes only
                    return
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(
                f"The certificate of {server.strip()} is not trusted: {error.verify_message}",
                hint="Name the authority that signed it by kafka.ssl_ca, and the broker by a name that stands in its certificate.",
            ) from error
        except ssl.SSLError as error:
            raise ConfigError(
                f"{server.strip()} ends the TLS handshake: {error.reason}",
                hint="If it asks for a certificate, name one that it trusts by kafka.ssl_certificate and kafka.ssl_key.",
            ) from error
        except (OSError, ValueError):
            continue


def _ask(config: KafkaConfig, timeout_s: float) -> None:
    said: list[KafkaError] = []
    admin = AdminClient(client_settings(config) | {"logger": _silent, "error_cb": said.append})
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            admin.list_topics(CONTROL_TOPIC, timeout=STEP_S)
            return
        except KafkaException as error:
            admin.poll(0)
            refused = next((one for one in said if one.code() == KafkaError._AUTHENTICATION), None)
            if refused is not None:
                raise _refused_user(config, refused) from error
            if time.monotonic() >= until_s:
                raise translate(error, f"Kafka at {config.bootstrap} does not serve this client") from error


def _other_protocol(config: KafkaConfig) -> ConfigError:
    speaks, wanted = ("plain text", "plaintext or sasl_plaintext") if security.uses_tls(config) else ("TLS", "ssl or sasl_ssl")
    return ConfigError(
        f"The broker at {config.bootstrap} speaks {speaks}, and kafka.security_protocol is {config.security_protocol}",
        hint=f"Set kafka.security_protocol to {wanted}, or name another listener of the broker.",
    )


def _refused_user(config: KafkaConfig, refused: KafkaError) -> ConfigError:
    if "mechanism" in refused.str() and "nvalid credentials" not in refused.str():
        return ConfigError(
            f"The broker does not take {config.sasl_mechanism}: {refused.str()}",
            hint="Set kafka.sasl_mechanism to one that its listener offers.",
        )
    return ConfigError(
        f"Kafka refuses the user {config.sasl_username}: wrong name or password",
        hint="Check kafka.sasl_username, the password, and that the broker has this user for kafka.sasl_mechanism.",
        mechanism=config.sasl_mechanism,
    )
