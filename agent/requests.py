"""Requests that capture carries out, resync and verify: checked, and handed over as many at a time as the ring can tell back.

Pure. What is wrong with a request is said in its answer; it never reaches capture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.declared import Resync
from agent.extent_list import parse_extents
from stream.control import Request
from stream.errors import ConfigError
from stream.extent import VOLUME_BYTES_MAX
from stream.position import Position

KINDS = ("resync", "verify")
REASON_CHARACTERS_MAX = 200
HANDED_BYTES_MAX = 900  # of ids at once for a volume: capture tells back what it did in a text of 1024 (`handled`)
_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,255}")
_GAP_TIME = re.compile(r"[0-9a-f]{1,16}")


@dataclass(slots=True)
class Handover:
    """What capture is to do, by volume, and what is wrong with requests, by their ids."""

    resyncs: dict[str, tuple[Resync, ...]] = field(default_factory=dict)
    verifies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def hand_over(requests: Iterable[Request], sizes: Mapping[str, int | None]) -> Handover:
    """Check open requests for volumes of these sizes, others left out; the oldest are handed over first.

    A size that is not known (None) makes a request that names extents wait: they may be right or not.
    """
    found, handed = Handover(), dict.fromkeys(sizes, 0)
    for request in sorted(requests, key=lambda one: (one.asked_at_ns, one.id)):
        if request.volume not in sizes or request.kind not in KINDS:
            continue
        try:
            asked = _checked(request, sizes[request.volume] or VOLUME_BYTES_MAX)
        except ConfigError as error:
            found.wrong[request.id] = f"{error.sentence}. {error.hint}" if error.hint else error.sentence
            continue
        if isinstance(asked, Resync) and asked.extents and sizes[request.volume] is None:
            continue
        handed[request.volume] += len(request.id) + 1
        if handed[request.volume] > HANDED_BYTES_MAX:
            continue
        if isinstance(asked, Resync):
            found.resyncs[request.volume] = (*found.resyncs.get(request.volume, ()), asked)
        else:
            found.verifies[request.volume] = (*found.verifies.get(request.volume, ()), asked)
    return found


def _checked(request: Request, size_bytes: int) -> Resync | str:
    """Return what is asked of capture, a verify as its id alone. Raises ConfigError."""
    if not _ID.fullmatch(request.id):
        raise ConfigError("The id of the request can't be used", hint="Use up to 255 letters, digits, dashes, dots, colons.")
    if request.kind == "verify":
        return request.id
    told = request.attributes
    gap = told.get("gap", "")
    if gap:
        position, slash, begun = gap.partition("/")
        Position.parse(position)
        if slash and not _GAP_TIME.fullmatch(begun):
            raise ConfigError(f"{gap!r} is no gap's name", hint="A position; of persist's holes also a slash and a time in hexadecimal.")
    reason = told.get("reason", "")[:REASON_CHARACTERS_MAX] or "requested"
    return Resync(request.id, reason, gap, parse_extents(told.get("extents", ""), size_bytes))
