"""What a served volume is tried with: a host whose processes can be killed and whose memory can be lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from agent import clean_stop
from agent import ring as layout
from agent.allocator import ChunkAllocator
from agent.clean_stop import CleanStop
from agent.pool import Pool
from agent.record_log import RecordLog
from agent.ring import VolumeRing
from agent.served import ServedVolume
from stream.config import AgentConfig
from stream.control import VolumeDeclaration
from tests.agent_parts import MIB

SIZE = 2 * MIB
GAP_BEGIN, SYNC_END = 19, 18


class Killed(BaseException):
    """A SIGKILL at a chosen place."""


class Host:
    """One host: a source, a state folder, a ring folder; captures that come and go; a publisher that is played by hand."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        (self.state / "agent").mkdir(parents=True)
        self.rings = folder / "rings"
        self.rings.mkdir()
        self.source = folder / "source"
        self.source.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
        self.declaration = VolumeDeclaration("v", "host", str(self.source), SIZE)
        self.pool = Pool.open(self.rings / "pool", 64)
        self.epoch = 0
        self.log_end = 0
        self.topic_id = "topic"
        self.claimed_as = "unclean stop"

    def bring_up(self) -> ServedVolume:
        """Do what a new capture process does up to its first step."""
        path = self.rings / "v.ring"
        held = VolumeRing.attach(path).chunks_held(self.pool.view) if path.exists() else set()
        allocator = ChunkAllocator(self.pool.count, held, lambda: None, lambda _: None)

        def make_log(ring: VolumeRing) -> RecordLog:
            return RecordLog(ring, self.pool, allocator, lambda: None, held)

        self.served = ServedVolume(self.declaration, self.state, self.rings, make_log, AgentConfig())
        return self.served

    def claim(self) -> None:
        """Claim as the publisher does: clean only if marker and stream agree."""
        ring = self.served.ring
        words = ring.words
        if words[layout.W_CLAIMED] == layout.CLAIM_DONE:
            return
        believed = ring.text("believed") if words[layout.W_CLEAN] == layout.CLEAN_SOURCE else ""
        clean = believed == f"{self.epoch:08d}-{self.log_end:016d}" and ring.text("topic_id") == self.topic_id
        first = self.log_end == 0
        self.epoch += 1
        self.log_end += 1
        words[layout.W_EPOCH] = self.epoch
        words[layout.W_HEAD] = words[layout.W_ACKED] = words[layout.W_SENT] = self.log_end
        words[layout.W_CLEAN] = layout.CLEAN_PROVED if clean else layout.CLEAN_NOT
        ring.set_text("topic_id", self.topic_id)
        ring.set_text("claimed_as", "clean start" if clean else "first copy" if first else self.claimed_as)
        words[layout.W_CLAIMED] = layout.CLAIM_DONE

    def start(self) -> ServedVolume:
        """Bring up, claim if need be, step."""
        served = self.bring_up()
        self.claim()
        assert served.step()
        return served

    def deliver(self) -> None:
        """Acknowledge everything; no target answers a comparison."""
        words = self.served.ring.words
        if words[layout.W_COMPARE] == layout.COMPARE_WANTED:
            words[layout.W_COMPARE] = layout.COMPARE_UNANSWERED
        words[layout.W_ACKED] = self.log_end = words[layout.W_HEAD]

    def until(self, true: Callable[[ServedVolume], bool]) -> None:
        for _ in range(20_000):
            self.deliver()
            if true(self.served):
                return
            time.sleep(0.001)
        raise AssertionError(f"it never happened: {self.served.facts()}")

    def until_data(self) -> None:
        self.until(lambda served: served.facts()[1]["mode"] == "DATA" and served.facts()[1]["owed_bytes"] == 0)

    def kill(self) -> None:
        """End the process without a word: what it had in memory is gone, its lock too."""
        if self.served.copier is not None:
            self.served.copier._stop.set()
            self.served.copier._debts.pending.set()
            self.served.copier._thread.join(5)
        if self.served.verifier is not None:
            self.served.verifier.stop(5)
        self.served.source.close()

    def stop(self) -> bool:
        self.deliver()
        clean = self.served.stop(time.monotonic() + 5)
        self.log_end = self.served.ring.words[layout.W_HEAD]
        return clean

    def marker(self) -> CleanStop | None:
        """Return the clean-stop marker, by its place in the activity log's file."""
        return clean_stop.decode((self.state / "agent" / "v.activity").read_bytes()[4096:8192])

    def lose_memory(self) -> None:
        """The host went down: the rings are gone, the disk is there."""
        for path in self.rings.iterdir():
            path.unlink()
        self.pool = Pool.open(self.rings / "pool", 64)


def owed(served: ServedVolume) -> tuple[str, int]:
    facts = served.facts()[1]
    return facts["mode"], facts["owed_bytes"]


def marks(served: ServedVolume, kind: int) -> list[int]:
    """Return the sequences of the marks of a kind that wait in the ring."""
    words = served.ring.words
    entries = served.ring.entries(served.volume.log.pool.view, words[layout.W_ACKED] + 1, words[layout.W_HEAD])
    return [entry[0] for entry in entries if entry[6] == kind]


def touch(host: Host) -> None:
    with host.source.open("r+b") as file:
        file.write(b"somebody else")
    os.utime(host.source, ns=(1, time.time_ns() + 10**9))
