"""`MemoryDevice`: a fake device that behaves like a ring: it keeps every payload where it was received, and checks that nobody touches it.

The harshest lane that the interface allows: small chunks, kept payloads, new chunks at every turn. Failures can be planted.
"""

from __future__ import annotations

import ctypes
import errno
import threading

CHUNK_BYTES = 64 << 10


class MemoryDevice:
    """A device over a bytearray. `keeping` false: nothing is kept, as in a device that is out of order."""

    def __init__(self, size_bytes: int, *, keeping: bool = True, read_only: bool = False, concurrent: bool = False) -> None:
        self.data = bytearray(size_bytes)
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.keeping = keeping
        self.concurrent = concurrent
        self.lock = threading.Lock()
        self.kept: list[tuple[memoryview, bytes]] = []
        self.log: list[str] = []
        self.failures: dict[str, int] = {}
        self.misses = False
        self.gate: threading.Event | None = None
        self.open_sessions = 0
        self.reserved_chunks = 0

    def open_session(self) -> MemorySession:
        self.fail("open")
        self.open_sessions += 1
        return MemorySession(self)

    def fail(self, what: str) -> None:
        """Raise the failure planted for `what`."""
        if what in self.failures:
            raise OSError(self.failures[what], f"planted in {what}")

    def check_kept(self) -> None:
        """Assert that no kept payload was touched after it was handed over."""
        for view, copy in self.kept:
            assert bytes(view) == copy, "memory behind the tail was touched"


class MemorySession:
    """A session of a MemoryDevice."""

    def __init__(self, device: MemoryDevice) -> None:
        self.device = device
        self.lane = MemoryLane(device)
        self.concurrent = self.concurrent_reads = device.concurrent

    def write(self, offset_bytes: int, pieces: memoryview | list[memoryview], length_bytes: int, fua: bool) -> None:
        device, listed = self.device, pieces if isinstance(pieces, list) else [pieces]
        device.fail("write")
        payload = b"".join(listed)
        assert len(payload) == length_bytes
        assert all(len(piece) for piece in listed[1:]), "an empty piece"
        with device.lock:
            device.log.append(f"write {offset_bytes} {length_bytes}{' fua' if fua else ''}")
            device.data[offset_bytes : offset_bytes + length_bytes] = payload
            if device.keeping:
                device.kept += [(piece, bytes(piece)) for piece in listed]
                self.lane.keep(listed)

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        self.device.fail("read_cached")
        if self.device.misses:
            into[:] = b"\xee" * len(into)
            return False
        into[:] = self.device.data[offset_bytes : offset_bytes + len(into)]
        return True

    def announce(self, offset_bytes: int, length_bytes: int) -> None:
        self.device.log.append(f"announce {offset_bytes} {length_bytes}")

    def read(self, offset_bytes: int, into: memoryview) -> None:
        self.device.log.append(f"read {offset_bytes} {len(into)}")
        self.device.fail("read")
        self.device.fail(f"read {offset_bytes}")
        into[:] = self.device.data[offset_bytes : offset_bytes + len(into)]

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        self.device.fail("zero")
        if fast:
            raise OSError(errno.ENOTSUP, "never fast")
        self.device.log.append(f"zero {offset_bytes} {length_bytes} punch={punch} fua={fua}")
        self.device.data[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        self.device.fail("trim")
        self.device.log.append(f"trim {offset_bytes} {length_bytes} fua={fua}")

    def flush(self) -> None:
        if self.device.gate is not None:
            assert self.device.gate.wait(30)
        self.device.fail("flush")
        self.device.log.append("flush")

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        self.device.fail("extents")
        half = max(1, length_bytes // 2)
        return [(half, 0), (length_bytes - half, 0)][: min(limit, 2 if length_bytes > half else 1)]

    def close(self) -> None:
        self.device.open_sessions -= 1


class MemoryLane:
    """A lane that never uses a chunk twice once something of it was kept."""

    def __init__(self, device: MemoryDevice) -> None:
        self.device = device
        self.chunk = self._fresh()
        self.tail = 0
        self.reserved: list[memoryview] = []
        self.reservations = 0
        self._kept_now = False

    def keep(self, pieces: list[memoryview]) -> None:
        """Check where a payload lies, and move the tail behind the part of it that is in the current chunk."""
        self._kept_now = True
        first, *others = pieces
        assert first.obj is self.chunk.obj, "the first piece belongs to the current chunk"
        assert [piece.obj for piece in others] == [chunk.obj for chunk in self.reserved], "a piece for each reserved chunk"
        if first:
            begin = _address(first) - _address(self.chunk)
            assert self.tail <= begin or self.device.concurrent, "a payload before the tail"
            self.tail = max(self.tail, begin + len(first))

    def turn(self, keep: memoryview) -> None:
        assert len(keep) < len(self.chunk)
        copy = bytes(keep)
        self.chunk = self._fresh() if self.device.keeping else self.chunk
        self.chunk[: len(copy)] = copy
        self.tail = 0

    def reserve(self, nbytes: int) -> list[memoryview]:
        assert nbytes > 0
        chunks = [self._fresh() for _ in range(-(-nbytes // CHUNK_BYTES) - 1)]
        chunks.append(self._fresh(self.reservations % 3 + 1))  # the last one may be longer
        self.reservations += 1
        self.device.reserved_chunks += len(chunks)
        self._kept_now = False
        self.reserved = chunks
        return chunks

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        assert 0 < used <= len(chunks[-1])
        self.device.reserved_chunks -= len(chunks)
        self.chunk, self.reserved = chunks[-1], []
        self.tail = used if self._kept_now else 0

    def abandon(self, chunks: list[memoryview]) -> None:
        self.device.reserved_chunks -= len(chunks)
        self.reserved = []

    def close(self) -> None:
        self.chunk = memoryview(b"")

    def _fresh(self, times: int = 1) -> memoryview:
        return memoryview(bytearray(CHUNK_BYTES * times))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
