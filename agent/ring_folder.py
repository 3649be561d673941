"""The ring folder after its processes have ended: what nobody needs any more is given back.

Called by `down`, when no process of the agent lives. A ring is needed as long as it says anything that the disk does not:

- that of a volume which is protected no more says nothing to anybody;
- that of a volume which stopped clean says what the marker in its activity log says (design rule 14): the next start claims a new
  epoch, which the marker proves to be clean. It is kept all the same where the caller wants the next start to serve without Kafka;
- every other is kept, with all that lies in the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from agent import activity_log, digest_file
from agent import declared as declared_file
from agent import ring as layout
from agent.activity_log import ActivityLog
from agent.clean_stop import CleanStop
from agent.modes import Mode
from agent.ring import VolumeRing
from agent.source import SourceIdentity, lock_file
from stream.errors import ConfigError, IntegrityError
from stream.log import event

_log = logging.getLogger(__name__)


def give_back(ring_dir: Path, state_dir: Path, *, stopped: bool) -> list[str]:
    """Remove the rings that are not needed, those of volumes that stopped clean only if `stopped`; the folder with the last one.

    Return the names of their volumes. Nothing is touched while a process of the agent holds its lock. Raises OSError.
    """
    if not ring_dir.is_dir():
        return []
    with contextlib.ExitStack() as locks:
        try:
            for name in ("capture", "publisher"):
                locks.callback(os.close, lock_file(state_dir / "agent" / f"{name}.lock", "The agent's state folder"))
        except ConfigError:
            return []
        states = _states(state_dir)
        given = []
        for path in sorted(ring_dir.glob("*.ring")):
            name = path.stem
            if states.get(name) == "removed" or (stopped and _stopped_clean(path, activity_log.path_of(state_dir, name))):
                path.unlink()
                digest_file.path_of(ring_dir, name).unlink(missing_ok=True)
                given.append(name)
        if not any(ring_dir.glob("*.ring")):
            for path in ring_dir.iterdir():
                path.unlink()
            ring_dir.rmdir()
    event(_log, logging.INFO, "rings_given_back", volumes=",".join(given) or None)
    return given


def _states(state_dir: Path) -> dict[str, str]:
    try:
        return {one.volume: one.state for one in declared_file.read(declared_file.path_of(state_dir)).volumes}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _stopped_clean(path: Path, log: Path) -> bool:
    """Tell whether the marker in the activity log says all that the ring says."""
    try:
        ring, marker = VolumeRing.attach(path), ActivityLog.clean_at(log)
    except (OSError, IntegrityError):
        return False
    try:
        words = ring.words
        source = SourceIdentity(words[layout.W_STOP_INODE], words[layout.W_STOP_SIZE], words[layout.W_STOP_MTIME_NS])
        at_rest = (
            words[layout.W_STOPPED]
            and words[layout.W_MODE] == Mode.OFFLINE
            and words[layout.W_HEAD] == words[layout.W_ACKED]
            and words[layout.W_SYNC_STATE] == layout.SYNC_NONE
        )
        doubtful = words[layout.W_FENCED] or words[layout.W_LOST] or words[layout.W_GAP_OPEN] or ring.owed_bytes()
        told = CleanStop(ring.text("topic_id"), str(ring.position(layout.W_HEAD)), source)
        return bool(at_rest) and not doubtful and marker == told
    finally:
        ring.close()
