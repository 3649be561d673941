"""How a client and the broker prove themselves to each other: TLS and SASL, from the `[kafka]` section of the config.

`librdkafka` makes the settings of confluent-kafka's clients, `tls_context` and `password` are what Faust's client takes; so all clients of
a process prove themselves alike. A password leaves this module only inside those; it stands in no error, no log line and no repr.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from stream.config import KafkaConfig
from stream.errors import ConfigError
from stream.secret import from_command, from_file

_MANUAL = "See docs/security.md."


def uses_tls(config: KafkaConfig) -> bool:
    """Tell whether clients speak TLS."""
    return config.security_protocol.endswith("ssl")


def uses_sasl(config: KafkaConfig) -> bool:
    """Tell whether clients prove a user name."""
    return config.security_protocol.startswith("sasl")


def check(config: KafkaConfig) -> None:
    """Look at all that can be wrong without asking the broker or a command. Raises ConfigError that names the key."""
    own = (config.ssl_certificate, config.ssl_key)
    if any(own) and not all(own):
        missing = "ssl_certificate" if config.ssl_key else "ssl_key"
        raise ConfigError(f"kafka.{missing} is not set", hint="A certificate and its key come together.")
    if uses_tls(config):
        tls_context(config)
    elif config.ssl_ca or any(own):
        raise _unused(config, "the certificates are", "ssl or sasl_ssl")
    ways = [name for name in ("sasl_password", "sasl_password_file", "sasl_password_command") if getattr(config, name)]
    if not uses_sasl(config):
        if config.sasl_username or ways:
            raise _unused(config, "user name and password are", "sasl_ssl")
        return
    if not config.sasl_username:
        raise ConfigError("kafka.sasl_username is not set", hint=f"{config.security_protocol} needs a user name. {_MANUAL}")
    if len(ways) != 1:
        told = " and ".join(f"kafka.{name}" for name in ways) + " are set" if ways else "The password of Kafka is not set"
        hint = "Set one of HOSTOFFLOAD_KAFKA_SASL_PASSWORD, kafka.sasl_password_file and kafka.sasl_password_command."
        raise ConfigError(told, hint=hint)
    if not config.sasl_password_command:
        password(config)


def librdkafka(config: KafkaConfig) -> dict[str, object]:
    """Return librdkafka's settings; nothing for a plain connection. Raises ConfigError if the password can't be had."""
    if config.security_protocol == "plaintext":
        return {}
    settings: dict[str, object] = {"security.protocol": config.security_protocol}
    if uses_tls(config):
        named = {
            "ssl.ca.location": config.ssl_ca,
            "ssl.certificate.location": config.ssl_certificate,
            "ssl.key.location": config.ssl_key,
        }
        settings |= {setting: path for setting, path in named.items() if path}
        settings["ssl.endpoint.identification.algorithm"] = "https"  # the default, and not for anybody to change
    if uses_sasl(config):
        settings |= {
            "sasl.mechanism": config.sasl_mechanism,
            "sasl.username": config.sasl_username,
            "sasl.password": password(config),
        }
    return settings


def tls_context(config: KafkaConfig) -> ssl.SSLContext:
    """Return a context that trusts and shows what the config says; the broker's name is checked. Raises ConfigError for a bad file."""
    try:
        context = ssl.create_default_context(cafile=config.ssl_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise _bad_file("ssl_ca", config.ssl_ca, error, "a PEM file of certificates") from error
    if config.ssl_certificate:
        try:
            context.load_cert_chain(config.ssl_certificate, config.ssl_key, password=_no_passphrase)
        except FileNotFoundError as error:
            absent = "ssl_key" if Path(config.ssl_certificate).exists() else "ssl_certificate"
            raise _bad_file(absent, getattr(config, absent), error, "a PEM file") from error
        except (OSError, ssl.SSLError, ValueError) as error:
            raise _bad_file("ssl_certificate", config.ssl_certificate, error, "PEM, with the key that belongs to it") from error
    return context


def password(config: KafkaConfig) -> str:
    """Return the password; it may wait for a command. Raises ConfigError that says which way failed, never with what it gave."""
    if config.sasl_password_file:
        return from_file("kafka.sasl_password_file", config.sasl_password_file)[0]
    if config.sasl_password_command:
        return from_command("kafka.sasl_password_command", config.sasl_password_command)[0]
    return config.sasl_password


def _no_passphrase() -> str:
    """Take the place of OpenSSL's question at the terminal."""
    raise ValueError("the key has a passphrase")


def _bad_file(name: str, path: str, error: Exception, wanted: str) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else getattr(error, "reason", None)
    return ConfigError(f"kafka.{name} can't be used: {reason or error}", hint=f"It must be {wanted}. {_MANUAL}", path=path)


def _unused(config: KafkaConfig, what: str, protocol: str) -> ConfigError:
    sentence = f"kafka.security_protocol is {config.security_protocol}, so {what} not used"
    return ConfigError(sentence, hint=f"Set it to {protocol}, or leave those keys out.")
