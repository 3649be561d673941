"""What the agent proves and compares by: settled reads, verify marks, the replicas' digests; its clock; shares of the buffer."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
import xxhash

from agent import ring as layout
from agent.allocator import INDEX_CHUNKS_RESERVED, ChunkAllocator
from agent.clock import AgentClock
from agent.digest_file import DigestFile, path_of
from agent.digests import Digests
from agent.verifier import Verifier
from stream.position import Position
from tests.agent_parts import CHUNK, MIB, POOL_AT, Parts

VERIFY = 22
GAP = Position(1, 5)
CHUNK64 = 64 << 10


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, size_bytes=3 * MIB + 4096, chunks=64)


def marks(parts: Parts) -> list[dict[str, str]]:
    told = []
    for _, _, _, length, chunk, start, kind, _ in parts.pending():
        if kind == VERIFY:
            at = POOL_AT + chunk * CHUNK + start
            told.append(json.loads(bytes(parts.pool.memory.view[at : at + length])))
    return told


class TestVerifier:
    def test_a_round_covers_the_volume_in_rising_order(self, parts: Parts) -> None:
        parts.write(0, b"x" * 100_000)
        Verifier(parts.volume, 0)._round("r", 0)
        told = marks(parts)
        assert [int(one["offset_bytes"]) for one in told] == [0, MIB, 2 * MIB, 3 * MIB]
        assert [one["last"] for one in told] == ["false", "false", "false", "true"]
        assert int(told[-1]["length_bytes"]) == 4096
        for one in told:
            at, length = int(one["offset_bytes"]), int(one["length_bytes"])
            assert one["digest"] == xxhash.xxh3_128_hexdigest(bytes(parts.source.file.data[at : at + length]))

    def test_the_digest_is_of_the_position_of_its_mark(self, parts: Parts) -> None:
        """A write meets the read: the chunk is read again under the lock."""
        met = []

        def write(offset: int, length: int) -> None:
            if not met:
                met.append(1)
                parts.write(10, b"y" * 50)

        parts.source.file.before["read"] = write
        Verifier(parts.volume, 0)._publish("r", 0, MIB)
        parts.source.file.before.clear()
        entries = [entry[6] for entry in parts.pending()]
        assert entries[-1] == VERIFY
        assert marks(parts)[0]["digest"] == xxhash.xxh3_128_hexdigest(bytes(parts.source.file.data[:MIB]))

    def test_nothing_is_told_of_what_is_owed(self, parts: Parts) -> None:
        parts.volume.debts.owe(CHUNK64, 2 * CHUNK64)
        verifier = Verifier(parts.volume, 0)
        assert not verifier._publish("r", 0, MIB)
        assert verifier._publish("r", MIB, 2 * MIB)
        assert len(marks(parts)) == 1

    def test_a_round_that_is_asked_for_begins_at_once(self, parts: Parts) -> None:
        verifier = Verifier(parts.volume, 0)
        verifier.start()
        assert verifier.begin_round("asked")
        for _ in range(5000):
            if len(marks(parts)) == 4:
                break
            threading.Event().wait(0.001)
        assert {one["round"] for one in marks(parts)} == {"asked"}
        assert verifier.stop(5)

    def test_none_begins_out_of_order(self, parts: Parts) -> None:
        parts.volume.debts.owe_copy([(0, MIB)], "test", "")
        assert not Verifier(parts.volume, 0).begin_round("asked")


class TestDigests:
    def answer(self, parts: Parts, image: bytes, gap: Position = GAP) -> Digests:
        """Have one replica, which holds `image`, answer for the whole volume."""
        parts.volume.debts.owe_copy(parts.whole, "test", str(GAP))
        parts.volume.debts.compare(str(GAP))
        digests = Digests(parts.ring)
        assert not digests.ready()
        offsets = list(range(0, len(image), CHUNK64))
        answer = b"".join(xxhash.xxh3_128_digest(image[at : at + CHUNK64]) for at in offsets)
        with DigestFile(path_of(parts.folder, "v"), gap) as file:
            file.add(offsets, [answer])
            file.finish()
        parts.ring.words[layout.W_COMPARE] = layout.COMPARE_ANSWERED
        assert digests.ready()
        return digests

    def test_only_what_differs_is_sent(self, parts: Parts) -> None:
        parts.source.file.write(0, memoryview(b"s" * (2 * MIB)), 2 * MIB)
        image = bytearray(parts.source.file.data)
        image[CHUNK64 + 7] ^= 1
        image[MIB : MIB + 2 * CHUNK64] = bytes(2 * CHUNK64)
        parts.replica[:] = image
        digests = self.answer(parts, bytes(image))
        for at in range(0, 3 * MIB, CHUNK):
            parts.volume.copy(at, at + CHUNK, digests.differing)
        parts.volume.copy(3 * MIB, 3 * MIB + 4096, digests.differing)
        assert [(entry[2], entry[3]) for entry in parts.pending()] == [(CHUNK64, CHUNK64), (MIB, 2 * CHUNK64)]
        assert parts.ring.words[layout.W_COMPARED_BYTES] == 3 * MIB + 4096
        assert parts.ring.words[layout.W_RESYNC_BYTES] == 3 * CHUNK64
        parts.assert_equal()

    def test_an_answer_to_an_older_question_counts_for_nothing(self, parts: Parts) -> None:
        assert not self.answer(parts, bytes(3 * MIB + 4096), Position(1, 4)).there

    def test_they_are_void_once_order_was_lost(self, parts: Parts) -> None:
        """Changes miss in the stream then, so equal digests prove nothing."""
        digests = self.answer(parts, bytes(3 * MIB + 4096))
        assert digests.there
        parts.log.keep_entries()
        with parts.log.mutex:
            parts.volume.debts.lose_order("test")
        assert not digests.there
        assert digests.ready()
        assert parts.ring.words[layout.W_COMPARE] == layout.COMPARE_NONE


    def test_a_debt_that_comes_later_is_paid_whatever_the_digests_say(self, parts: Parts) -> None:
        """A recorded write, then a failed operation that brings back what the replica had: equal to its digest, but not to the replica
        once it has applied the write."""
        digests = self.answer(parts, bytes(3 * MIB + 4096))
        parts.write(0, b"recorded")

        def fail_late(offset: int, length: int) -> None:
            parts.source.file.data[offset : offset + length] = bytes(length)
            raise OSError(errno.EIO, "planted: it failed after it had its effect")

        parts.source.file.before["zero"] = fail_late
        with pytest.raises(OSError):
            parts.volume.zero(parts.slot, 0, 4096, punch=False, fast=False, durable=False)
        parts.volume.copy(0, CHUNK, digests.differing if digests.there else None)
        parts.assert_equal()

    @pytest.mark.parametrize("owed", ["repair", "copy"])
    def test_what_is_asked_for_later_is_sent(self, parts: Parts, owed: str) -> None:
        """A target asks for a chunk because its bytes are not what they were when it told their digest."""
        digests = self.answer(parts, bytes(3 * MIB + 4096))
        parts.replica[10] = 7
        if owed == "repair":
            parts.volume.debts.owe(0, CHUNK64)
        else:
            parts.volume.debts.owe_copy([(0, CHUNK64)], "test", "")
        parts.volume.copy(0, CHUNK64, digests.differing if digests.there else None)
        parts.assert_equal()


class TestClock:
    def test_never_goes_backward_and_follows_forward(self) -> None:
        words, wall, mono = [0] * 64, [1_000_000_000_000], [5_000_000_000]
        clock = AgentClock(words, lambda: wall[0], lambda: mono[0])
        told = []

        def pass_time(real_ns: int, jump_ns: int = 0) -> int:
            mono[0] += real_ns
            wall[0] += real_ns + jump_ns
            jump = clock.tend()
            told.append(mono[0] + words[layout.W_CLOCK_OFFSET_NS])
            return jump

        assert pass_time(50_000_000) == 0
        assert pass_time(50_000_000, 3_600_000_000_000) == 3_600_000
        assert told[-1] == wall[0], "forward at once"
        assert pass_time(50_000_000, -7_200_000_000_000) == -7_200_000
        for _ in range(100):
            assert pass_time(1_000_000_000) == 0
        assert told == sorted(told)
        assert told[-1] - told[-2] == 900_000_000, "a clock that was set back is approached slowly"

    def test_comes_to_the_wall_clock_again(self) -> None:
        words, wall, mono = [0] * 64, [10**15], [0]
        clock = AgentClock(words, lambda: wall[0], lambda: mono[0])
        wall[0] -= 2_000_000_000
        for _ in range(30):
            wall[0] += 1_000_000_000
            mono[0] += 1_000_000_000
            clock.tend()
        assert mono[0] + words[layout.W_CLOCK_OFFSET_NS] == wall[0]


class TestShares:
    def test_a_share_is_a_guarantee_not_a_cap(self) -> None:
        one = ChunkAllocator(102, (), lambda: None, lambda _: None)
        for owner in ("a", "b"):
            one.join(owner)
        count = 0
        while one.take(1, owner="a", keep_waiting=lambda: False) is not None:
            count += 1
        assert count == 75, "half, and its share of the other half"
        assert len(one.take(25, owner="b", keep_waiting=lambda: False) or ()) == 25
        assert one.take(1, owner="b", keep_waiting=lambda: False) is None
        assert one.free_count == INDEX_CHUNKS_RESERVED

    def test_one_volume_alone_has_everything(self) -> None:
        one = ChunkAllocator(102, (), lambda: None, lambda _: None)
        one.join("a")
        assert len(one.take(100, owner="a") or ()) == 100

    def test_what_leaves_gives_its_share_up(self) -> None:
        one = ChunkAllocator(102, range(10), lambda: None, lambda _: None)
        one.join("a")
        one.join("b", range(10))
        assert one.used("b") == 10
        one.leave("b")
        assert one.room("a") == 90
        one.give(range(10))
        assert one.used("b") == 0
        assert one.room("a") == 100

    def test_a_waiter_of_one_volume_holds_up_no_other(self) -> None:
        one = ChunkAllocator(102, (), lambda: None, lambda _: None)
        for owner in ("a", "b"):
            one.join(owner)
        one.take(75, owner="a")
        over = threading.Event()
        waiter = threading.Thread(target=one.take, args=(1,), kwargs={"owner": "a", "keep_waiting": lambda: not over.is_set()})
        waiter.start()
        for _ in range(5000):
            if one._queue:
                break
            threading.Event().wait(0.001)
        assert len(one.take(20, owner="b") or ()) == 20
        over.set()
        waiter.join(5)
        assert not waiter.is_alive()
