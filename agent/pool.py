"""The pool: the buffer's memory, in chunks of one size, shared by all volumes of the host.

Capture allocates and frees (`agent.allocator`); the publisher only maps it and reads payloads. Which chunks are taken is not written down
anywhere: after a restart it follows from the rings (`VolumeRing.chunks_held`).
"""

from __future__ import annotations

from pathlib import Path

from agent.memory import PAGE_BYTES, SharedFile
from stream.errors import IntegrityError

CHUNK_BYTES = 256 << 10
SYNC_SHARE_MAX = 0.5  # of the pool: a first copy never fills the buffer that live writes need
SYNC_SHARE_MIN = 0.125  # and always comes to its end: this much it may hold however busy the application is
PUBLISHER_BYTES_MAX = 16 << 20
PUBLISHER_SHARE = 8  # an eighth of the buffer is for the publisher's and librdkafka's copies, PUBLISHER_BYTES_MAX at most
_MAGIC = 0x304C4F4F504F48  # "HOPOOL0"

_WORD_MAGIC, _WORD_CHUNKS, WORD_PUBLISHER_SLEEPS, WORD_CAPTURE_WAITS = range(4)


class Pool:
    """The mapped chunks. `words` has the two flags of the doorbells."""

    def __init__(self, memory: SharedFile) -> None:
        self.memory = memory
        self.words = memory.words
        self.count = memory.words[_WORD_CHUNKS]
        if memory.words[_WORD_MAGIC] != _MAGIC or memory.size_bytes != PAGE_BYTES + self.count * CHUNK_BYTES:
            raise IntegrityError(f"{memory.path} is not a pool of this version", path=memory.path, hint="Stop the agent and remove it.")
        self.view = memory.view[PAGE_BYTES:]

    @classmethod
    def open(cls, path: Path, chunks: int) -> Pool:
        """Attach to the pool, or make one of that many chunks; an existing pool keeps its size while records are in it."""
        try:
            return cls(SharedFile.attach(path))
        except FileNotFoundError:
            memory = SharedFile.create(path, PAGE_BYTES + chunks * CHUNK_BYTES)
            memory.words[_WORD_CHUNKS] = chunks
            memory.words[_WORD_MAGIC] = _MAGIC
            return cls(memory)

    @classmethod
    def attach(cls, path: Path) -> Pool | None:
        """Attach to the pool that capture made; None while there is none."""
        try:
            return cls(SharedFile.attach(path))
        except (FileNotFoundError, IntegrityError):
            return None

    def chunk(self, number: int, count: int = 1) -> memoryview:
        """Return the memory of a chunk, or of `count` neighbours from it on as one piece."""
        return self.view[number * CHUNK_BYTES : (number + count) * CHUNK_BYTES]


def publisher_bytes(buffer_bytes_max: int) -> int:
    """Return the part of the buffer that is for messages on their way; the pool has the rest."""
    return min(PUBLISHER_BYTES_MAX, buffer_bytes_max // PUBLISHER_SHARE)


def pool_chunks(buffer_bytes_max: int) -> int:
    return (buffer_bytes_max - publisher_bytes(buffer_bytes_max)) // CHUNK_BYTES
