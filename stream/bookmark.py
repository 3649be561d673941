"""Bookmarks: what a label may be, and what a group's name may be. The one place where both are checked.

A point of recovery is given as `latest`, a bookmark's label, a position, a time or a time before now; so no label may look like another of
these. Used by the command line, which refuses early, and by the agent, which refuses for good.
"""

from __future__ import annotations

import re
from datetime import datetime

from stream.control import Bookmark
from stream.errors import ConfigError
from stream.topics import check_volume_name

LABEL_CHARACTERS_MAX = 128
GROUP_VOLUMES_MAX = 64
_POSITION = re.compile(r"\d{8}-\d{16}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?)? ?([Zz]|[+-]\d\d:?\d\d)?")
_WORDS = frozenset({"latest"})


def check_label(label: str) -> str:
    """Return the label if a bookmark may have it. Raises ConfigError."""
    if not label or label != label.strip() or not label.isprintable() or len(label) > LABEL_CHARACTERS_MAX:
        raise ConfigError(
            f"{label!r} is not a label",
            hint=f"Use 1 to {LABEL_CHARACTERS_MAX} printable characters, not beginning or ending with a space.",
        )
    if label.startswith("-") or label.lower() in _WORDS or _POSITION.fullmatch(label) or _is_time(label):
        raise ConfigError(
            f"The label {label!r} reads like another kind of point",
            hint="It must be no position, no time, not `latest`, and not begin with a dash: `before-upgrade`, for example.",
        )
    return label


def check_group_name(name: str) -> str:
    """Return the name if a group may have it: groups and volumes share their names' form. Raises ConfigError."""
    try:
        return check_volume_name(name)
    except ConfigError as error:
        raise ConfigError(f"{name!r} is not a group name", hint=error.hint) from error


def label_given(known: Bookmark) -> ConfigError:
    """Return the refusal of a label that the volume has given already."""
    return ConfigError(
        f"Volume {known.volume} has a bookmark {known.label!r} already, at {known.position}",
        hint="A label is given once in a volume's life: choose another one.",
        volume=known.volume,
        position=known.position,
    )


def _is_time(text: str) -> bool:
    """Tell whether it is a time, or looks so much like one that it would be taken for a wrong one."""
    if _TIME.fullmatch(text):
        return True
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
