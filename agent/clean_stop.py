"""The clean-stop marker: what a volume was when its agent stopped with everything delivered.

Written in DATA only, with nothing owed, the ring acknowledged and the source flushed (design rule 14); removed durably before
anything is served again. It stands in the activity log. A marker that can't be read is no marker.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass

from agent.sealed_text import seal, unseal
from agent.source import SourceIdentity


@dataclass(frozen=True, slots=True)
class CleanStop:
    """The marker: where the stream stood, and what the source was."""

    topic_id: str
    position: str
    source: SourceIdentity


def encode(marker: CleanStop) -> bytes:
    """Return the marker as it is stored."""
    return seal(json.dumps(asdict(marker), sort_keys=True))


def decode(raw: bytes) -> CleanStop | None:
    """Return the marker; None if it is none that can be believed."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        body = json.loads(unseal(raw))
        return CleanStop(body["topic_id"], body["position"], SourceIdentity(**body["source"]))
    return None
