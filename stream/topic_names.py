"""The names of topics and volumes: pure, for whoever needs no Kafka client."""

from __future__ import annotations

import re

from stream.errors import ConfigError

VOLUME_NAME_CHARACTERS_MAX = 63
_VOLUME_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_DATA_TOPIC = re.compile(r"ho\.([a-z0-9][a-z0-9-]*)\.(writes|journal)")


def check_volume_name(name: str) -> str:
    """Return the name if a volume may have it. Raises ConfigError."""
    if not _VOLUME_NAME.fullmatch(name) or len(name) > VOLUME_NAME_CHARACTERS_MAX:
        raise ConfigError(
            f"{name!r} is not a volume name",
            hint=f"Use lower-case letters, digits and dashes, at most {VOLUME_NAME_CHARACTERS_MAX}, not starting with a dash.",
        )
    return name


def writes_topic(volume: str) -> str:
    return f"ho.{volume}.writes"


def journal_topic(volume: str) -> str:
    return f"ho.{volume}.journal"


def volume_of(topic: str) -> str | None:
    """Return the volume whose data topic this is, or None."""
    match = _DATA_TOPIC.fullmatch(topic)
    return match.group(1) if match else None
