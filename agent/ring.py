"""The ring of a volume: every captured record that Kafka does not have yet, in shared memory that outlives both processes.

One writer for each word: capture writes records, intents and modes; the publisher writes what Kafka has acknowledged. SIGKILL
of either loses nothing: the other side goes on, and the restarted one reads all it needs from here.

Layout (native byte order, one machine): a header page of 64-bit words and texts; a directory that maps a block of
`BLOCK_RECORDS` sequences to the pool chunk that holds its entries; intent slots; the owed map, one bit for `OWED_BYTES` of the
volume. An entry is 64 bytes: sequence, capture time, offset, length (u64 each), chunk, start (u32 each), kind, flags (u8 each),
22 bytes spare. Entries become visible by the store of the head word after them; this relies on x86-64's store order, and each entry
repeats its sequence, which the reader checks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from agent.memory import PAGE_BYTES, SharedFile
from agent.pool import CHUNK_BYTES
from stream.errors import IntegrityError
from stream.position import Position

_MAGIC = 0x32474E49524F48  # "HORING2"
ENTRY = struct.Struct("=QQQQIIBB22x")
INTENT = struct.Struct("=QQQ")
ENTRY_BYTES = 64
BLOCK_RECORDS = CHUNK_BYTES // ENTRY_BYTES
BLOCK_SHIFT = BLOCK_RECORDS.bit_length() - 1
BLOCKS_MAX = 1024
INTENT_SLOTS_MAX = 1024
INTENT_BYTES = 32
OWED_BYTES = 64 << 10
GROWTH_BYTES_MIN = 64 << 30  # a ring is made with an owed map for so much more, or half of the volume
NO_CHUNK = 0xFFFFFFFF

(
    _WORD_MAGIC,
    W_SIZE,
    W_EPOCH,
    W_INCARNATION,
    W_CLAIMED,
    W_HEAD,
    W_ACKED,
    W_SENT,
    W_NEXT_OFFSET,
    W_CAPTURED_BYTES,
    W_RESYNC_BYTES,
    W_CAPTURE_NS,
    W_MODE,
    W_MODE_SINCE_NS,
    W_SYNC_STATE,
    W_SYNC_TOTAL_BYTES,
    W_FENCED,
    W_CLEAN,
    W_STOPPED,
    W_STOP_INODE,
    W_STOP_SIZE,
    W_STOP_MTIME_NS,
    W_GAPS,
    W_ACKED_BYTES,
    W_BEGUN,
    W_SOURCE_INODE,
    W_EPOCH_FIRST,
    W_LOST,
    W_COMPARE,
    W_PROGRESS_NS,
    W_FIRST_COPY,
    W_RELAPSES,
    W_CLOCK_OFFSET_NS,
    W_GAP_OPEN,
    W_ORDER_LOST,
    W_COMPARE_AT,
    W_COMPARED_BYTES,
) = range(37)

SYNC_NONE, SYNC_OWED, SYNC_RUNNING, SYNC_ENDING = range(4)
CLAIM_NONE, CLAIM_DONE = range(2)
CLAIMED_ELSEWHERE = "another agent may have had it"  # told as `claimed_as`: the activity log at hand says nothing
GAP_REASONS = ("", "overflow", "source_changed", "resized")  # told by number in an entry that has no attributes
CLEAN_UNKNOWN, CLEAN_SOURCE, CLEAN_PROVED, CLEAN_NOT = range(4)
COMPARE_NONE, COMPARE_WANTED, COMPARE_ANSWERED, COMPARE_UNANSWERED = range(4)
COMPARE_DOUBTED = (1 << 64) - 1  # in W_COMPARE_AT, where no count of lost orders comes to

_TEXTS = {
    "volume": (1024, 64),
    "topic_id": (1088, 64),
    "mode_reason": (1152, 256),
    "closes": (1408, 1024),
    "handled": (2432, 1024),
    "claimed_as": (3456, 64),
    "believed": (3520, 64),
    "compare_gap": (3584, 64),
    "marked": (3648, 384),  # id, position and capture time of the last bookmark
}
_DIRECTORY_AT = PAGE_BYTES
_INTENTS_AT = _DIRECTORY_AT + BLOCKS_MAX * 8
_OWED_AT = _INTENTS_AT + INTENT_SLOTS_MAX * INTENT_BYTES


class VolumeRing:
    """The mapped ring: words by the `W_` names, texts by name, directory, intents, owed map."""

    def __init__(self, memory: SharedFile) -> None:
        self.memory = memory
        self.path = memory.path
        self.words = memory.words
        self.size_bytes = memory.words[W_SIZE]
        self.size_bytes_max = max(0, memory.size_bytes - _OWED_AT) * 8 * OWED_BYTES
        """Up to here the volume may grow while it is served."""
        if memory.words[_WORD_MAGIC] != _MAGIC or self.size_bytes > self.size_bytes_max:
            raise IntegrityError(f"{memory.path} is not a ring of this version", path=memory.path, hint="Stop the agent and remove it.")
        self.directory = memory.view[_DIRECTORY_AT:_INTENTS_AT].cast("Q")
        self.intents = memory.view[_INTENTS_AT:_OWED_AT]
        self._owed_map = memory.view[_OWED_AT:]
        self.owed = self._owed_map[: owed_map_bytes(self.size_bytes)]

    @classmethod
    def create(cls, path: Path, volume: str, size_bytes: int) -> VolumeRing:
        """Make an empty, unclaimed ring."""
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        room_bytes = owed_map_bytes(size_bytes + max(size_bytes // 2, GROWTH_BYTES_MIN))
        memory = SharedFile.create(new, -(-(_OWED_AT + room_bytes) // PAGE_BYTES) * PAGE_BYTES)
        memory.words[W_SIZE] = size_bytes
        memory.words[_WORD_MAGIC] = _MAGIC
        memory.path = path
        ring = cls(memory)
        ring.set_text("volume", volume)
        new.rename(path)
        return ring

    @classmethod
    def attach(cls, path: Path) -> VolumeRing:
        """Map the ring that is there. Raises FileNotFoundError, IntegrityError."""
        return cls(SharedFile.attach(path))

    def grow(self, size_bytes: int) -> None:
        """Be the ring of a larger volume, `size_bytes_max` at most; what is new is not owed by that."""
        self.owed = self._owed_map[: owed_map_bytes(size_bytes)]
        self.size_bytes = self.words[W_SIZE] = size_bytes

    def text(self, name: str) -> str:
        at, size = _TEXTS[name]
        return bytes(self.memory.view[at : at + size]).split(b"\0", 1)[0].decode(errors="ignore")

    def set_text(self, name: str, value: str) -> None:
        """Store a text; one that is too long is cut."""
        at, size = _TEXTS[name]
        raw = value.encode()[: size - 1]
        self.memory.view[at : at + size] = raw + bytes(size - len(raw))

    def listed(self, name: str) -> list[str]:
        """Return the words of a text that is a comma separated list."""
        return [one for one in self.text(name).split(",") if one]

    def add_listed(self, name: str, word: str) -> None:
        """Add a word to a list, once; the oldest go when there is no room, never a part of one."""
        _, size = _TEXTS[name]
        words = [*(one for one in self.listed(name) if one != word), word]
        while len(",".join(words)) >= size:
            words.pop(0)
        self.set_text(name, ",".join(words))

    def position(self, word: int) -> Position:
        """Return head, acked or sent as a position."""
        return Position(self.words[W_EPOCH], self.words[word])

    def entry_place(self, sequence: int) -> int:
        """Return where in the pool's chunks the entry of this sequence stands."""
        chunk = self.directory[(sequence >> BLOCK_SHIFT) % BLOCKS_MAX]
        if not chunk:
            raise IntegrityError("A ring has no memory for a record that it should hold", path=self.path, sequence=sequence)
        return (chunk - 1) * CHUNK_BYTES + (sequence % BLOCK_RECORDS) * ENTRY_BYTES

    def entries(self, pool: memoryview, first: int, last: int) -> Iterator[tuple[int, ...]]:
        """Yield the entries of sequences `first..last` as `ENTRY` tuples, checked to be those."""
        while first <= last:
            stop = min(last, first | (BLOCK_RECORDS - 1))
            at = self.entry_place(first)
            wanted = first
            for entry in ENTRY.iter_unpack(pool[at : at + (stop - first + 1) * ENTRY_BYTES]):
                if entry[0] != wanted:
                    raise IntegrityError("A ring's entry is not the expected one", path=self.path, expected=wanted, got=entry[0])
                yield entry
                wanted += 1
            first = stop + 1

    def chunks_held(self, pool: memoryview) -> set[int]:
        """Return the chunks that hold unacknowledged records or their entries: what a restarted capture must not give out."""
        first, head = self.words[W_ACKED] + 1, self.words[W_HEAD]
        if first > head:
            return set()
        held = {entry[4] for entry in self.entries(pool, first, head)}
        held.discard(NO_CHUNK)
        held.update(self.directory[block % BLOCKS_MAX] - 1 for block in range(first >> BLOCK_SHIFT, (head >> BLOCK_SHIFT) + 1))
        return held

    def owe(self, start_bytes: int, end_bytes: int) -> None:
        """Set the owed bits of `[start_bytes, end_bytes)`."""
        first, last = start_bytes // OWED_BYTES, (min(end_bytes, self.size_bytes) - 1) // OWED_BYTES
        whole_first, whole_last = -(-first // 8), (last + 1) // 8
        if whole_first < whole_last:
            self.owed[whole_first:whole_last] = b"\xff" * (whole_last - whole_first)
        for bit in range(first, last + 1):
            if whole_first * 8 <= bit < whole_last * 8:
                continue
            self.owed[bit >> 3] |= 1 << (bit & 7)

    def settle(self, start_bytes: int, end_bytes: int) -> None:
        """Clear the owed bits whose bytes lie wholly in `[start_bytes, end_bytes)` or end with the volume."""
        first = -(-start_bytes // OWED_BYTES)
        last = self._bits if end_bytes >= self.size_bytes else end_bytes // OWED_BYTES
        whole_first, whole_last = -(-first // 8), last // 8
        if whole_first < whole_last:
            self.owed[whole_first:whole_last] = bytes(whole_last - whole_first)
        for bit in range(first, last):
            if whole_first * 8 <= bit < whole_last * 8:
                continue
            self.owed[bit >> 3] &= ~(1 << (bit & 7)) & 0xFF

    def next_owed(self, start_bytes: int, length_bytes_max: int) -> tuple[int, int] | None:
        """Return the first owed run at or after `start_bytes`, cut at `length_bytes_max`, as `(start, end)`; None if there is none."""
        bit = start_bytes // OWED_BYTES
        while bit < self._bits and not self.owed[bit >> 3] >> (bit & 7) & 1:
            bit = bit + 1 if bit & 7 or self.owed[bit >> 3] else self._skip_settled(bit >> 3) * 8
        if bit >= self._bits:
            return None
        end = bit + 1
        while end < self._bits and (end - bit) * OWED_BYTES < length_bytes_max and self.owed[end >> 3] >> (end & 7) & 1:
            end += 1
        return bit * OWED_BYTES, min(end * OWED_BYTES, self.size_bytes)

    def owed_bytes(self) -> int:
        """Return how many bytes of the volume are owed (in whole bits; the last one cut at the volume's end)."""
        bits = int.from_bytes(self.owed, "little").bit_count()
        short = self._bits * OWED_BYTES - self.size_bytes
        last = self._bits - 1
        return bits * OWED_BYTES - (short if self.owed[last >> 3] >> (last & 7) & 1 else 0)

    def _skip_settled(self, at: int) -> int:
        """Return the first byte of the owed map from `at` on that is not zero, its length if there is none."""
        while at < len(self.owed):
            piece = bytes(self.owed[at : at + PAGE_BYTES])
            rest = piece.lstrip(b"\0")
            if rest:
                return at + len(piece) - len(rest)
            at += len(piece)
        return at

    @property
    def _bits(self) -> int:
        return -(-self.size_bytes // OWED_BYTES)

    def close(self) -> None:
        self.directory.release()
        self.intents.release()
        self.owed.release()
        self._owed_map.release()
        self.memory.close()


def owed_map_bytes(size_bytes: int) -> int:
    """Return how long the owed map of a volume of that size is."""
    bits = -(-size_bytes // OWED_BYTES)
    return -(-bits // 8)
