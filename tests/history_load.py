"""A long history made from a seed, stored as persist stores it: random writes and zeroes, with digests of an oracle at chosen instants.

Payload is a random half kilobyte repeated, so that gigabytes of writes take a hundred megabytes of disk. Nothing is kept but the segments
and the digests: the oracle is one bytearray that the writes are applied to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import xxhash

from history.builder import SegmentBuilder, Start
from history.chain import Chain
from history.store import Store
from stream.position import ZERO, Position
from stream.record import DIGEST_START, Kind
from tests.journal_maker import JournalMaker, Told, mark, write, zero

MESSAGE_BYTES = 256 << 10
BLOCK_BYTES = 512


@dataclass
class LongHistory:
    """`write_all` stores it; then `instants` holds the digest of the volume at each position chosen, `ends` at each segment's end."""

    store: Store
    seed: int
    volume_bytes: int
    write_bytes: tuple[int, int] = (4096, 65536)
    zero_share: float = 0.1
    segment_bytes: int = 8 << 20
    record_ns: int = 1_000_000
    instants: dict[Position, bytes] = field(default_factory=dict)
    ends: dict[Position, bytes] = field(default_factory=dict)
    payload_bytes: int = 0
    oracle: bytearray = field(default_factory=bytearray)

    def write_all(self, writes: int, instants: int) -> None:
        rng = Random(self.seed)
        chosen = set(rng.sample(range(writes), instants))
        maker = JournalMaker()
        self.oracle = oracle = bytearray(self.volume_bytes)
        chain = Chain(maker.volume, ZERO, DIGEST_START)
        builder = SegmentBuilder(Start(maker.volume, ZERO, DIGEST_START, "journal-id", 0))
        waiting, size = [mark(Kind.EPOCH_START, clean="true", size_bytes=str(self.volume_bytes))], 0
        for number in range(writes):
            told = self._one(rng)
            oracle[told.offset : told.offset + told.length] = told.data or bytes(told.length)
            waiting.append(told)
            size += len(told.data)
            if size < MESSAGE_BYTES and number not in chosen and number < writes - 1 and len(waiting) < 1000:
                continue
            builder = self._send(maker, chain, builder, waiting)
            waiting, size = [], 0
            if number in chosen:
                self.instants[maker.last] = xxhash.xxh3_128_digest(oracle)
        if not builder.is_empty:
            self._seal(builder)

    def _one(self, rng: Random) -> Told:
        length = rng.randrange(self.write_bytes[0] // BLOCK_BYTES, self.write_bytes[1] // BLOCK_BYTES + 1) * BLOCK_BYTES
        offset = rng.randrange((self.volume_bytes - length) // BLOCK_BYTES + 1) * BLOCK_BYTES
        if rng.random() < self.zero_share:
            return zero(offset, length)
        self.payload_bytes += length
        return write(offset, rng.randbytes(BLOCK_BYTES) * (length // BLOCK_BYTES))

    def _send(self, maker: JournalMaker, chain: Chain, builder: SegmentBuilder, waiting: list[Told]) -> SegmentBuilder:
        if maker.writer < 0:
            maker.fence()
        entry = maker.make(*waiting)
        maker.time_ns += self.record_ns * len(waiting)
        kafka_offset = len(maker.messages)
        maker.messages.append(maker.messages[0])  # its place counts, its bytes are not needed
        for one in chain.accept(entry, kafka_offset):
            builder.append(one, kafka_offset, chain.fence, chain.open_gaps)
        del maker.records[:-1]
        return self._seal(builder) if builder.size_bytes >= self.segment_bytes else builder

    def _seal(self, builder: SegmentBuilder) -> SegmentBuilder:
        sealed, following = builder.seal()
        self.ends[sealed.header.name.last] = xxhash.xxh3_128_digest(self.oracle)
        assert self.store.put(sealed.name, sealed.parts)
        return following
