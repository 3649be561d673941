"""How a service is run by its command: log, broker's address, shared topics, and what happens when it ends by an error.

Used by `agent capture`, `agent publisher`, `cx run` and `target run`. An error of ours becomes one line in the log, a file for `up` to
show, and the exit code.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from hostoffload import layout
from hostoffload.context import Context
from hostoffload.metrics import start as start_metrics
from hostoffload.services import error_file
from stream.config import Config
from stream.errors import HostoffloadError, RetryError
from stream.log import Repeats, configure, event

RETRY_S = 0.05
RETRY_S_MAX = 0.5
PING_S = 1.0
_log = logging.getLogger(__name__)


def run_service(context: Context, name: str, body: Callable[[Config], int], *, uses_kafka: bool = True, metrics: str = "") -> int:
    """Run `body` with the config in force until it ends; return its exit code.

    `metrics` is the key of [metrics] whose address tells of it, if it has one; there it can be asked while it still waits for the broker.
    """
    layout.make(context.state_dir)
    left = error_file(context.state_dir, name)
    left.unlink(missing_ok=True)
    try:
        config = context.config_with_broker() if uses_kafka else context.config()
        configure(config.log, name)
        if metrics:
            start_metrics(config, metrics, context.state_dir, name)
        if uses_kafka:
            ensure_shared_topics(config)
        return body(config)
    except HostoffloadError as error:
        event(_log, logging.ERROR, "error", sentence=error.sentence, hint=error.hint or None, **_facts(error))
        left.write_text(json.dumps({"sentence": error.sentence, "hint": error.hint, "exit_code": error.exit_code}), encoding="utf-8")
        return error.exit_code


def ensure_shared_topics(config: Config, deadline_s: float | None = None) -> None:
    """Create or check `ho.control` and `ho.status`; wait for the broker, without end if there is no deadline (monotonic).

    Raises ConfigError when a topic contradicts the config, RetryError after the deadline.
    """
    repeats, pause_s = Repeats(), RETRY_S
    while True:
        try:
            _ensure_shared_topics_once(config)
            return
        except RetryError as error:
            if deadline_s is not None and time.monotonic() + pause_s > deadline_s:
                raise
            repeats.event(_log, logging.WARNING, "broker_not_ready", error=error)
            time.sleep(pause_s)
            pause_s = min(RETRY_S_MAX, pause_s * 2)


def _ensure_shared_topics_once(config: Config) -> None:
    """Create or check them now. A plain socket asks first: a Kafka client that met a closed port backs off and sees the broker late."""
    from stream.access import check_access
    from stream.topics import Topics, shared_topics

    check_access(config.kafka, PING_S)
    Topics(config.kafka).ensure(shared_topics(config.kafka))


def _facts(error: HostoffloadError) -> dict[str, object]:
    return {key: value for key, value in error.facts.items() if key not in ("level", "name", "logger", "sentence", "hint")}
