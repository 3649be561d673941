"""Opening a ring: the one that is there if it can be gone on from, else a new one that says what the clean-stop marker proves.

Called by `served` with the source locked. A ring in which nothing was decided yet is made anew, so that a kill in the middle of a start
decides again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from agent import ring as layout
from agent.clean_stop import CleanStop
from agent.ring import VolumeRing
from agent.source import SourceIdentity
from stream.errors import FencedError, IntegrityError
from stream.log import event

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedRing:
    """The ring; `fresh` if it was made now. `source_changed`: there was a clean stop, and somebody wrote to the source since."""

    ring: VolumeRing
    fresh: bool
    source_changed: bool = False


def open_ring(
    path: Path, volume: str, source: SourceIdentity, stopped: CleanStop | None, *, fence_lifted: bool = False
) -> OpenedRing:
    """Attach to the ring, or make a new one. Raises ConfigError when memory is short, FencedError for a ring that says so."""
    ring = _attach(path, volume, source)
    if ring is not None and not ring.words[layout.W_FENCED]:
        return OpenedRing(ring, fresh=False)
    if ring is not None:
        epoch = ring.words[layout.W_EPOCH]
        ring.close()
        if not fence_lifted:
            raise FencedError(
                f"Volume {volume} was fenced: a newer epoch than {epoch} exists",
                hint="Another agent took it over. `hostoffload volume add --take-over` claims it back.",
                volume=volume,
            )
    path.unlink(missing_ok=True)
    ring = VolumeRing.create(path, volume, source.size_bytes)
    ring.words[layout.W_SOURCE_INODE] = source.inode
    believed = stopped is not None and stopped.source == source
    if believed:
        assert stopped is not None
        ring.set_text("believed", stopped.position)
        ring.set_text("topic_id", stopped.topic_id)
    ring.words[layout.W_CLEAN] = layout.CLEAN_SOURCE if believed else layout.CLEAN_NOT
    ring.words[layout.W_MODE_SINCE_NS] = time.time_ns()
    ring.set_text("mode_reason", "waiting for an epoch")
    return OpenedRing(ring, fresh=True, source_changed=stopped is not None and not believed)


def _attach(path: Path, volume: str, source: SourceIdentity) -> VolumeRing | None:
    """Return the ring of this source if one was begun; None if there is none to go on from."""
    try:
        ring = VolumeRing.attach(path)
    except FileNotFoundError:
        return None
    except IntegrityError as error:
        event(_log, logging.ERROR, "ring_discarded", volume=volume, reason=error)
        return None
    words = ring.words
    if not words[layout.W_BEGUN]:
        reason = "nothing was decided in it"
    elif (ring.text("volume"), ring.size_bytes) != (volume, source.size_bytes):
        reason = f"it is for {ring.size_bytes} bytes, the source has {source.size_bytes}"
    elif words[layout.W_LOST]:
        reason = "its topic was made anew"
    elif words[layout.W_SOURCE_INODE] != source.inode:
        reason = "it is for another source"
    else:
        return ring
    event(_log, logging.WARNING, "ring_discarded", volume=volume, reason=reason)
    ring.close()
    return None
