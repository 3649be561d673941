"""The pass-through: a file or device served over NBD as it is, and what clients write to it counted.

`PassThrough` is a device like that of `nbd.filedevice`, but its sessions tell each write after it succeeded; nothing of the agent's or the
server's own way of a write is touched. Payload is not kept, but for samples that are compressed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from hostoffload.capacity.events import EventCount
from hostoffload.capacity.workload import Workload
from nbd.blockfile import BlockFile
from nbd.device import Pieces
from nbd.filedevice import FileDevice, FileSession
from stream.compression import compress

DRAIN_INTERVAL_S = 0.2
EARLY_S = 0.05
SAMPLE_BYTES_MAX = 256 << 10
"""Payload that is compressed each time: as much as a message holds, so that the ratio is a message's."""


class PassThrough:
    """A `BlockDevice` over a file that counts what is written. `watch` is called by one thread while a server uses it."""

    read_only = False

    def __init__(
        self, path: str, windows_s: Sequence[int], codecs: tuple[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open `path`. `codecs` are the journal's and the folds'. Raises OSError."""
        self._device = FileDevice(path)
        self._windows_s = windows_s
        self._tally = Tally(clock)
        self._ratios = tuple(Ratio(codec) for codec in codecs)
        self._clock = clock

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def open_session(self) -> CountedSession:
        """Open a session for a new connection."""
        return CountedSession(self._device.file, self._tally)

    def watch(self, source: str, seconds: float, stop: threading.Event) -> Workload:
        """Count for that long, or until `stop`; return what came in the whole seconds of that time, the first one in any case."""
        count = EventCount(self._windows_s)
        begun_s = self._clock()
        while (left_s := begun_s + seconds - self._clock()) > 0 and not stop.is_set():
            stop.wait(min(DRAIN_INTERVAL_S, left_s))
            self._drain(count, begun_s, int(self._clock() - begun_s))
        watched = max(1, int(min(seconds, self._clock() - begun_s) + EARLY_S))
        self._drain(count, begun_s, watched)
        count.pass_to(watched - 0.5)
        journal, folds = (ratio.value for ratio in self._ratios)
        return count.workload(source, ratio=journal, fold_ratio=folds, size_bytes=self.size_bytes)

    def close(self) -> None:
        """Close the file; no session may be used afterwards."""
        self._device.close()

    def _drain(self, count: EventCount, begun_s: float, until: int) -> None:
        """Count what came before second `until`."""
        for at_s, offset, length in self._tally.taken(begun_s + until):
            if offset is None:
                count.trim(length)
            else:
                count.write(max(0.0, at_s - begun_s), offset, length)
        sample = self._tally.sampled()
        for ratio in self._ratios:
            ratio.add(sample)


Event = tuple[float, int | None, int]
"""When, where (None: trimmed or zeroed), how many bytes."""


class Tally:
    """What sessions leave for the watch to take: events, and payload until there is enough of it. Appending is one step for any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: deque[Event] = deque()
        self._samples: deque[bytes] = deque()
        self._room_bytes = SAMPLE_BYTES_MAX

    def wrote(self, offset_bytes: int, length_bytes: int, pieces: Pieces) -> None:
        """Hear of a write that succeeded."""
        self._events.append((self._clock(), offset_bytes, length_bytes))
        if self._room_bytes > 0:
            sample = b"".join(pieces) if isinstance(pieces, list) else bytes(pieces)
            self._room_bytes -= len(sample)
            self._samples.append(sample)

    def trimmed(self, length_bytes: int) -> None:
        """Hear of a trim or zeroing that succeeded."""
        self._events.append((self._clock(), None, length_bytes))

    def taken(self, until_s: float) -> Iterator[Event]:
        """Take the events that came before then, in order."""
        while self._events and self._events[0][0] < until_s:
            yield self._events.popleft()

    def sampled(self) -> bytes:
        """Take the payload that is there now, and ask for more."""
        sample = b"".join(self._samples.popleft() for _ in range(len(self._samples)))
        self._room_bytes = SAMPLE_BYTES_MAX
        return sample


class Ratio:
    """Payload divided by its size under a codec, over all samples; a sample is cut as messages are."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._payload_bytes = self._packed_bytes = 0

    @property
    def value(self) -> float | None:
        """Return the ratio, None if there was no payload."""
        return self._payload_bytes / self._packed_bytes if self._packed_bytes else None

    def add(self, sample: bytes) -> None:
        """Compress a sample."""
        for at in range(0, len(sample), SAMPLE_BYTES_MAX):
            part = sample[at : at + SAMPLE_BYTES_MAX]
            self._payload_bytes += len(part)
            self._packed_bytes += len(compress(self._codec, part)[1])


class CountedSession(FileSession):
    """A session over the file that tells the tally what it did, after it succeeded."""

    def __init__(self, file: BlockFile, tally: Tally) -> None:
        super().__init__(file)
        self._tally = tally
        self._write = self.write
        self.write = self._counted_write

    def _counted_write(self, offset_bytes: int, pieces: Pieces, length_bytes: int, fua: bool) -> None:
        self._write(offset_bytes, pieces, length_bytes, fua)
        self._tally.wrote(offset_bytes, length_bytes, pieces)

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        """Make the extent read as zero; see `BlockFile.zero`."""
        super().zero(offset_bytes, length_bytes, punch=punch, fast=fast, fua=fua)
        self._tally.trimmed(length_bytes)

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        """Punch the extent if the file can; otherwise nothing happens."""
        super().trim(offset_bytes, length_bytes, fua=fua)
        self._tally.trimmed(length_bytes)
