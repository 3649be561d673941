"""The declared volumes, followed on a thread: which topics the worker takes, and what the agents answered.

While the broker is away the last declaration stays in force. A volume counts from the moment both of its topics exist. Topics of an active
volume that somebody deleted are made again, empty, once they have been missing for `MISSING_S`: what was in them is a gap, which the agent
closes by itself, and nobody else would make them. A volume that is removed for good is declared so before its topics are deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from cx_consumers.asks import refused_republish
from cx_consumers.volume_worker import VolumeWorker
from stream.config import KafkaConfig
from stream.control import Answer, Entry, Follower, VolumeDeclaration
from stream.errors import ConfigError, HostoffloadError, ResyncError
from stream.log import Repeats, event
from stream.topics import Topics, data_topics, journal_topic, writes_topic

POLL_S = 0.2
BACKOFF_S = 0.5
TOPICS_INTERVAL_S = 3.0
MISSING_S = 3.0
_log = logging.getLogger(__name__)


class DeclaredVolumes:
    """Follow `ho.control`; `changed(volumes)` is called on its thread with the names to take, `workers` gives those that run here."""

    def __init__(
        self,
        config: KafkaConfig,
        topics: Topics,
        codec: str,
        changed: Callable[[frozenset[str]], None],
        workers: Callable[[], dict[str, VolumeWorker]],
    ) -> None:
        self._config = config
        self._topics = topics
        self._default_codec = codec
        self._changed = changed
        self._workers = workers
        self._volumes: dict[str, VolumeDeclaration] = {}
        self._told: frozenset[str] = frozenset()
        self._next_look_s = 0.0
        self._missing: dict[str, float] = {}
        self._repeats = Repeats()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="declared", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop following; return at once."""
        self._stop.set()

    def codec(self, volume: str) -> str:
        """Return the codec of the volume's journal."""
        declaration = self._volumes.get(volume)
        return declaration.codec if declaration is not None and declaration.codec else self._default_codec

    def _run(self) -> None:
        while not self._stop.is_set():
            follower = Follower(self._config)
            try:
                follower.catch_up()
                self._take(follower)
                while not self._stop.is_set():
                    changes = follower.poll(POLL_S)
                    for _, entry in changes:
                        self._see_answer(entry)
                    if any(key.startswith("volume/") for key, _ in changes):
                        self._take(follower)
                    if time.monotonic() >= self._next_look_s:
                        self._look_at_topics(follower)
            except (HostoffloadError, TimeoutError) as error:
                self._repeats.event(_log, logging.WARNING, "control_unreachable", error=str(error))
                self._stop.wait(BACKOFF_S)
            finally:
                follower.close()

    def _take(self, follower: Follower) -> None:
        """Tell the names of the volumes that are declared and have their topics, if they changed."""
        self._volumes = {name: one for name, one in follower.volumes().items() if one.state != "removed"}
        existing = self._topics.names() if self._volumes else set()
        ready = frozenset(name for name in self._volumes if {writes_topic(name), journal_topic(name)} <= existing)
        self._make_missing([name for name, one in self._volumes.items() if name not in ready and one.state == "active"])
        self._next_look_s = time.monotonic() + (TOPICS_INTERVAL_S if len(ready) == len(self._volumes) else POLL_S)
        if ready != self._told:
            self._told = ready
            self._changed(ready)

    def _make_missing(self, missing: Collection[str]) -> None:
        """Make the topics of these volumes that have lacked one for a while."""
        now_s = time.monotonic()
        self._missing = {name: self._missing.get(name, now_s) for name in missing}
        for name, since_s in self._missing.items():
            if now_s < since_s + MISSING_S:
                continue
            try:
                self._topics.ensure(data_topics(name, self._config))
                event(_log, logging.WARNING, "topics_made_again", volume=name)
            except (ConfigError, ResyncError) as error:  # another setting, or deleted again just now: the other volumes go on
                self._repeats.event(_log, logging.ERROR, "topics_not_made", volume=name, error=str(error), hint=error.hint or None)

    def _look_at_topics(self, follower: Follower) -> None:
        """See topics that came, and topics that were made anew under a volume that runs here (design rule 8)."""
        self._take(follower)
        for volume, worker in self._workers().items():
            topic_id = self._topics.topic_id(writes_topic(volume))
            if topic_id is not None:
                worker.saw_topic(topic_id)

    def _see_answer(self, entry: Entry | None) -> None:
        if isinstance(entry, Answer) and not entry.done:
            for volume, worker in self._workers().items():
                position = refused_republish(entry.id, volume)
                if position is not None:
                    worker.refused(position)
