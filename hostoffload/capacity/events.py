"""Single writes, each with its time and its extent, counted into a workload. Pure; blkparse's text and the pass-through come here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hostoffload.capacity.overwrites import BLOCK_BYTES, PAGE_BLOCKS, PAGES_MAX, OverwriteCount
from hostoffload.capacity.workload import Interval, Workload

SECONDS_MAX = 31 * 86_400
"""A workload is watched or traced for this long at most: each second is kept."""
_OVERRUN = (
    f"the writes touched more than {PAGES_MAX * PAGE_BLOCKS * BLOCK_BYTES >> 30} GiB in pieces of {PAGE_BLOCKS * BLOCK_BYTES >> 20} MiB"
)

_IDLE = Interval(1.0, 0, 0)


class EventCount:
    """Count writes by whole seconds from the first moment on. Times in seconds since then; one before the latest counts as that."""

    def __init__(self, windows_s: Iterable[int]) -> None:
        self._overwrites = OverwriteCount(windows_s)
        self._payload_bytes = [0]
        self._writes = [0]
        self._trimmed_bytes = 0

    def pass_to(self, at_s: float) -> bool:
        """Let time go on; False, and nothing changes, if it went too far (`SECONDS_MAX`)."""
        missing = int(at_s) + 1 - len(self._writes)
        if len(self._writes) + missing > SECONDS_MAX:
            return False
        if missing > 0:
            self._payload_bytes += [0] * missing
            self._writes += [0] * missing
        return True

    def write(self, at_s: float, offset_bytes: int, length_bytes: int) -> bool:
        """Count a write; False as for `pass_to`."""
        if not self.pass_to(at_s):
            return False
        self._payload_bytes[-1] += length_bytes
        self._writes[-1] += 1
        self._overwrites.add(len(self._writes) - 1, offset_bytes, length_bytes)
        return True

    def trim(self, length_bytes: int) -> None:
        """Count bytes that were trimmed or zeroed: they travel without payload."""
        self._trimmed_bytes += length_bytes

    def workload(self, source: str, **facts: Any) -> Workload:
        """Return what was counted; the last second counts whole. `facts` are further fields of the workload."""
        counted = self._overwrites.finish(len(self._writes))
        return Workload(
            source,
            [Interval(1.0, *one) if one[1] else _IDLE for one in zip(self._payload_bytes, self._writes, strict=True)],
            counted,
            _OVERRUN if counted is None else "",
            trimmed_bytes=self._trimmed_bytes,
            **facts,
        )
