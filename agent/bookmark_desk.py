"""The publisher's side of bookmarks: requests are checked and handed over, outcomes become answers, labels are entered as given.

Used by `agent.declarations` on its thread. A request that can't be carried out is answered with a sentence and never reaches capture. The
answer is written when the mark is taken (`durable` false: the application may go on), and again when Kafka has it; the labels stand in
`ho.control` before that. All of it follows from `ho.control` and capture's file, so a publisher that is killed anywhere goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping

from agent import ring as layout
from agent.bookmarks import Asked, BookmarkFile, Outcome
from agent.ring import VolumeRing
from stream.bookmark import GROUP_VOLUMES_MAX, check_group_name, check_label, label_given
from stream.control import Answer, Bookmark, Entry, EpochClaim, Request, VolumeDeclaration, bookmark_key
from stream.errors import ConfigError
from stream.position import Position
from stream.topics import check_volume_name

KIND = "bookmark"
GRACE_S = 2.0  # after its time a request may still end a barrier that it began
UNTIL_S_MAX = 3600.0
_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,255}")
_TIME_NS = re.compile(r"[0-9]{1,19}")

Reply = Callable[..., None]
"""Called with the request, `done=` and the attributes of its answer."""


class BookmarkDesk:
    """Bookmarks of one agent. `find` returns the ring of a volume, `put` writes an entry durably."""

    def __init__(
        self, file: BookmarkFile, agent: str, find: Callable[[str], VolumeRing | None], reply: Reply, put: Callable[[Entry], None]
    ) -> None:
        self._file = file
        self._agent = agent
        self._find = find
        self._reply = reply
        self._put = put
        self.asked: tuple[Asked, ...] = ()
        """What is handed over to capture."""

    @property
    def busy(self) -> bool:
        """Tell whether somebody waits for a bookmark."""
        return bool(self.asked)

    def look(self, entries: Mapping[str, Entry]) -> None:
        """Check what is asked, and answer what became of it. Raises RetryError: the rest is done at the next look."""
        begun, outcomes = self._file.told()
        told = {outcome.asked.id: outcome for outcome in outcomes}
        asked: list[Asked] = []
        for request in _open(entries):
            if not self._is_mine(request.volume, entries):
                continue
            outcome = told.get(request.id)
            if outcome is not None:
                self._answer(request, outcome, entries)
                if not _is_final(entries, request):
                    asked.append(outcome.asked)
                continue
            try:
                one = self._checked(request, entries, asked, outcomes)
            except ConfigError as error:
                self._reply(request, done=False, error=_sentence(error), wrong="true")
                continue
            under_way = begun is not None and begun.id == request.id  # its outcome is told, or found by the next capture
            if not under_way and time.time_ns() > one.until_ns + GRACE_S * 1e9:
                self._reply(request, done=False, error="The agent did not take the mark in time. Is it busy, or away?")
                continue
            asked.append(one)
        for outcome in outcomes:
            self._enter(outcome, entries)
        self.asked = tuple(asked)

    def _answer(self, request: Request, outcome: Outcome, entries: Mapping[str, Entry]) -> None:
        """Say that it is refused, taken, or durable, unless that is said."""
        if outcome.error:
            self._reply(request, done=False, error=outcome.error)
            return
        durable = {name: self._durable(name, Position.parse(mark.position), entries) for name, mark in outcome.marks.items()}
        lost = [name for name, known in durable.items() if known is False]
        if lost:
            self._reply(request, done=False, error=f"The host's memory was lost before Kafka had the mark of {', '.join(lost)}")
            return
        all_durable = all(durable.values())
        if all_durable:
            self._enter(outcome, entries)
        known = entries.get(f"answer/{request.id}")
        if isinstance(known, Answer) and known.attributes.get("durable") == ("true" if all_durable else "false"):
            return
        first = outcome.marks[request.volume] if request.volume in outcome.marks else next(iter(outcome.marks.values()))
        self._reply(
            request,
            done=True,
            position=first.position,
            positions=",".join(f"{name}={mark.position}" for name, mark in sorted(outcome.marks.items())),
            capture_time_ns=str(max(mark.capture_time_ns for mark in outcome.marks.values())),
            stopped_ms=str(outcome.stopped_ms),
            durable="true" if all_durable else "false",
        )

    def _enter(self, outcome: Outcome, entries: Mapping[str, Entry]) -> None:
        """Have the labels of marks that Kafka has stand as given; of volumes that are this agent's still."""
        asked = outcome.asked
        for name, mark in outcome.marks.items():
            if bookmark_key(name, asked.label) in entries or not self._is_mine(name, entries):
                continue
            position = Position.parse(mark.position)
            if self._durable(name, position, entries):
                self._put(Bookmark(name, asked.label, asked.group, position, mark.capture_time_ns))

    def _durable(self, volume: str, position: Position, entries: Mapping[str, Entry]) -> bool | None:
        """Tell whether Kafka has a position; None: not yet, False: it never will, because the memory that held it is lost."""
        claim, ring = entries.get(f"epoch/{volume}"), self._find(volume)
        if isinstance(claim, EpochClaim) and claim.is_won and claim.epoch > position.epoch:
            return claim.first_sequence > position.sequence  # the claimant went on behind the log's end
        if ring is None or ring.words[layout.W_EPOCH] != position.epoch:
            return None
        return True if ring.words[layout.W_ACKED] >= position.sequence else None

    def _checked(
        self, request: Request, entries: Mapping[str, Entry], asked: Iterable[Asked], outcomes: Iterable[Outcome]
    ) -> Asked:
        """Return what is asked. Raises ConfigError with the sentence that refuses it."""
        told = request.attributes
        names = tuple(sorted({*told.get("members", "").split(","), request.volume} - {""}))
        if not _ID.fullmatch(request.id):
            raise ConfigError("The id of the request can't be used", hint="Use up to 255 letters, digits, dashes, dots, colons.")
        label, group = check_label(told.get("label", "")), told.get("group", "")
        if group:
            check_group_name(group)
        until_ns = told.get("until_ns", "")
        if not _TIME_NS.fullmatch(until_ns) or int(until_ns) > time.time_ns() + UNTIL_S_MAX * 1e9:
            raise ConfigError("The request does not say until when", hint=f"until_ns is at most {UNTIL_S_MAX:.0f} s from now.")
        if len(names) > GROUP_VOLUMES_MAX:
            raise ConfigError(f"{len(names)} volumes are too many for one barrier", hint=f"At most {GROUP_VOLUMES_MAX}.")
        for name in names:
            self._check_mine(check_volume_name(name), group, entries)
            known = entries.get(bookmark_key(name, label))
            if isinstance(known, Bookmark):
                raise label_given(known)
            marked = (one.asked for one in outcomes if name in one.marks)
            if any(one.label == label and name in one.volumes for one in (*asked, *marked)):
                raise ConfigError(f"The label {label!r} is being given to volume {name} just now", hint="Choose another label.")
        return Asked(request.id, label, group, names, int(until_ns))

    def _is_mine(self, name: str, entries: Mapping[str, Entry]) -> bool:
        declared = entries.get(f"volume/{name}")
        return isinstance(declared, VolumeDeclaration) and declared.agent == self._agent and declared.state != "removed"

    def _check_mine(self, name: str, group: str, entries: Mapping[str, Entry]) -> None:
        declared = entries.get(f"volume/{name}")
        of_group = f" of the group {group}" if group else ""
        if not isinstance(declared, VolumeDeclaration) or declared.state == "removed":
            raise ConfigError(f"Volume {name}{of_group} is not protected", hint="See `hostoffload volume list`, `hostoffload group list`.")
        if declared.agent != self._agent:
            raise ConfigError(
                f"Volume {name}{of_group} is served by the agent {declared.agent}, not {self._agent}",
                hint="A group's volumes are of one host.",
            )
        if declared.state == "paused":
            raise ConfigError(f"Volume {name}{of_group} is paused", hint=f"hostoffload volume resume {name}")


def _open(entries: Mapping[str, Entry]) -> list[Request]:
    """Return the requests whose answer is not final, the oldest first."""
    found = [entry for entry in list(entries.values()) if isinstance(entry, Request) and entry.kind == KIND]
    return sorted((one for one in found if not _is_final(entries, one)), key=lambda one: (one.asked_at_ns, one.id))


def _is_final(entries: Mapping[str, Entry], request: Request) -> bool:
    answer = entries.get(f"answer/{request.id}")
    return isinstance(answer, Answer) and (not answer.done or answer.attributes.get("durable") == "true")


def _sentence(error: ConfigError) -> str:
    return f"{error.sentence}. {error.hint}" if error.hint else error.sentence
