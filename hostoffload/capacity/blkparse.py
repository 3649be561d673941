"""The text of blkparse(1), in its default format: `8,0 3 1 0.000000000 697 Q W 223490 + 8 [kjournald]`.

Device, processor, sequence, seconds, process, action, kind, sector, `+`, sectors, name. A request appears once for each action; one action
alone is counted: `Q`, what was asked of the device; where the trace lacks it `C`, what was completed, or `D`, what was sent to the drive.
"""

from __future__ import annotations

import re

from hostoffload.capacity.events import EventCount
from hostoffload.capacity.workload import Workload
from stream.errors import ConfigError

SECTOR_BYTES = 512
EVENT = re.compile(r"\s*(\d+,\d+)\s+\d+\s+\d+\s+(\d+\.\d+)\s+\d+\s+([A-Za-z]{1,2})\s+(\S+)(?:\s+(\d+)\s+\+\s+(\d+))?")
_SUMMARY = re.compile(r"(?:CPU\d+|Total) \(")
_ACTIONS = ("Q", "C", "D")


class BlkparseReader:
    """Count the writes of one device. What follows the trace, blkparse's own summary, is passed over."""

    form = "blkparse text"

    def __init__(self, first: list[str], device: str | None, windows_s: tuple[int, ...]) -> None:
        """`first` are lines of the trace that tell which action it has."""
        has = {match[3] for line in first if (match := EVENT.match(line)) and "W" in match[4]}
        self._action = next((one for one in _ACTIONS if one in has), _ACTIONS[0])
        self._device = device
        self._devices: set[str] = set()
        self._count = EventCount(windows_s)
        self._begin_s: float | None = None
        self._counted = 0
        self._over = False

    def take(self, line: str) -> str | None:
        """Take a line; return why it is bad, None if it is not. Raises ConfigError for a second device."""
        if self._over or not line.strip():
            return None
        match = EVENT.match(line)
        if match is None:
            self._over = _SUMMARY.match(line) is not None
            return None if self._over else "it is no event of blkparse's"
        device, at, action, kind, sector, sectors = match.groups()
        if self._device is not None and device != self._device:
            return None
        self._devices.add(device)
        if len(self._devices) > 1:
            told = " and ".join(sorted(self._devices))
            raise ConfigError(f"The trace has more than one device: {told}", hint=f"Say which: --device {device}")
        return self._event(float(at), action, kind, sector, sectors)

    def finish(self) -> tuple[Workload | None, tuple[str, ...]]:
        """Return the workload from the first event of the device to its last."""
        if self._begin_s is None:
            return None, ()
        notes = [f"action {self._action} is counted, {self._counted} writes"]
        if not self._counted:
            notes.append("no write is in the trace: was it made with reads alone?")
        return self._count.workload(f"{self.form} of {next(iter(self._devices))}"), tuple(notes)

    def _event(self, at_s: float, action: str, kind: str, sector: str | None, sectors: str | None) -> str | None:
        if self._begin_s is None:
            self._begin_s = at_s
        at_s = max(0.0, at_s - self._begin_s)
        if not self._count.pass_to(at_s):
            return f"its time is {at_s:.0f} s after the first event"
        if action != self._action or sectors is None:  # a flush has no sectors
            return None
        if "D" in kind:
            self._count.trim(int(sectors) * SECTOR_BYTES)
        elif "W" in kind and int(sectors):
            self._count.write(at_s, int(sector or 0) * SECTOR_BYTES, int(sectors) * SECTOR_BYTES)
            self._counted += 1
        return None
