"""Fixtures that every layer may use."""

from __future__ import annotations

import signal

from tests.kafka_fixture import kafka, own_broker
from tests.secure_kafka import secure_kafka

__all__ = ["kafka", "own_broker", "secure_kafka"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what the tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
