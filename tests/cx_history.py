"""Invented agents for tests of order: what they publish, mixed into one log, and a judge that reads it record by record.

`Oracle` is a loop over single records with its own digest; it shares no code with order or with Batch's cutting.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace

import xxhash

from stream.record import Batch


@dataclass(frozen=True)
class One:
    """A record of the agent, as the oracle sees it."""

    epoch: int
    sequence: int
    time_ns: int
    kind: int
    flag: int
    offset: int
    body: bytes
    told: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sent:
    """A message of the writes topic: consecutive records under a claim."""

    claim: bytes
    ones: tuple[One, ...]

    def batch(self) -> Batch:
        first = self.ones[0]
        return Batch(
            "v", first.epoch, first.sequence, first.time_ns, bytes(one.kind for one in self.ones), bytes(one.flag for one in self.ones),
            [one.offset for one in self.ones], [len(one.body) for one in self.ones], [one.time_ns - first.time_ns for one in self.ones],
            b"".join(one.body for one in self.ones), {index: dict(one.told) for index, one in enumerate(self.ones) if one.told},
        )  # fmt: skip


@dataclass
class Oracle:
    """The journal as a list of records, one by one."""

    epoch: int = 0
    sequence: int = 0
    claim: bytes = bytes(8)
    history: list[One] = field(default_factory=list)
    digest: bytes = bytes(16)

    def see(self, message: Sent) -> None:
        for one in message.ones:
            starts = one.kind == 16 and one.epoch > self.epoch
            follows = one.epoch == self.epoch and message.claim == self.claim and one.sequence == self.sequence + 1
            if not (starts or follows):
                if one.epoch == self.epoch and message.claim == self.claim and one.sequence <= self.sequence:
                    continue
                return
            self.epoch, self.sequence, self.claim = one.epoch, one.sequence, message.claim
            self.history.append(one)
            content = one.body if one.kind == 1 else b"".join(f"{key}\0{value}\0".encode() for key, value in sorted(one.told))
            meta = struct.pack("<QQBBQQQ", one.epoch, one.sequence, one.kind, one.flag, one.offset, len(one.body), one.time_ns)
            hashed = xxhash.xxh3_128_digest(content) if one.kind == 1 or one.told else b""
            self.digest = xxhash.xxh3_128_digest(self.digest + meta + hashed)


def agents(rng: random.Random) -> list[list[Sent]]:
    """Return what each of some epochs publishes, in its own order: cut at random, with repeats that overlap."""
    published, sequence, time_ns = [], 0, 1_000
    for epoch in range(1, rng.randint(2, 4)):
        for claim_number in range(rng.randint(1, 2)):  # two claims on one number: the first epoch_start in the log wins
            claim = struct.pack(">II", epoch, claim_number)
            ones = [One(epoch, sequence + 1, time_ns, 16, 0, 0, b"", (("clean", rng.choice(["true", "false"])),))]
            for number in range(rng.randint(0, 25)):
                time_ns += rng.randint(0, 5)
                body = rng.randbytes(rng.randint(1, 6))
                kind, told = (1, ()) if rng.random() < 0.9 else (24, (("n", str(number)),))
                ones.append(
                    One(epoch, sequence + 2 + number, time_ns, kind, rng.randint(0, 1) if kind == 1 else 0, rng.randint(0, 99),
                        body if kind == 1 else b"", told)
                )  # fmt: skip
            published.append(_cuts(rng, claim, ones))
        sequence = ones[-1].sequence + rng.randint(-1, 3) if len(ones) > 1 else sequence + 1
    return published


def _cuts(rng: random.Random, claim: bytes, ones: list[One]) -> list[Sent]:
    sent, at = [], 0
    while at < len(ones):
        size = rng.randint(1, 6)
        sent.append(Sent(claim, tuple(ones[at : at + size])))
        at += size
        if rng.random() < 0.25:  # a producer was replaced: it goes on from an earlier position, cut elsewhere
            at = max(0, at - rng.randint(1, 8))
    return sent


def interleaved(rng: random.Random, published: list[list[Sent]], lossy: bool) -> list[Sent]:
    """Return one log: each epoch's own order kept, epochs mixed where they overlap, some messages lost if `lossy`."""
    queues = [list(one) for one in published]
    log: list[Sent] = []
    current = 0
    while any(queues):
        if not queues[current] or rng.random() < 0.1:
            current = (current + 1) % len(queues)
            continue
        message = queues[current].pop(0)
        if not (lossy and rng.random() < 0.1):
            log.append(message)
    return _continued(log, {one[0].ones[0].epoch: one[0].ones[0].sequence for one in published})


def _continued(log: list[Sent], starts: dict[int, int]) -> list[Sent]:
    """Return the log with each epoch's sequences moved, so that it begins right behind what its agents found in the log (of a claim that
    lost, which a real agent notices at once, only the start)."""
    moved: dict[int, int] = {}
    won: dict[int, bytes] = {}
    last, found = (0, 0), []
    for message in log:
        epoch = message.ones[0].epoch
        by = moved.setdefault(epoch, last[1] + 1 - starts[epoch])
        found.append(Sent(message.claim, tuple(replace(one, sequence=one.sequence + by) for one in message.ones)))
        if won.setdefault(epoch, message.claim) == message.claim:
            last = max(last, (epoch, found[-1].ones[-1].sequence))
    return found
