"""Intents: what may be happening on the source right now, written down before it happens (design rule 2).

A slot a connection or thread, in shared memory. After a kill the slots say which operations may have been left unfinished; their extents
are owed and copied as the source then holds them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from agent.ring import INTENT, INTENT_BYTES, INTENT_SLOTS_MAX, VolumeRing

_pack = INTENT.pack_into


class IntentSlots:
    """The slots of one volume; `mutex` is the volume's. A slot is known by its place in `memory`."""

    def __init__(self, ring: VolumeRing, mutex: threading.Lock) -> None:
        self.memory = ring.intents
        self._mutex = mutex
        self._free = list(range(INTENT_SLOTS_MAX - 1, -1, -1))

    @property
    def free_count(self) -> int:
        return len(self._free)

    def open(self) -> int:
        """Return the place of a free slot. Raises OSError when there are too many connections."""
        with self._mutex:
            if not self._free:
                raise OSError(24, "too many connections")  # EMFILE
            return self._free.pop() * INTENT_BYTES

    def close(self, place: int) -> None:
        """Clear and give back a slot."""
        self.clear(place)
        with self._mutex:
            self._free.append(place // INTENT_BYTES)

    def clear(self, place: int) -> None:
        _pack(self.memory, place, 0, 0, 0)

    def standing(self) -> Iterator[tuple[int, int, int]]:
        """Yield place, offset and length of every intent that a dead process left."""
        for slot in range(INTENT_SLOTS_MAX):
            offset_bytes, length_bytes, stands = INTENT.unpack_from(self.memory, slot * INTENT_BYTES)
            if stands:
                yield slot * INTENT_BYTES, offset_bytes, length_bytes
