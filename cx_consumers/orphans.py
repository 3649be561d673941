"""Volumes that nobody takes: declared, with their topics, and assigned to no worker of the group although the group is at rest.

A topic that is deleted and made again within one refresh of a client's metadata can be left out of an assignment, and neither Faust nor
aiokafka looks again as long as nothing else changes. Each worker therefore asks Kafka itself who has what.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from stream.errors import HostoffloadError
from stream.log import Repeats, event
from stream.roles import CX_GROUP
from stream.topics import Topics, writes_topic

LOOK_S = 3.0
_log = logging.getLogger(__name__)


class Orphans:
    """Look every `LOOK_S` on a thread; `rejoin()` is called on it when a volume was nobody's in two looks, one after the other."""

    def __init__(self, topics: Topics, wanted: Callable[[], frozenset[str]], rejoin: Callable[[], None]) -> None:
        self._topics = topics
        self._wanted = wanted
        self._rejoin = rejoin
        self._seen: frozenset[str] = frozenset()
        self._repeats = Repeats()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orphans", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; return at once."""
        self._stop.set()

    def look(self) -> None:
        """Look once."""
        wanted = self._wanted()
        try:
            taken = self._topics.taken(CX_GROUP) if wanted else None
        except HostoffloadError as error:
            self._repeats.event(_log, logging.WARNING, "group_unreachable", error=str(error))
            taken = None
        nobodys = frozenset() if taken is None else frozenset(volume for volume in wanted if writes_topic(volume) not in taken)
        left = nobodys & self._seen
        self._seen = nobodys - left  # a rejoin has its two looks too
        if left:
            event(_log, logging.WARNING, "volumes_nobody_takes", volumes=",".join(sorted(left)))
            self._rejoin()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()
