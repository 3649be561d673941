"""What a session of the target is given: its task, its surroundings, and the requests that it makes of others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cx_consumers.checkpoint import CheckpointFile
from cx_consumers.replica import ReplicaVolume
from cx_consumers.target_digests import Inbox
from cx_consumers.target_facts import VolumeFacts
from cx_consumers.target_log import JournalLog
from cx_consumers.target_store import StoredHistory
from cx_consumers.target_verify import VerifyState, spans_text
from stream.config import Config
from stream.control import Answer, Request
from stream.journal import OpenGap


@dataclass(frozen=True, slots=True)
class Task:
    """What a session has to do: keep the replica of a volume at `path`, `delay_s` behind."""

    volume: str
    path: str
    size_bytes: int
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session works with; `put` writes a request or an answer into `ho.control` (RetryError if it can't), `publish` tells the
    volume's facts, `digests` are the requests that others make of it.

    `history` has what the journal no longer has, None where nothing does.
    """

    config: Config
    file: CheckpointFile
    open_log: Callable[[], JournalLog]
    open_replica: Callable[[str, Sequence[int], str | None], ReplicaVolume]
    put: Callable[[Request | Answer], None]
    publish: Callable[[VolumeFacts], None]
    stopped: threading.Event
    digests: Inbox = field(default_factory=Inbox)
    history: StoredHistory | None = None


def resync_request(volume: str, target: str, gap: OpenGap, newest_ns: int | None = None) -> Request:
    """Return the request for a resync of the volume that closes a target's own gap; asking again for a gap repeats the same request.

    A later gap at the same position (a replica made anew) is another request: the first one may have been answered long ago. So is one
    that is asked for because order began a gap since, at `newest_ns`: what was to close this one may be what is lost.
    """
    return Request(
        f"resync.{volume}.{target}.{gap.position}.{newest_ns or gap.begun_at_ns:x}",
        "resync",
        volume,
        {"reason": gap.reason, "gap": str(gap.position)},
        f"target/{target}",
        gap.begun_at_ns,
    )


def repair_request(volume: str, target: str, verify: VerifyState, at_ns: int) -> Request:
    """Return the request for a resync of what verification found to differ and nobody was asked for yet.

    It is named by the mark that found the first of it, so asking again after a crash repeats the same request.
    """
    return Request(
        f"verify-{volume}-{verify.unasked_at}-{target}",
        "resync",
        volume,
        {"reason": "verify_mismatch", "gap": "", "extents": spans_text(verify.unasked)},
        f"target/{target}",
        at_ns,
    )
