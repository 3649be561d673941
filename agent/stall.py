"""Stalls: why Kafka acknowledges nothing, found out and stated.

librdkafka tries again without a word what may pass: too few replicas in sync, no leader, a broker's disk that failed or is full. So one
thread of the publisher looks at the topics of volumes that wait, and tells each publication what is wrong there. It changes nothing: all
goes on by itself when the broker does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection

from agent.publication import Publication
from agent.ring import VolumeRing
from stream.config import KafkaConfig
from stream.errors import HostoffloadError, RetryError
from stream.topics import TopicCondition, Topics, writes_topic

STALLED_S = 5.0
LOOK_INTERVAL_S = 1.0
_log = logging.getLogger(__name__)


class StallWatch:
    """Look after the publications that wait for acknowledgements, on a thread of its own."""

    def __init__(self, config: KafkaConfig, publications: Callable[[], Collection[Publication]]) -> None:
        self._config = config
        self._publications = publications
        self._topics: Topics | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stalls", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; a look at a broker that does not answer is not waited for."""
        self._over.set()

    def look(self) -> None:
        """Tell every publication that waits for longer than `STALLED_S` why. Blocks for as long as the broker takes to answer."""
        stalled = [one for one in self._publications() if one.stalled_s >= STALLED_S]
        if not stalled:
            self._topics = None  # nothing is kept open to a broker that is well
            return
        self._topics = self._topics or Topics(self._config)
        for one in stalled:
            if one.error is None:
                one.tell_stall(_silence(one.volume))  # until the topic has told more, which may take as long as the broker is silent
        for one in stalled:
            try:
                condition = self._topics.condition(writes_topic(one.volume))
            except RetryError as error:  # the broker is the same for all
                for other in stalled:
                    other.tell_stall(error)
                return
            except HostoffloadError as error:
                one.tell_stall(error)
                continue
            if _is_other(condition, one.ring):
                one.look_again.set()
            else:
                one.tell_stall(cause(one.volume, condition))

    def _run(self) -> None:
        while not self._over.wait(LOOK_INTERVAL_S):
            try:
                self.look()
            except Exception:  # our bug; publishing does not depend on this
                _log.exception("stall_watch_crashed")


def cause(volume: str, condition: TopicCondition) -> RetryError:
    """Return why nothing of the volume is acknowledged, as far as the topic shows it."""
    topic = writes_topic(volume)
    if not condition.has_leader:
        return RetryError(
            f"Topic {topic} has no leader",
            hint="The brokers that hold it are down, or their disks are full or failed: see the brokers' logs.",
            topic=topic,
        )
    if condition.in_sync < condition.in_sync_min:
        return RetryError(
            f"Topic {topic} has {condition.in_sync} replica in sync and needs {condition.in_sync_min}",
            hint="Start the brokers that are missing, or lower the topic's min.insync.replicas.",
            topic=topic,
        )
    return _silence(volume)


def _silence(volume: str) -> RetryError:
    return RetryError(
        f"Kafka acknowledges nothing of volume {volume}",
        hint="See whether the broker runs and can be reached, then its log and its disk.",
        topic=writes_topic(volume),
    )


def _is_other(condition: TopicCondition | None, ring: VolumeRing) -> bool:
    """Tell whether the topic is gone or was made anew."""
    return condition is None or condition.topic_id != ring.text("topic_id")
