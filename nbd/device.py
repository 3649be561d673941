"""What the server asks of a block device: `BlockDevice`, a `Session` for each connection, and the `Lane` it receives into.

The server is the caller of everything here. The lane exists for zero copy: the server receives the raw socket stream, request
headers and payloads as they come, straight into memory that belongs to the device, and hands payloads to `Session.write` as
slices of it. A device that keeps payloads (a ring) says so by moving `Lane.tail`; one that does not leaves it alone.

Threads: `Lane` is used by the connection's own thread alone. `Session.flush` may be called by another thread while the
connection's thread is in any other method. If the session allows it (`concurrent`, `concurrent_reads`), the server gives the requests of
a slow device to several threads at once; overlapping operations are then ordered by the session itself.

Errors: every method of a session may raise OSError; its errno goes to the client and the connection goes on.
"""

from __future__ import annotations

from typing import Protocol

Pieces = memoryview | list[memoryview]
"""A payload: one slice of the lane's current chunk; or a list, when it was received into reserved chunks too: first the slice of the
current chunk, which may be empty, then one of each reserved chunk, in order. Together as long as the write."""


class Lane(Protocol):
    """Memory that a connection receives into: chunks, writable, none shorter than the first.

    The server receives at or after `tail` of `chunk`, and never touches bytes before it. Whenever it needs room it calls `turn` (nothing
    or a small part of a request is left over) or `reserve` (a payload that goes on past the end of the chunk). Both may raise OSError: the
    connection is then closed.
    """

    chunk: memoryview
    """The current chunk. The server reads it again after `turn` and `adopt`."""

    tail: int
    """First byte of `chunk` that the session has not kept. `Session.write` moves it forward, never back, to the end of a payload that
    it keeps, or to the chunk's end, to be asked for another one; `turn` and `adopt` set it."""

    def turn(self, keep: memoryview) -> None:
        """Make another chunk the current one, copy `keep` to its start, set `tail` to 0.

        `keep` is the part of a request received so far, shorter than a chunk; it lies in the old chunk, at or after its `tail`. May block
        (back-pressure). A lane that keeps nothing may give the same chunk again.
        """

    def reserve(self, nbytes: int) -> list[memoryview]:
        """Return fresh whole chunks, in order, that hold `nbytes` together (1 to the maximum request length): the last one may be longer.

        Blocks until all are available at once, so that two connections never wait for each other. The payload they are for begins in the
        current chunk, from where it was received to the end of that chunk. The server writes to these chunks and nothing else until
        it calls `adopt` or `abandon`.
        """

    def adopt(self, chunks: list[memoryview], used: int) -> None:
        """End a reservation whose write succeeded: the last reserved chunk becomes the current one, `used` bytes of it hold payload.

        A session that kept the payload sets `tail` to `used`; one that did not may set it to 0 and take back the other chunks, or take back
        all and go on in the chunk that was current before.
        """

    def abandon(self, chunks: list[memoryview]) -> None:
        """End a reservation whose write did not happen or failed: take the chunks back; current chunk and `tail` stay."""

    def close(self) -> None:
        """Give back all memory that the session did not keep. Called once, last."""


class Session(Protocol):
    """One connection to a device. Requests are inside the device and not above the maximum: the server has checked them."""

    lane: Lane

    concurrent: bool
    """True if several threads may be in `read`, `write`, `zero` and `trim` at once; see the module's text. Missing: False."""

    concurrent_reads: bool
    """True if several threads may be in `read` at once, and one more in any other method. Missing: the same as `concurrent`."""

    def write(self, offset_bytes: int, pieces: Pieces, length_bytes: int, fua: bool) -> None:
        """Write all of the payload; with `fua` it is durable on return.

        The pieces are slices of lane memory: valid during the call, longer only if the session keeps them and moves `lane.tail` behind
        the part that lies in the current chunk. Never called with a payload that did not arrive whole.
        """

    def read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        """Fill `into` without waiting for a disk; return False if that is not possible (`into` is then undefined).

        A device that can't tell reads the plain way and returns True.
        """

    def announce(self, offset_bytes: int, length_bytes: int) -> None:
        """Tell the device that this extent is read soon. Never blocks, has no other effect, raises nothing for a device's sake."""

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`; may wait for the disk."""

    def zero(self, offset_bytes: int, length_bytes: int, *, punch: bool, fast: bool, fua: bool) -> None:
        """Make the extent read as zero; `punch` allows to give its space back.

        With `fast`, raise OSError(ENOTSUP) at once, nothing changed, where this would take as long as writing.
        """

    def trim(self, offset_bytes: int, length_bytes: int, *, fua: bool) -> None:
        """The client has no more use for the extent; doing nothing is allowed."""

    def flush(self) -> None:
        """Make durable every write answered before the call on any connection to the device. May block long."""

    def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Describe the extent from its start: 1 to `limit` pairs (length in bytes, wire.STATE_* flags).

        May end before `length_bytes` is covered, never later.
        """

    def close(self) -> None:
        """End the session. Called once, when no other method runs and the lane is still open; raises nothing."""


class BlockDevice(Protocol):
    """Something with a size that opens sessions. Used by many threads at once."""

    size_bytes: int
    """The size now. Cheap: read for every received batch, so a device may grow or shrink under its clients."""

    read_only: bool

    def open_session(self) -> Session:
        """Open a session for a new connection. Raises OSError if the device can't be used now: the client is refused."""
