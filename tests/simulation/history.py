"""The true history of a volume, as the source and the ring show it, and its fold up to any position. Nothing of it comes from the product.

Whenever capture moves a ring's head, the new entries are read by the ring's layout and kept for good, and what they say is compared with
the source as it is at that moment. Claims count in the order of the log: the first `epoch_start` of a number wins, and what an older
epoch captured beyond the position that the claim stands behind is lost.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.disk import BLOCK_BYTES, Inode, Mapping
from tests.simulation.scheduler import SimulationError

WRITE, ZERO, FLUSH, EPOCH_START, SYNC_END, GAP_BEGIN = 1, 2, 4, 16, 18, 19
MORE = 1
Position = tuple[int, int]

_ENTRY = struct.Struct("=QQQQIIBB22x")
_DIRECTORY_AT = 4096
_POOL_AT = 4096
_CHUNK_BYTES = 256 << 10
_BLOCK_RECORDS = 4096
_BLOCKS = 1024


@dataclass(slots=True)
class Entry:
    """One record as it was captured."""

    kind: int
    flags: int
    offset: int
    length: int
    time_ns: int
    payload: bytes  # of a mark: its attributes


@dataclass(slots=True)
class Epoch:
    """One epoch; `entries[0]` has the sequence `first + 1`, `logged` is the last sequence that the log has in order."""

    number: int
    first: int
    incarnation: bytes
    entries: list[Entry] = field(default_factory=list)
    logged: int = 0
    logged_ever: int = 0  # before a broker lost some of it

    @property
    def head(self) -> int:
        return self.first + len(self.entries)

    def entry(self, sequence: int) -> Entry:
        return self.entries[sequence - self.first - 1]


class History:
    """One volume's. Raises SimulationError when the ring contradicts the source or itself."""

    def __init__(self, volume: str, size_bytes: int, source: Inode) -> None:
        self.volume = volume
        self.size_bytes = size_bytes
        self.source = source
        self.epochs: dict[int, Epoch] = {}
        self.claims: list[tuple[int, int, bytes]] = []  # in the order of the log: epoch, first sequence, incarnation
        self.clean: set[int] = set()  # epochs that go on where the one before stopped
        self.synced: Callable[[Position], None] = lambda position: None  # hears of every `sync_end`, as it is captured
        self.heard: Callable[[Position, Entry], None] = lambda position, entry: None  # hears of every record, as it is captured
        self.where: dict[int, Position] = {}  # of a write, by the number in its payload: its first position
        self.mode_changes = 0
        self._newest_ns = 0
        self._made_anew = False
        self._journaled: dict[int, int] = {}  # the last sequence of each epoch that the journal ever had

    # -- what happens --------------------------------------------------------------------------------------------------

    def claim_logged(self, epoch: int, first: int, incarnation: bytes, *, clean: bool) -> None:
        """Hear of an `epoch_start` in the log."""
        if not self.claims or epoch > self.claims[-1][0]:
            self.claims.append((epoch, first, incarnation))
            if clean:
                self.clean.add(epoch)

    def claimed(self, epoch: int, first: int, incarnation: bytes) -> None:
        """Hear that a ring goes on in this epoch."""
        known = self.epochs.get(epoch)
        if known is not None and known.incarnation != incarnation:
            raise self._wrong(f"two rings hold epoch {epoch}")
        if known is None:
            self.epochs[epoch] = Epoch(epoch, first, incarnation, logged=first)
            anew = self._made_anew or first == 1  # deleted, or emptied by retention: the log counts from its start again
            self._newest_ns, self._made_anew = 0 if anew else self._newest_kept(epoch), False

    def _newest_kept(self, epoch: int) -> int:
        """Return the newest capture time before an epoch, of records that it did not leave behind."""
        for number, _, _ in reversed(self.claims):
            known = self.epochs.get(number)
            if known is not None and number < epoch and self.last_of(number) > known.first:
                return known.entry(self.last_of(number)).time_ns
        return 0

    def journaled(self, position: Position) -> None:
        """Hear that the journal has everything up to a position."""
        self._journaled[position[0]] = max(self._journaled.get(position[0], 0), position[1])

    def log_made_anew(self) -> None:
        """Hear that the log was deleted: a claim on the new one knows nothing of what was captured before."""
        self._made_anew = True

    def captured(self, ring: Mapping, pool: Mapping, epoch: int, before: int, head: int) -> None:
        """Hear that the head of a ring moved; look at every new entry."""
        mine = self.epochs.get(epoch)
        if mine is None:
            raise self._wrong(f"records are captured in epoch {epoch}, which was never claimed")
        if before != mine.head:
            raise self._wrong(f"the head stands at {before}, the last position given was {mine.head} of epoch {epoch}")
        for sequence in range(before + 1, head + 1):
            mine.entries.append(self._look(ring, pool, sequence))
            self.heard((epoch, sequence), mine.entries[-1])
        if any(entry.flags & MORE == (number == head) for number, entry in enumerate(mine.entries[before - head :], before + 1)):
            raise self._wrong(f"sequences {before + 1}..{head} became visible together and are not one whole write")
        self._index(mine.entries[before - head :], epoch, before + 1)
        if mine.entries[-1].kind == SYNC_END:
            self.synced((epoch, head))

    def _look(self, ring: Mapping, pool: Mapping, sequence: int) -> Entry:
        place = _DIRECTORY_AT + sequence // _BLOCK_RECORDS % _BLOCKS * 8
        block = struct.unpack_from("=Q", ring, place)[0]
        if not block:
            raise self._wrong(f"there is no memory behind sequence {sequence}")
        at = _POOL_AT + (block - 1) * _CHUNK_BYTES + sequence % _BLOCK_RECORDS * 64
        told, time_ns, offset, length, chunk, start, kind, flags = _ENTRY.unpack_from(pool, at)
        if told != sequence:
            raise self._wrong(f"the entry of sequence {sequence} says {told}")
        if time_ns < self._newest_ns:
            raise self._wrong(f"the capture time of sequence {sequence} goes back by {self._newest_ns - time_ns} ns")
        self._newest_ns = time_ns
        payload = b""
        if kind in (WRITE, ZERO):
            if offset + length > self.size_bytes or not length:
                raise self._wrong(f"sequence {sequence} has the extent {offset}+{length}")
            held = self.source.data[offset : offset + length]
            if kind == WRITE:
                begin = _POOL_AT + chunk * _CHUNK_BYTES + start
                payload = bytes(pool[begin : begin + length])
        elif length:
            begin = _POOL_AT + chunk * _CHUNK_BYTES + start
            payload = bytes(pool[begin : begin + length])
        written = payload or bytes(length)
        if kind in (WRITE, ZERO) and held != written and not self._reverted(offset, held, written):
            raise self._wrong(f"sequence {sequence} (kind {kind}, {offset}+{length}) is not what the source holds at its position")
        return Entry(kind, flags, offset, length, time_ns, payload)

    def _reverted(self, offset: int, held: bytes, payload: bytes) -> bool:
        """Tell whether all that differs was lost by a failed flush since it was written, and read from the disk again."""
        blocks = self.source.reverted
        differ = {(offset + at) // BLOCK_BYTES for at in range(0, len(held), 512) if held[at : at + 512] != payload[at : at + 512]}
        return differ <= blocks

    def _index(self, write: list[Entry], epoch: int, first: int) -> None:
        """Enter a write by the number that it begins with; its first part may be shorter than that."""
        if write[0].kind == WRITE:
            begin = b"".join(part.payload[:8] for part in write)[:8]
            self.where.setdefault(int.from_bytes(begin, "little"), (epoch, first))

    def whole_write(self, position: Position) -> tuple[int, int]:
        """Return the extent (offset, length) of the write that begins at this position, with all its parts."""
        known, sequence = self.epochs[position[0]], position[1]
        entry = known.entry(sequence)
        offset, end = entry.offset, entry.offset + entry.length
        while entry.flags & MORE:
            sequence += 1
            entry = known.entry(sequence)
            end = entry.offset + entry.length
        return offset, end - offset

    # -- what follows --------------------------------------------------------------------------------------------------

    def last_of(self, epoch: int) -> int:
        """Return the last sequence of an epoch that counts: what stands before the next claim, or all of it so far.

        What the journal has counts too, if a broker lost it from the log before the next claim.
        """
        at = [number for number, _, _ in self.claims].index(epoch)
        mine = self.epochs[epoch]
        if at + 1 == len(self.claims):
            return mine.head
        following = self.claims[at + 1][1]
        last = following - 1 if following > mine.first else mine.logged  # a log made anew begins to count again
        return max(last, self._journaled.get(epoch, 0))

    def is_lost(self, position: Position) -> bool:
        """Tell whether a later claim left this position behind."""
        return position[1] > self.last_of(position[0])

    def _wrong(self, told: str) -> SimulationError:
        return SimulationError(f"volume {self.volume}: {told}")


class Fold:
    """The bytes that the history leaves up to a position; only ever moved forward."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.image = bytearray(history.size_bytes)
        self.at: Position = (0, 0)
        self.open: set[Position] = set()  # gaps of the agent that are not closed
        self._split: list[Entry] = []

    def copy(self) -> Fold:
        other = Fold(self._history)
        other.image[:] = self.image
        other.at = self.at
        other._split = list(self._split)
        other.open = set(self.open)
        return other

    def advance(self, position: Position) -> None:
        """Apply everything up to `position`, which must be one of the history."""
        history = self._history
        if position < self.at:
            raise SimulationError(f"volume {history.volume}: position {position} after {self.at}")
        for epoch, first, incarnation in history.claims:
            if epoch < self.at[0]:
                continue
            if epoch > position[0]:
                break
            if epoch > self.at[0]:
                self._split.clear()  # what was left of a split write never comes
                self.at = (epoch, first)
                self.open = set() if epoch in history.clean else {self.at}
            known = history.epochs.get(epoch)
            if known is not None and known.incarnation != incarnation:
                raise SimulationError(f"volume {history.volume}: epoch {epoch} is held by a claim that lost")
            stop = position[1] if epoch == position[0] else history.last_of(epoch) if known is not None else first
            if stop > self.at[1]:
                if known is None or stop > history.last_of(epoch):
                    raise SimulationError(f"volume {history.volume}: {position} is no position of the history")
                self._apply(known, self.at[1] + 1, stop)
                self.at = (epoch, stop)
        if self.at != position:
            raise SimulationError(f"volume {history.volume}: {position} is no position of the history, it stands at {self.at}")

    @property
    def inside_split(self) -> bool:
        return bool(self._split)

    def _apply(self, epoch: Epoch, first: int, last: int) -> None:
        image = self.image
        for sequence in range(first, last + 1):
            entry = epoch.entry(sequence)
            if entry.kind == WRITE:
                self._split.append(entry)
                if entry.flags & MORE:
                    continue
                for part in self._split:
                    image[part.offset : part.offset + part.length] = part.payload
            elif entry.kind == ZERO:
                image[entry.offset : entry.offset + entry.length] = bytes(entry.length)
            elif entry.kind == GAP_BEGIN:
                self.open.add((epoch.number, sequence))
            elif entry.kind == SYNC_END:
                self.open -= closed_by(entry)
            self._split.clear()


def closed_by(entry: Entry) -> set[Position]:
    """Return the positions that a `sync_end` names; holes of the stored history, which have their time behind a slash, are left out."""
    told = json.loads(entry.payload)["closes"]
    return {(int(one.partition("-")[0]), int(one.partition("-")[2])) for one in told.split(",") if one and "/" not in one}


def first_difference(one: bytes | bytearray, two: bytes | bytearray) -> str | None:
    """Return where two images differ, in words; None if they do not."""
    if one == two:
        return None
    if len(one) != len(two):
        return f"{len(one)} and {len(two)} bytes"
    differ = [at for at in range(0, len(one), 512) if one[at : at + 512] != two[at : at + 512]]
    at = differ[0]
    return f"{len(differ)} sectors differ, the first at {at}: {one[at : at + 16].hex()} and {two[at : at + 16].hex()}"
