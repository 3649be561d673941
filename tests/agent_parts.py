"""A volume's capture side without processes, Kafka or disk: for unit and property tests of the agent.

`Parts` wires pool, ring, allocator, log and volume over a `FakeSource`. `Parts.deliver` plays publisher and target: it reads the ring
by its layout's text, without any code of the agent, applies the records to `replica` and acknowledges them.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from agent import ring as layout
from agent.allocator import ChunkAllocator
from agent.modes import Event
from agent.pool import Pool
from agent.record_log import RecordLog
from agent.ring import VolumeRing
from agent.source import SourceIdentity
from agent.volume import Volume

MIB = 1 << 20
CHUNK = 256 << 10
ENTRY = struct.Struct("=QQQQIIBB22x")
BLOCK_RECORDS = 4096
BLOCKS = 1024
DIRECTORY_AT = 4096
POOL_AT = 4096
NO_CHUNK = 0xFFFFFFFF
WRITE, ZERO, TRIM, FLUSH = 1, 2, 3, 4
HOLE, DATA = 3, 0


class FakeFile:
    """A source's bytes in memory, with holes of 4 KiB, planted errors and hooks.

    `errors[what]` is the errno that every `what` (write, read, zero, trim, sync, extents) raises; `bad` is a set of offsets: an
    operation that covers one raises EIO. `short_bytes` lets a write reach the source in part before ENOSPC. `before[what]` is called
    inside each `what`.
    """

    is_device = False
    fd = -1

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self.written = bytearray(-(-size_bytes // 4096))
        self.errors: dict[str, int] = {}
        self.bad: set[int] = set()
        self.short_bytes: int | None = None
        self.trims = True
        self.before: dict[str, Callable[[int, int], None]] = {}
        self.syncs = 0
        self.forgotten: list[tuple[int, int]] = []

    def write(self, offset_bytes: int, pieces: memoryview | list[memoryview], length_bytes: int, durable: bool = False) -> None:
        payload = b"".join(pieces) if type(pieces) is list else bytes(pieces)
        assert len(payload) == length_bytes
        self._enter("write", offset_bytes, length_bytes)
        if self.short_bytes is not None:
            self._put(offset_bytes, payload[: self.short_bytes])
            raise OSError(errno.ENOSPC, "planted: no space")
        self._put(offset_bytes, payload)

    def read(self, offset_bytes: int, into: memoryview) -> None:
        self._enter("read", offset_bytes, len(into))
        into[:] = self.data[offset_bytes : offset_bytes + len(into)]

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        self.read(offset_bytes, into)
        return True

    def announce(self, offset_bytes: int, length_bytes: int) -> None:
        """Take the announcement; nothing to do in memory."""

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool = False, durable: bool = False) -> None:
        if fast:
            raise OSError(errno.ENOTSUP, "planted: never fast")
        self._enter("zero", offset_bytes, length_bytes)
        self.data[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)
        if punch:
            first, last = -(-offset_bytes // 4096), (offset_bytes + length_bytes) // 4096
            self.written[first:last] = bytes(max(0, last - first))

    def trim(self, offset_bytes: int, length_bytes: int, *, durable: bool = False) -> bool:
        if self.trims:
            self._enter("trim", offset_bytes, length_bytes)
            self.data[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)
        return self.trims

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        self._enter("extents", offset_bytes, 0)
        found: list[tuple[int, int]] = []
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end and len(found) < limit:
            kind = DATA if self.written[at // 4096] else HOLE
            stop = at
            while stop < end and (DATA if self.written[stop // 4096] else HOLE) == kind:
                stop = min(end, (stop // 4096 + 1) * 4096)
            found.append((stop - at, kind))
            at = stop
        return found

    def sync(self) -> None:
        self._enter("sync", 0, 0)
        self.syncs += 1

    def forget(self, offset_bytes: int, length_bytes: int) -> None:
        self.forgotten.append((offset_bytes, length_bytes))

    def measure(self) -> int:
        self._enter("measure", 0, 0)
        return len(self.data)

    def close(self) -> None:
        """Nothing is open."""

    def _put(self, offset_bytes: int, payload: bytes) -> None:
        self.data[offset_bytes : offset_bytes + len(payload)] = payload
        if payload:
            first, last = offset_bytes // 4096, (offset_bytes + len(payload) - 1) // 4096
            self.written[first : last + 1] = b"\1" * (last + 1 - first)

    def _enter(self, what: str, offset_bytes: int, length_bytes: int) -> None:
        if what in self.before:
            self.before[what](offset_bytes, length_bytes)
        if what in self.errors:
            raise OSError(self.errors[what], f"planted in {what}")
        if any(offset_bytes <= one < offset_bytes + length_bytes for one in self.bad):
            raise OSError(errno.EIO, f"planted bad sector in {what}")


class FakeSource:
    """What `agent.source.Source` is to a volume."""

    def __init__(self, size_bytes: int) -> None:
        self.file = FakeFile(size_bytes)
        self.size_bytes = size_bytes
        self.mtime_ns = 1
        self.closed = False

    def identity(self) -> SourceIdentity:
        return SourceIdentity(1, len(self.file.data), self.mtime_ns)

    def close(self) -> None:
        self.closed = True


class FakeActivity:
    """What `agent.activity_log.ActivityLog` is to a volume: everything is durable at once, or fails."""

    def __init__(self) -> None:
        self.touched: list[tuple[int, int]] = []
        self.owed: list[tuple[int, int]] = []
        self.failure: OSError | None = None

    def touch(self, start_bytes: int, end_bytes: int) -> None:
        self._enter()
        self.touched.append((start_bytes, end_bytes))

    def owe(self, start_bytes: int, end_bytes: int) -> None:
        self._enter()
        self.owed.append((start_bytes, end_bytes))

    def owe_all(self, extents: Iterable[tuple[int, int]]) -> None:
        for start_bytes, end_bytes in extents:
            self.owe(start_bytes, end_bytes)

    def _enter(self) -> None:
        if self.failure is not None:
            raise self.failure


class Parts:
    """One volume over a fake source. `restart` is a SIGKILL of capture followed by a new one over the same memory."""

    def __init__(
        self,
        folder: Path,
        *,
        size_bytes: int = 4 * MIB,
        chunks: int = 64,
        claimed: int = 1,
        overflow: str = "throttle",
        name: str = "v",
    ) -> None:
        self.folder = folder
        self.name = name
        self.overflow = overflow
        self.source = FakeSource(size_bytes)
        self.pool = Pool.open(folder / "pool", chunks)
        self.ring = VolumeRing.create(folder / f"{name}.ring", name, size_bytes)
        self.replica = bytearray(size_bytes)
        self.delivered: list[tuple[int, ...]] = []
        self.wake: Callable[[], None] = lambda: None
        self.waiting: list[bool] = []
        self._wire(set())
        if claimed:
            self.claim(claimed)
            self.log.adopt_head()
            self.volume.modes.happen(Event.SERVED_IN_ORDER, "test")

    def _wire(self, held: set[int]) -> None:
        self.allocator = ChunkAllocator(self.pool.count, held, lambda: self.log.reclaim(), self.waiting.append)
        self.log = RecordLog(self.ring, self.pool, self.allocator, lambda: self.wake())
        self.activity = FakeActivity()
        self.volume = Volume(self.name, self.source, self.log, self.activity, self.overflow, 1e9)
        self.slot = self.volume.intents.open()

    @property
    def whole(self) -> list[tuple[int, int]]:
        return [(0, self.volume.size_bytes)]

    def claim(self, head: int, epoch: int = 1) -> None:
        """Do to the ring what the publisher does when it has claimed an epoch whose `epoch_start` has sequence `head`."""
        words = self.ring.words
        words[layout.W_EPOCH], words[layout.W_INCARNATION] = epoch, 7
        words[layout.W_HEAD] = words[layout.W_ACKED] = words[layout.W_SENT] = head
        words[layout.W_CLAIMED] = layout.CLAIM_DONE

    def restart(self) -> None:
        """Forget all that only the process knew, and start again from the shared memory."""
        self.pool = Pool.open(self.folder / "pool", 1)
        self.ring = VolumeRing.attach(self.folder / f"{self.name}.ring")
        self._wire(self.ring.chunks_held(self.pool.view))

    # -- the application -----------------------------------------------------------------------------------------------

    def write(self, offset_bytes: int, payload: bytes) -> int:
        """Write as a session does whose payload arrived in chunks of its own."""
        pieces, views = [], []
        numbers = self.allocator.take(-(-len(payload) // CHUNK))
        for at, number in zip(range(0, len(payload), CHUNK), numbers, strict=True):
            part = payload[at : at + CHUNK]
            self.pool.chunk(number)[: len(part)] = part
            pieces.append((number, 0, len(part)))
            views.append(self.pool.chunk(number)[: len(part)])
        given: memoryview | list[memoryview] = views[0] if len(views) == 1 else views
        try:
            sequence = self.volume.write(self.slot, offset_bytes, given, pieces, len(payload), False)
        except OSError:
            self.allocator.give(numbers)
            raise
        for number in numbers:
            self.log.retire(number, sequence)
        return sequence

    # -- publisher and target ------------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        return self.ring.words[layout.W_HEAD]

    @property
    def acked(self) -> int:
        return self.ring.words[layout.W_ACKED]

    def entry(self, sequence: int) -> tuple[int, ...]:
        """Return an entry by the ring's layout alone."""
        ring = self.ring.memory.view
        chunk = struct.unpack_from("=Q", ring, DIRECTORY_AT + sequence // BLOCK_RECORDS % BLOCKS * 8)[0]
        assert chunk, f"no memory behind sequence {sequence}"
        found = ENTRY.unpack_from(self.pool.memory.view, POOL_AT + (chunk - 1) * CHUNK + sequence % BLOCK_RECORDS * 64)
        assert found[0] == sequence, f"entry of {found[0]} where {sequence} belongs"
        return found

    def pending(self) -> list[tuple[int, ...]]:
        return [self.entry(sequence) for sequence in range(self.acked + 1, self.head + 1)]

    def deliver(self, upto: int | None = None) -> list[tuple[int, ...]]:
        """Apply what the ring holds, up to a sequence, to `replica`, then acknowledge it; return the entries."""
        taken = []
        for sequence in range(self.acked + 1, min(self.head, upto if upto is not None else self.head) + 1):
            entry = self.entry(sequence)
            _, _, offset, length, chunk, start, kind, _ = entry
            if kind == WRITE:
                at = POOL_AT + chunk * CHUNK + start
                self.replica[offset : offset + length] = self.pool.memory.view[at : at + length]
            elif kind == ZERO:
                self.replica[offset : offset + length] = bytes(length)
            taken.append(entry)
        if taken:
            self.ring.words[layout.W_ACKED] = taken[-1][0]
        self.delivered += taken
        return taken

    def owed(self) -> set[int]:
        """Return the owed bits, read by the layout's text: bit n is the 64 KiB from n * 64 KiB on."""
        return {bit for bit in range(len(self.ring.owed) * 8) if self.ring.owed[bit // 8] >> bit % 8 & 1}

    def assert_equal(self) -> None:
        """Deliver everything and assert that replica and source are the same bytes."""
        self.deliver()
        differ = [at for at in range(0, len(self.replica), 4096) if self.replica[at : at + 4096] != self.source.file.data[at : at + 4096]]
        assert not differ, f"{len(differ)} blocks differ, the first at {differ[0]}"


class Delivering:
    """A thread that delivers whatever is recorded, until the end of the `with` block."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rung = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="deliver")
        parts.wake = self._rung.set

    def __enter__(self) -> Delivering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._rung.set()
        self._thread.join()

    def _run(self) -> None:
        words = self._parts.pool.words
        while not self._over:
            words[2] = 1
            self._parts.deliver()
            self._parts.log.reclaim()
            self._parts.log.acknowledged()
            self._rung.wait(0.005)
            self._rung.clear()
