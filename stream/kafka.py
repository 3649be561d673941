"""The border to confluent-kafka: settings that every client shares, its log, and its exceptions turned into ours.

`KafkaException` never leaves `stream/`; `translate` is the one place that reads its codes.
"""

from __future__ import annotations

import logging
import time

from confluent_kafka import KafkaError, KafkaException

from stream import security
from stream.config import KafkaConfig
from stream.errors import ConfigError, FencedError, HostoffloadError, IntegrityError, ResyncError, RetryError, TooLargeError

RECONNECT_BACKOFF_MS = 100
RECONNECT_BACKOFF_MS_MAX = 1000
LOG_INTERVAL_S = 5.0

_WRONG_CONFIG = {
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._INVALID_ARG,
    KafkaError.INVALID_CONFIG,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
}
_HOLE = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
_DAMAGED = {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG}


class _QuietLog(logging.Handler):
    """Pass on one librdkafka line in `LOG_INTERVAL_S`: a broker that is away makes twenty a second (`traps.md`: Kafka)."""

    def __init__(self) -> None:
        super().__init__()
        self._next_at_s = 0.0
        self._hidden = 0

    def emit(self, record: logging.LogRecord) -> None:
        if "CONFWARN" in record.getMessage():
            return  # it warns of the gapless guarantee at every start, which is wanted
        now_s = time.monotonic()
        if now_s < self._next_at_s:
            self._hidden += 1
            return
        logging.getLogger("stream.kafka").warning("librdkafka: %s (%d similar lines hidden)", record.getMessage(), self._hidden)
        self._next_at_s = now_s + LOG_INTERVAL_S
        self._hidden = 0


_librdkafka_log = logging.getLogger("stream.librdkafka")
_librdkafka_log.propagate = False
_librdkafka_log.addHandler(_QuietLog())


def client_settings(config: KafkaConfig) -> dict[str, object]:
    """Return the librdkafka settings of any client: where the broker is, how both prove themselves, where the log goes.

    They hold the password: hand them to a client and to nobody else. Raises ConfigError if it can't be had.
    """
    settings: dict[str, object] = {
        "bootstrap.servers": config.bootstrap,
        "reconnect.backoff.ms": RECONNECT_BACKOFF_MS,
        "reconnect.backoff.max.ms": RECONNECT_BACKOFF_MS_MAX,
        "socket.nagle.disable": True,
        "socket.keepalive.enable": True,
        "logger": _librdkafka_log,
        "log.connection.close": False,
        "allow.auto.create.topics": False,  # a topic made by the way would lack the settings that carry a guarantee
    }
    return settings | security.librdkafka(config)


def translate(error: KafkaException | KafkaError, sentence: str, **facts: object) -> HostoffloadError:
    """Return our error for Kafka's: what the caller must do, with Kafka's own words behind it."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    code = cause.code() if isinstance(cause, KafkaError) else None
    told = f"{sentence}: {cause.str() if isinstance(cause, KafkaError) else cause}"
    if code in _WRONG_CONFIG:
        return ConfigError(told, hint="Check the [kafka] section of the config and the rights of this client.", **facts)
    if code in _HOLE:
        return ResyncError(told, hint="Kafka no longer has what was to be read; the missing extents are copied again.", **facts)
    if code in _FENCED:
        return FencedError(told, hint="Another process took over; this one must stop.", **facts)
    if code in _TOO_LARGE:
        return TooLargeError(told, hint="Raise max.message.bytes of the topic.", **facts)
    if code in _DAMAGED:
        return IntegrityError(told, hint="Keep the topic as it is and look at the broker's disk.", **facts)
    hint = "Check that the broker runs, can be reached at the bootstrap address, and listens there for kafka.security_protocol."
    return RetryError(told, hint=hint, **facts)
