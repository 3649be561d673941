"""The small journal beside an unfinished restore: which parts of the target are written and durable, so that a killed one goes on.

One line of JSON says what is restored where; then groups, each the account of one window of the volume, appended after the target's bytes
were durable. A group that was cut off or damaged counts for nothing, and neither does what stands behind it. The lock on the file
keeps a second restore to the same target away.

    group = "HOWG" ‖ window u64 ‖ count u64 ‖ count runs of 24 bytes ‖ xxh3_64 of all before, u64        (little-endian)
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import xxhash

from recovery.runs import Runs, pack_runs, unpack_runs
from stream.errors import RetryError

_GROUP = struct.Struct("<4sQQ")
_SUM = struct.Struct("<Q")
_MAGIC = b"HOWG"
RUN_BYTES = 24


class RestoreJournal:
    """An open and locked journal. `windows` maps the number of each finished window to its runs."""

    def __init__(self, path: Path, subject: Mapping[str, object]) -> None:
        """Open the journal at `path`; what it says counts if it is of the same `subject`, else it is begun anew (`resumed` tells).

        Raises RetryError while another restore has it, OSError.
        """
        self.path = path
        self.windows: dict[int, Runs] = {}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.resumed = self._load(json.dumps(dict(subject), sort_keys=True).encode() + b"\n")
        except BlockingIOError as error:
            os.close(self._fd)
            raise RetryError(f"Another restore writes there: {path} is locked", hint="Wait for it, or end it.", path=path) from error
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, window: int, runs: Runs) -> None:
        """Note durably that a window is finished; its bytes are durable already."""
        body = _GROUP.pack(_MAGIC, window, len(runs)) + pack_runs(runs)
        os.pwrite(self._fd, body + _SUM.pack(xxhash.xxh3_64_intdigest(body)), self._end)
        os.fdatasync(self._fd)
        self._end = os.fstat(self._fd).st_size
        self.windows[window] = runs

    def remove(self) -> None:
        """End the journal: the target is finished, or given up."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of it; it stays for the next restore. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _load(self, head: bytes) -> bool:
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        resumed = data.startswith(head)
        self._end = len(head)
        if not resumed:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, head, 0)
            os.fdatasync(self._fd)
            return False
        while (group := _group(data, self._end)) is not None:
            window, runs, self._end = group
            self.windows[window] = runs
        os.ftruncate(self._fd, self._end)
        return True


def _group(data: bytes, at: int) -> tuple[int, Runs, int] | None:
    """Return window, runs and end of the group at `at`, None if there is no whole one."""
    if at + _GROUP.size > len(data):
        return None
    magic, window, count = _GROUP.unpack_from(data, at)
    end = at + _GROUP.size + count * RUN_BYTES
    if magic != _MAGIC or end + _SUM.size > len(data) or _SUM.unpack_from(data, end)[0] != xxhash.xxh3_64_intdigest(data[at:end]):
        return None
    return window, unpack_runs(data[at + _GROUP.size : end]), end + _SUM.size
