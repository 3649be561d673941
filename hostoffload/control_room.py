"""The declared state, as commands read and change it: a follower and a writer of `ho.control`, opened for one command.

Every call may raise RetryError while the broker does not answer; a command that asks a dead broker is told so within two seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from hostoffload.cli.service import ensure_shared_topics
from stream.config import Config, host_name
from stream.control import Answer, Bookmark, ControlWriter, Entry, Follower, GroupDeclaration, Request, VolumeDeclaration, bookmark_key
from stream.errors import RetryError
from stream.ping import ping
from stream.security import uses_tls

PING_S = 1.5
OTHER_PING_S = 0.5  # it speaks, only not as configured: `ensure_shared_topics` says so
TOPICS_S = 15.0
POLL_S = 0.2


class ControlRoom:
    """Read to its end when opened; `with` closes it."""

    def __init__(self, config: Config) -> None:
        bootstrap = config.kafka.bootstrap
        if not ping(bootstrap, PING_S, tls=uses_tls(config.kafka)) and not ping(bootstrap, OTHER_PING_S, tls=not uses_tls(config.kafka)):
            raise RetryError(
                f"Kafka does not answer at {bootstrap}", hint="See `hostoffload broker status`; `hostoffload up` starts what is missing."
            )
        ensure_shared_topics(config, time.monotonic() + TOPICS_S)
        self._follower = Follower(config.kafka)
        try:
            self._follower.catch_up()
            self._writer = ControlWriter(config.kafka)
        except BaseException:
            self._follower.close()
            raise

    def __enter__(self) -> ControlRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._follower.close()

    def volumes(self) -> Mapping[str, VolumeDeclaration]:
        """Return the declared volumes by name, removed ones included."""
        return self._follower.volumes()

    def volume(self, name: str) -> VolumeDeclaration:
        """Return a declared volume that is not removed. Raises ConfigError."""
        return self._follower.volume(name)

    def groups(self) -> Mapping[str, GroupDeclaration]:
        """Return the consistency groups by name."""
        return self._follower.groups()

    def bookmark(self, volume: str, label: str) -> Bookmark | None:
        """Return the bookmark of that label, None if the volume has none."""
        found = self._follower.entries.get(bookmark_key(volume, label))
        return found if isinstance(found, Bookmark) else None

    def remove(self, key: str) -> None:
        """Delete an entry and wait until that is durable."""
        self._writer.remove(key)

    def put(self, entry: Entry) -> None:
        """Write an entry and wait until it is durable."""
        self._writer.put(entry)

    def ask(self, kind: str, volume: str, attributes: Mapping[str, str]) -> Request:
        """Write a request of the operator's."""
        now_ns = time.time_ns()
        request = Request(f"{kind}-{volume}-{now_ns}", kind, volume, dict(attributes), f"cli/{host_name()}", now_ns)
        self.put(request)
        return request

    def answer(self, request: Request, timeout_s: float) -> Answer:
        """Return the answer to a request. Raises RetryError when none comes in time."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            found = self.answered(request, POLL_S)
            if found is not None:
                return found
        raise RetryError(
            f"The {request.kind} of {request.volume} was not answered within {timeout_s:.0f} s",
            hint="The request stays open: it is carried out once the agent runs. See `hostoffload status`.",
        )

    def answered(self, request: Request, timeout_s: float) -> Answer | None:
        """Return the answer to a request if it is there, or comes within the time."""
        self._follower.poll(timeout_s)
        found = self._follower.entries.get(f"answer/{request.id}")
        return found if isinstance(found, Answer) else None

    def withdraw(self, request: Request) -> None:
        """Delete a request, which need not be carried out any more, and its answer."""
        self._writer.forget(request.key)
        self._writer.forget(f"answer/{request.id}")

    def forget(self, volume: str) -> None:
        """Delete all that is said about a volume."""
        for key, entry in list(self._follower.entries.items()):
            if getattr(entry, "volume", None) == volume:
                self._writer.forget(key)
                if isinstance(entry, Request):
                    self._writer.forget(f"answer/{entry.id}")
