"""Points as people write them: what may stand for a moment of a volume's history, and how a moment is printed.

`latest`, a bookmark's label, a position, an ISO 8601 time with fraction, or `-30s` before now. Pure; used by every command that takes a
POINT. What is wanted need not exist: the planner tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from stream.errors import ConfigError
from stream.position import Position

LATEST = "latest"
LABEL_CHARACTERS_MAX = 255
NS_PER_S = 1_000_000_000
_UNITS_NS = {"ms": 1_000_000, "s": NS_PER_S, "m": 60 * NS_PER_S, "h": 3600 * NS_PER_S, "d": 86_400 * NS_PER_S}
_AGO = re.compile(r"-(\d{1,9})(?:\.(\d{1,9}))?(ms|s|m|h|d)")
_POSITION = re.compile(r"\d{8}-\d{16}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)? ?(Z|z|[+-]\d\d:?\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest recovery point."""

    def __str__(self) -> str:
        return LATEST


@dataclass(frozen=True, slots=True)
class AtPosition:
    """Exactly this position."""

    position: Position

    def __str__(self) -> str:
        return str(self.position)


@dataclass(frozen=True, slots=True)
class AtTime:
    """The last recovery point captured at or before this time, ns since 1970 on the agent's clock."""

    time_ns: int

    def __str__(self) -> str:
        return format_time(self.time_ns)


@dataclass(frozen=True, slots=True)
class Ago:
    """The last recovery point at or before now less `age_ns`."""

    age_ns: int

    def __str__(self) -> str:
        return f"-{self.age_ns / NS_PER_S:g}s"


@dataclass(frozen=True, slots=True)
class AtBookmark:
    """The bookmark of this label; the newest if there are several."""

    label: str

    def __str__(self) -> str:
        return self.label


Wanted = Latest | AtPosition | AtTime | Ago | AtBookmark


def parse_point(text: str) -> Wanted:
    """Return what a POINT asks for; what looks like nothing else is a bookmark's label. Raises ConfigError.

    A time without an offset is this machine's local time; ns are kept exactly.
    """
    if text == LATEST:
        return Latest()
    if _POSITION.fullmatch(text):
        return AtPosition(Position.parse(text))
    if match := _AGO.fullmatch(text):
        whole, fraction, unit = match.groups()
        return Ago(int(whole) * _UNITS_NS[unit] + int((fraction or "0").ljust(9, "0")) * _UNITS_NS[unit] // NS_PER_S)
    if match := _TIME.fullmatch(text):
        return AtTime(_time_ns(text, match))
    if not text or len(text) > LABEL_CHARACTERS_MAX or text.startswith("-"):
        raise ConfigError(f"{text!r} is not a point", hint=_HINT)
    return AtBookmark(text)


def format_time(time_ns: int) -> str:
    """Return a capture time in UTC with all its digits; `parse_point` reads it back."""
    when = _EPOCH + timedelta(seconds=time_ns // NS_PER_S)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{time_ns % NS_PER_S:09d}Z"


def _time_ns(text: str, match: re.Match[str]) -> int:
    day, minute, second, fraction, offset = match.groups()
    zone = "" if offset is None else "+00:00" if offset in "Zz" else offset
    try:
        when = datetime.fromisoformat(f"{day}T{minute or '00:00'}:{second or '00'}{zone}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{text!r} is no time: {error}", hint=_HINT) from error
    since = when - _EPOCH
    if since.days < 0:
        raise ConfigError(f"{text!r} lies before 1970", hint=_HINT)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + int((fraction or "0").ljust(9, "0"))


_HINT = "A point is `latest`, a bookmark, a position, a time such as 2026-01-31T12:00:00.5Z, or -30s (ms, s, m, h, d before now)."
