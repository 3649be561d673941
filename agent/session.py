"""The agent's device for the NBD server: sessions whose lanes are chunks of the pool, so that a payload is received where it stays.

`RingLane` hands the server chunks to receive into; `CaptureSession.write` records payloads where they lie. Each connection has
one session, used by its thread. When the buffer is full a lane goes on in memory of its own, whose payloads are not recorded but owed;
what arrives there once the buffer has room again is copied into it.
"""

from __future__ import annotations

import errno
import threading
from ctypes import addressof, c_char

from agent.modes import Mode
from agent.pool import CHUNK_BYTES
from agent.record_log import Piece
from agent.ring import NO_CHUNK
from agent.scratch import Scratch
from agent.volume import Volume
from nbd.device import Pieces

_first_byte = c_char.from_buffer


class RingLane:
    """A `nbd.device.Lane` over pool chunks. A chunk goes back to the pool when Kafka has every record in it.

    What the server sees as one chunk may be several neighbours of the pool: long writes then seldom go on past its end.
    """

    def __init__(self, volume: Volume, scratch: Scratch) -> None:
        self._volume = volume
        self._memory = scratch
        self._log = volume.log
        self._allocator = volume.log.allocator
        self._pool = volume.log.pool
        self._own: memoryview | None = None
        self._numbers: list[int] = []
        """The pool's chunks that the current chunk consists of; none if it is the lane's own memory."""
        self.last_sequence = 0
        self.reserved: list[int] = []
        self._scratch: list[memoryview] = []
        self.recorded = False
        """Whether the long write at hand, which lies in the reserved chunks, is in the ring."""
        self._begin_chunk(self._take(1, alone=True))

    @property
    def lasts(self) -> bool:
        """Whether what is received now may stay where it is: it is in the pool."""
        return self.number != NO_CHUNK and not self._scratch

    def place(self, piece: memoryview) -> int:
        """Return where in the current chunk a slice of it begins."""
        return addressof(_first_byte(piece)) - self._base

    def pieces(self, at: int, length_bytes: int) -> list[Piece]:
        """Return the parts of a payload at `at` of the current chunk, cut where one chunk of the pool ends and the next begins."""
        return _cut(self._numbers[at // CHUNK_BYTES :], at % CHUNK_BYTES, length_bytes)

    def pieces_reserved(self, length_bytes: int) -> list[Piece]:
        """Return the parts of a payload at the start of the reserved chunks."""
        return _cut(self.reserved, 0, length_bytes)

    def turn(self, keep: memoryview) -> None:
        """Go on in another chunk, or at the start of this one when Kafka has all of it."""
        if self.number != NO_CHUNK and self._log.acked(self.last_sequence):
            self.chunk[: len(keep)] = keep
            self.tail = 0
            return
        taken, left = self._take(1, alone=True), self._numbers
        self._begin_chunk(taken, keep)
        self._retire(left)  # only now: once Kafka has all of it, it is another connection's, and `keep` lay there

    def reserve(self, nbytes: int) -> list[memoryview]:
        """Return whole chunks for `nbytes`, all at once; while the buffer is full, memory that is no part of it."""
        self.recorded = False
        count = -(-nbytes // CHUNK_BYTES)
        taken = self._take(count)
        if taken is None:
            self._scratch = self._memory.take(CHUNK_BYTES, count)
            return list(self._scratch)
        self.reserved = taken
        if count == 1:
            return [self._pool.chunk(taken[0], len(taken))]
        return [self._pool.chunk(number) for number in taken]

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        """Go on in the last reserved chunk; all others are kept until Kafka has them."""
        if self._scratch:
            chunks.clear()
            self._give_scratch()
            return
        if not self.recorded:
            self._allocator.give(self.reserved)
            self.reserved = []
            return
        count = len(chunks[-1]) // CHUNK_BYTES
        self._retire([*self._numbers, *self.reserved[:-count]])
        self._numbers = self.reserved[-count:]
        self.number, self.chunk, self.tail = self._numbers[0], chunks[-1], used
        self._base = addressof(_first_byte(self.chunk))
        self.reserved = []

    def abandon(self, chunks: list[memoryview]) -> None:
        """Give the reserved chunks back, unless the write was recorded and failed only afterwards: then Kafka gets it from there."""
        if self._scratch:
            chunks.clear()
            self._give_scratch()
        elif self.recorded:
            self._retire(self.reserved)
            self.tail = len(self.chunk)
        else:
            self._allocator.give(self.reserved)
        self.reserved = []

    def leave_own(self) -> None:
        """Have the server ask for another chunk next: there is room in the buffer again."""
        self.tail = len(self.chunk)

    def close(self) -> None:
        for number in self._numbers:
            self._log.retire(number, self.last_sequence)

    def _retire(self, numbers: list[int]) -> None:
        """Give chunks back once Kafka has what is in them; what it has of others comes back now."""
        for number in numbers:
            self._log.retire(number, self.last_sequence)
        self._log.reclaim()

    def _take(self, count: int, *, alone: bool = False) -> list[int] | None:
        """Return chunks of the pool, or None: in BITMAP at once, else after the write's patience, and order is lost then.

        If one is asked for, and not `alone`, neighbours may come with it.
        """
        volume = self._volume
        if volume.mode is Mode.BITMAP:
            return None
        owner, keep_waiting = self._log.owner, volume.overflow.patience()
        if count == 1 and not alone:
            taken = self._allocator.take_run(owner=owner, keep_waiting=keep_waiting)
        else:
            taken = self._allocator.take(count, owner=owner, keep_waiting=keep_waiting)
        if taken is None:
            volume.lose_order()
        return taken

    def _begin_chunk(self, taken: list[int] | None, keep: memoryview | None = None) -> None:
        """Make the chunk taken the current one, or the lane's own memory if there is none."""
        if taken is None:
            self._own = self._own if self._own is not None else memoryview(bytearray(CHUNK_BYTES))
        number, chunk = (NO_CHUNK, self._own) if taken is None else (taken[0], self._pool.chunk(taken[0]))
        self._numbers = taken or []
        if keep is not None:
            chunk[: len(keep)] = keep
        self.number, self.chunk, self.tail = number, chunk, 0
        self._base = addressof(_first_byte(chunk))

    def _give_scratch(self) -> None:
        self._memory.give(self._scratch)
        self._scratch = []


class CaptureSession:
    """A `nbd.device.Session`: reads come from the source, changes go through the volume."""

    concurrent = False

    def __init__(self, device: CaptureDevice, volume: Volume) -> None:
        self._device = device
        self._volume = volume
        self._slot = volume.intents.open()
        try:
            self.lane = RingLane(volume, device.scratch)
        except OSError:
            volume.intents.close(self._slot)
            raise
        file = volume.source.file
        self.read_cached = file.read_cached
        self.read = file.read
        self.announce = file.announce
        self.extents = file.extents

    def write(self, offset_bytes: int, pieces: Pieces, length_bytes: int, fua: bool) -> None:
        """Write and record where it lies; with `fua` wait for what the flush policy demands."""
        lane = self.lane
        if not lane.lasts:
            sequence = self._write_elsewhere(offset_bytes, pieces, length_bytes, fua)
        elif type(pieces) is not list:
            at = lane.place(pieces)
            end = at + length_bytes
            places = [(lane.number, at, length_bytes)] if end <= CHUNK_BYTES else lane.pieces(at, length_bytes)
            sequence = self._volume.write(self._slot, offset_bytes, pieces, places, length_bytes, fua)
            if sequence:
                lane.last_sequence, lane.tail = sequence, end
        else:
            first = pieces[0]  # empty if the payload begins at the chunk's end
            places = lane.pieces(lane.place(first), len(first)) if first else []
            places += lane.pieces_reserved(length_bytes - len(first))
            held = pieces if first else pieces[1:]
            sequence = self._volume.write(self._slot, offset_bytes, held, places, length_bytes, fua)
            if sequence:
                lane.last_sequence, lane.recorded = sequence, True
        if fua and sequence:
            self._device.wait_stream(sequence)

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        """Zero on the source and record it."""
        sequence = self._volume.zero(self._slot, offset_bytes, length_bytes, punch=punch, fast=fast, durable=fua)
        if fua:
            self._device.wait_stream(sequence)

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        """Trim where the source then reads zero; elsewhere nothing happens."""
        sequence = self._volume.trim(self._slot, offset_bytes, length_bytes, durable=fua)
        if fua:
            self._device.wait_stream(sequence)

    def flush(self) -> None:
        """Make durable on the source, and in Kafka too under the `stream` policy (design rule 7)."""
        self._device.wait_stream(self._volume.flush())

    def close(self) -> None:
        self._volume.intents.close(self._slot)
        self._device.closed(self)

    def _write_elsewhere(self, offset_bytes: int, pieces: Pieces, length_bytes: int, fua: bool) -> int:
        """Write what was received outside of the buffer: copied into it if it has room now, else not recorded."""
        volume, lane = self._volume, self.lane
        views = [piece for piece in pieces if piece] if type(pieces) is list else [pieces]
        places: list[Piece] | None = None
        if volume.mode is not Mode.BITMAP:
            lane.leave_own()
            places = self._copy_in(views, length_bytes)
        sequence = volume.write(self._slot, offset_bytes, pieces, places, length_bytes, fua)
        for number, _, _ in places or ():
            if sequence:
                volume.log.retire(number, sequence)
            else:
                volume.log.allocator.give([number])
        return sequence

    def _copy_in(self, views: list[memoryview], length_bytes: int) -> list[Piece] | None:
        """Copy a payload into chunks of its own; None if there are none."""
        log = self._volume.log
        taken = log.allocator.take(-(-length_bytes // CHUNK_BYTES), owner=log.owner, keep_waiting=self._volume.overflow.patience())
        if taken is None:
            return None
        payload = views[0] if len(views) == 1 else b"".join(views)
        places = []
        for index, number in enumerate(taken):
            part = payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            log.pool.chunk(number)[: len(part)] = part
            places.append((number, 0, len(part)))
        return places


class CaptureDevice:
    """A `nbd.device.BlockDevice` over a volume."""

    read_only = False

    def __init__(self, volume: Volume, flush_policy: str, flush_in_gap: str = "local", scratch: Scratch | None = None) -> None:
        self._volume = volume
        self.scratch = scratch or Scratch()
        self._stream = flush_policy == "stream"
        self._fails_in_gap = flush_in_gap == "fail"
        self._sessions: set[CaptureSession] = set()
        self._mutex = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._volume.size_bytes

    @property
    def connections(self) -> int:
        return len(self._sessions)

    def open_session(self) -> CaptureSession:
        """Open a session for a new connection. Raises OSError when the volume is out of service."""
        if self._volume.log.failure is not None:
            raise self._volume.log.failure
        session = CaptureSession(self, self._volume)
        with self._mutex:
            self._sessions.add(session)
        return session

    def closed(self, session: CaptureSession) -> None:
        with self._mutex:
            self._sessions.discard(session)

    def wait_stream(self, sequence: int) -> None:
        """Under the `stream` policy wait until Kafka has the position.

        While a gap is open the source alone is what can be promised: it answers then, or raises OSError(EIO) if it is so configured
        (design rule 7).
        """
        if not self._stream:
            return
        if self._in_order() and self._volume.log.wait_durable(sequence, self._in_order):
            return
        if self._fails_in_gap:
            raise OSError(errno.EIO, f"the stream can't promise a flush in mode {self._volume.mode.name}")

    def _in_order(self) -> bool:
        return self._volume.mode is Mode.DATA


def _cut(numbers: list[int], at: int, length_bytes: int) -> list[Piece]:
    """Return the parts of what begins at `at` of the first of some chunks and goes on through the others."""
    pieces = []
    for number in numbers:
        part = min(CHUNK_BYTES - at, length_bytes)
        pieces.append((number, at, part))
        length_bytes -= part
        if not length_bytes:
            break
        at = 0
    return pieces
