"""What `ho.control` declares for this host: followed by the publisher, handed to capture as a file, requests answered.

One thread. While the broker is away the file of the last time stays in force. It is also the comparisons' way to the targets
(`agent.comparison.Exchange`).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent import declared as declared_file
from agent.bookmark_desk import BookmarkDesk
from agent.bookmarks import BookmarkFile
from agent.declared import Declared
from agent.publication import Publication
from agent.requests import KINDS, Handover, hand_over
from agent.ring import VolumeRing
from stream.config import Config
from stream.control import Answer, ControlWriter, Entry, EpochClaim, Follower, Request, VolumeDeclaration
from stream.errors import ConfigError, HostoffloadError, RetryError
from stream.log import Repeats, event
from stream.position import Position

POLL_S = 0.2
BUSY_POLL_S = 0.02  # while somebody waits for a bookmark, with an application frozen perhaps
BACKOFF_S = 1.0
_log = logging.getLogger(__name__)


class Declarations:
    """The declared volumes of this agent, kept up to date on a thread."""

    def __init__(self, config: Config, state_dir: Path, agent: str, find: Callable[[str], Publication | None]) -> None:
        self._config = config.kafka
        self._agent = agent
        self._find = find
        self._path = declared_file.path_of(state_dir)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = ControlWriter(config.kafka)
        self._entries: dict[str, Entry] = {}
        self._untold: dict[str, Entry] = {}
        self._handed = Handover()
        self._desk = BookmarkDesk(BookmarkFile(state_dir), agent, self._ring, self._reply, self._tell_now)
        self._sizes: dict[str, int] = {}
        self._known = False
        self._written: Declared | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._repeats = Repeats()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(3.0)
        self._writer.close()

    @property
    def writer(self) -> ControlWriter:
        return self._writer

    def active(self) -> list[str]:
        """Return the names of the volumes that this host serves."""
        try:
            known = self._written if self._written is not None else declared_file.read(self._path)
        except FileNotFoundError:
            return []
        return [one.volume for one in known.volumes if one.state == "active"]

    def newest_epoch(self, volume: str) -> int:
        """Return the highest epoch that `ho.control` knows of the volume, claimed or about to be; 0 if none.

        Raises RetryError before it was read once; ConfigError when the volume is not declared for this agent: then it must not be claimed.
        """
        if not self._known:
            raise RetryError("ho.control was not read yet", volume=volume)
        declared = self._declaration(volume)
        if declared is None or declared.agent != self._agent or declared.state == "removed":
            raise ConfigError(
                f"Volume {volume} is not declared for agent {self._agent}",
                hint=f"Agent {declared.agent} serves it." if declared is not None else "Declare it with `hostoffload volume add`.",
                volume=volume,
            )
        entry = self._entries.get(f"epoch/{volume}")
        return entry.epoch if isinstance(entry, EpochClaim) else 0

    def claimant(self, volume: str) -> str:
        """Return the agent that claimed that epoch; nobody's name if there is none, or if it was announced and not won yet."""
        entry = self._entries.get(f"epoch/{volume}")
        return entry.agent if isinstance(entry, EpochClaim) and entry.is_won else ""

    def announce(self, claim: EpochClaim) -> None:
        """Make known durably that an epoch is about to be claimed, before its `epoch_start` can be in the log. Raises RetryError."""
        self._untold.pop(claim.key, None)  # an older claim's
        self._tell_now(claim)

    def tell(self, entry: Entry) -> None:
        """Write an entry into `ho.control` as soon as that is possible; does not wait."""
        self._untold[entry.key] = entry

    # -- for comparisons (agent.comparison.Exchange) -------------------------------------------------------------------

    def targets(self, volume: str) -> tuple[str, ...] | None:
        """Return the targets of the declared replicas; None if that is not known yet, or the volume is not this agent's.

        Those with a delay are left out as long as there are others: they apply what the others applied, in the same order, only later; so
        what the others have at a position is what they will have there, and nobody needs to wait for them.
        """
        declared = self._declaration(volume) if self._known else None
        if declared is None or declared.agent != self._agent:
            return None
        prompt = [replica for replica in declared.replicas if not replica.delay_s]
        return tuple(dict.fromkeys(replica.target for replica in prompt or declared.replicas))

    def put(self, entry: Entry) -> None:
        """Write an entry and wait until it is durable. Raises RetryError."""
        self._writer.put(entry)

    def forget(self, key: str) -> None:
        """Delete an entry; not waited for."""
        self._writer.forget(key)

    def answer(self, request_id: str) -> Answer | None:
        """Return the answer to a request, None if there is none yet."""
        entry = self._entries.get(f"answer/{request_id}")
        return entry if isinstance(entry, Answer) else None

    def left_over(self, volume: str) -> list[str]:
        """Return the keys of digest requests for the volume, and of their answers, that stand in `ho.control`."""
        answers = re.compile(rf"answer/digest-{re.escape(volume)}-\d{{8}}-\d{{16}}-")
        return [
            key
            for key, entry in list(self._entries.items())
            if (isinstance(entry, Request) and entry.kind == "digest" and entry.volume == volume) or answers.match(key)
        ]

    def wait(self, timeout_s: float) -> None:
        """Wait until something changed, at most that long."""
        with self._changed:
            self._changed.wait(timeout_s)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (HostoffloadError, OSError) as error:  # OSError: the file for capture can't be written now
                self._repeats.event(_log, logging.WARNING, "control_unreachable", error=error, hint=getattr(error, "hint", None))
            except Exception:  # our bug: all volumes would be cut off from what is declared
                _log.exception("control_crashed")
            self._stop.wait(BACKOFF_S)

    def _follow(self) -> None:
        """Follow `ho.control` until stopped. Raises RetryError when the broker is away."""
        follower = Follower(self._config)
        try:
            follower.catch_up()
            self._entries, self._known = follower.entries, True
            self._take_over(follower)
            while not self._stop.is_set():
                if follower.poll(BUSY_POLL_S if self._desk.busy else POLL_S) or self._sizes != self._ring_sizes():
                    self._take_over(follower)
                else:
                    self._desk.look(self._entries)
                self._put_untold()
                self._answer()
        finally:
            follower.close()

    def _take_over(self, follower: Follower) -> None:
        """Write the file for capture if something changed for this host."""
        volumes = follower.volumes().items()
        mine = {name: one for name, one in volumes if one.agent == self._agent}
        moved = {name: one.agent for name, one in volumes if one.agent != self._agent and one.state != "removed"}
        self._sizes = self._ring_sizes()
        self._handed = hand_over(self._open_requests(*KINDS), {name: self._sizes.get(name) for name in mine})
        self._desk.look(self._entries)
        handed = self._handed
        declared = Declared(tuple(mine[name] for name in sorted(mine)), handed.resyncs, handed.verifies, moved, self._desk.asked)
        if declared != self._written:
            declared_file.write(self._path, self._agent, declared)
            self._written = declared
        with self._changed:
            self._changed.notify_all()

    def _ring_sizes(self) -> dict[str, int]:
        """Return the sizes of the volumes that have a ring."""
        found = {name: self._find(name) for name in self.active()}
        return {name: one.ring.size_bytes for name, one in found.items() if one is not None}

    def _ring(self, volume: str) -> VolumeRing | None:
        publication = self._find(volume)
        return None if publication is None else publication.ring

    def _tell_now(self, entry: Entry) -> None:
        """Write an entry and know of it at once. Raises RetryError."""
        self._writer.put(entry)
        self._entries[entry.key] = entry

    def _declaration(self, volume: str) -> VolumeDeclaration | None:
        entry = self._entries.get(f"volume/{volume}")
        return entry if isinstance(entry, VolumeDeclaration) else None

    def _put_untold(self) -> None:
        """Write what is to be told. Raises RetryError: the rest waits for the next time."""
        for key, entry in list(self._untold.items()):
            self._writer.put(entry)
            if self._untold.get(key) is entry:
                del self._untold[key]

    def _open_requests(self, *kinds: str) -> list[Request]:
        requests = [entry for entry in list(self._entries.values()) if isinstance(entry, Request) and entry.kind in kinds]
        return [request for request in requests if f"answer/{request.id}" not in self._entries]

    def _answer(self) -> None:
        """Answer what is wrong, what capture did, and a republish at once."""
        for request in self._open_requests(*KINDS):
            publication = self._find(request.volume)
            if request.id in self._handed.wrong:
                self._reply(request, done=False, error=self._handed.wrong[request.id])
            elif publication is not None and self._is_done(request, publication.ring):
                self._reply(request, done=True, **({"round": request.id} if request.kind == "verify" else {}))
        for request in self._open_requests("republish"):
            publication = self._find(request.volume)
            if publication is not None:
                self._republish(publication, request)

    @staticmethod
    def _is_done(request: Request, ring: VolumeRing) -> bool:
        """Tell whether capture did what is asked: a verify's round is begun, a resync is written down.

        A resync that closes a gap has closed it as well: should the ring be lost before that, the request still stands and names the gap to
        the next one, whose own copy would not close it.
        """
        return request.id in ring.listed("handled") and request.attributes.get("gap", "") not in ring.listed("closes")

    def _republish(self, publication: Publication, request: Request) -> None:
        """Publish again from the position asked for, and say whether the ring still has it."""
        try:
            self._reply(request, done=publication.rewind(Position.parse(request.attributes.get("position", "")).sequence))
        except ConfigError as error:
            self._reply(request, done=False, error=f"{error.sentence}. {error.hint}")

    def _reply(self, request: Request, *, done: bool, **attributes: str) -> None:
        if not done:
            event(_log, logging.WARNING, "request_refused", id=request.id, volume=request.volume, error=attributes.get("error"))
        answer = Answer(request.id, done, attributes, f"publisher/{self._agent}", time.time_ns())
        self._tell_now(answer)
