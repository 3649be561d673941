"""Figures as people say them: bytes in decimal units, as disks are sold, and times in the words of the retention table. Pure."""

from __future__ import annotations

UNKNOWN = "unknown"
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


def size(count: float | None) -> str:
    """Return a number of bytes."""
    if count is None:
        return UNKNOWN
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.5 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB" if count < 99.5 else f"{count:.0f} PB"


def rate(bytes_per_s: float | None) -> str:
    """Return bytes a second."""
    return UNKNOWN if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def span(seconds: float | None) -> str:
    """Return a time; None is for ever."""
    if seconds is None:
        return "ever"
    for unit_s, unit in _SPANS:
        if seconds >= unit_s and (seconds % unit_s == 0 or seconds >= 10 * unit_s):
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 or seconds == int(seconds) else f"{seconds:.2g} s"
