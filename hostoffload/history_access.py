"""The way from a command to a volume's history: the store in use, Kafka if one is known, scratch files in the state folder.

Used by commands that recover. Kafka may be away or unknown: the opener then says that the newest points may be missing.
"""

from __future__ import annotations

from hostoffload import layout
from hostoffload.context import Context
from recovery.opening import Opener
from stream.topic_names import check_volume_name


def history_of(context: Context, volume: str) -> Opener:
    """Return an opener of a volume's points; to be closed. Raises ConfigError."""
    scratch = layout.exports_dir(context.state_dir)
    return Opener(context.config_for_recovery(), check_volume_name(volume), scratch=scratch if scratch.is_dir() else None)
