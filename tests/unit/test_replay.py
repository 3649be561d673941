"""Replay: which records of a topic count, where a range begins and ends, what the scratch volume then holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbd.blockfile import BlockFile
from recovery.comparison import different_extents
from recovery.point import AtBookmark, AtPosition, AtTime, Latest, Wanted
from recovery.replay import Replay, Replayed
from recovery.scratch_volume import ScratchVolume
from recovery.topic_order import WritesOrder
from stream.errors import ConfigError, IntegrityError, RecoveryError
from stream.extent import Extent
from stream.position import Position
from stream.record import FLAG_MORE, Batch, Kind
from tests.journal_maker import STEP_NS, JournalMaker, flush, image, mark, write, zero
from tests.recovery_parts import FakeImage, sparse_bytes
from tests.writes_maker import WritesMaker

SIZE = 1 << 16
LATEST = Latest()


class FakeClock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


class SmallDevice(BlockFile):
    """A file that behaves as a block device of 4 KiB does: it can't grow."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_device = True

    def measure(self) -> int:
        return 4096


def begun() -> WritesMaker:
    """Return an agent whose first copy is over."""
    maker = WritesMaker()
    maker.begin(first=True, size_bytes=SIZE)
    maker.put(write(0, b"a" * 4096), mark(Kind.SYNC_END, closes=str(Position(1, 1))))
    return maker


def replayed(
    maker: WritesMaker | JournalMaker, path: Path, start: Wanted | None = None, end: Wanted = LATEST, **options: object
) -> tuple[bytes, Replayed]:
    if isinstance(maker, WritesMaker):
        replay = Replay("v1", "writes", maker.read)
    else:
        replay = Replay("v1", "journal", lambda kafka_offset: maker.messages[kafka_offset or 0 :])
    found = replay.find(start, end, now_ns=maker.time_ns)
    path.touch()
    file = BlockFile(path)
    try:
        return path.read_bytes(), replay.apply(found, file, **options)
    finally:
        file.close()


def check(maker: WritesMaker, path: Path, end: Wanted = LATEST, last: int | None = None) -> Replayed:
    """Replay from the beginning; the volume must be all that was captured up to sequence `last`."""
    path.unlink(missing_ok=True)
    done = replayed(maker, path, None, end)[1]
    wanted = image(maker.captured[:last], 0)
    assert path.read_bytes() == wanted
    assert done.end.sequence == (last or len(maker.captured))
    return done


def test_duplicates_overlaps_and_late_messages_leave_nothing(tmp_path: Path) -> None:
    maker = begun()
    first = maker.capture(write(100, b"b" * 600), zero(300, 100), write(0, b"c" * 50))
    maker.publish(*first)
    maker.publish(*first)
    maker.capture(write(90, b"d" * 20))
    maker.publish(first[1] - 1, first[1] + 1)
    old = maker.capture(write(0, b"e" * 4096))
    maker.publish(*old)
    maker.begin(clean=True)
    maker.put(write(5, b"f"))
    late = maker.messages[-3].value
    maker.publish(*old)  # a dead host's last message comes late
    assert maker.messages[-1].value == late
    maker.put(flush())
    check(maker, tmp_path / "out")


def test_another_claim_on_the_same_epoch_does_not_count(tmp_path: Path) -> None:
    maker = begun()
    maker.put(write(0, b"right"))
    wrong = maker.capture(write(0, b"WRONG"))
    maker.publish(*wrong, incarnation=b"somebody")
    maker.captured[wrong[0] - 1] = (*maker.captured[wrong[0] - 1][:2], write(9, b"good"))
    maker.publish(*wrong)
    check(maker, tmp_path / "out")


def test_records_out_of_sequence_are_taken_when_they_come_again(tmp_path: Path) -> None:
    maker = begun()
    lost, after = maker.capture(write(0, b"lost")), maker.capture(write(2, b"ahead"))
    maker.publish(*after)
    maker.publish(*lost)
    maker.publish(*after)
    check(maker, tmp_path / "out")


def test_records_that_never_come_begin_a_gap_that_a_resync_closes(tmp_path: Path) -> None:
    maker = begun()
    good = maker.sequence
    maker.capture(write(0, b"never published"))
    maker.put(write(2, b"ahead"))
    check(maker, tmp_path / "out", LATEST, good)
    maker.put(write(0, b"copied again!!!"))
    maker.put(mark(Kind.SYNC_END, closes=str(Position(1, good))))
    maker.put(write(40, b"x"))
    maker.captured[good] = (*maker.captured[good][:2], flush())
    check(maker, tmp_path / "out")
    with pytest.raises(RecoveryError, match="no recovery point") as refused:
        replayed(maker, tmp_path / "no", None, AtPosition(Position(1, good + 2)))
    assert str(Position(1, good)) in refused.value.hint and str(Position(1, good + 4)) in refused.value.hint


def test_a_new_epoch_closes_no_gap_that_is_not_its_agents(tmp_path: Path) -> None:
    """What a broker lost is owed until a resync names it, whatever the agent compares after a crash."""
    maker = begun()
    good = maker.sequence
    maker.capture(write(0, b"never published"))
    maker.put(write(2, b"ahead"))
    maker.begin(clean=False)
    maker.put(mark(Kind.SYNC_END, closes=str(Position(2, maker.sequence))), write(9, b"x"))
    check(maker, tmp_path / "out", LATEST, good)
    maker.put(write(0, b"copied again!!!"), mark(Kind.SYNC_END, closes=str(Position(1, good))))
    assert replayed(maker, tmp_path / "all")[1].end.sequence == maker.sequence


def test_a_split_write_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    maker = begun()
    before = maker.sequence
    maker.put(write(0, b"1" * 300, more=True), write(300, b"2" * 300, more=True))
    check(maker, tmp_path / "out", LATEST, before)
    maker.put(write(600, b"3" * 300))
    check(maker, tmp_path / "out")
    maker.put(write(0, b"given up", more=True))
    maker.begin(clean=True)
    maker.put(write(7, b"!"))
    check(maker, tmp_path / "out")


def test_times_bookmarks_and_positions_name_the_end(tmp_path: Path) -> None:
    maker = begun()
    for index in range(20):
        maker.put(write(index * 10, bytes([index + 1]) * 30), write(0, bytes([index])))
    maker.put(mark(Kind.BOOKMARK, label="before"), write(0, b"after"))
    marked = maker.sequence - 1
    check(maker, tmp_path / "out", AtBookmark("before"), marked)
    check(maker, tmp_path / "out", AtPosition(Position(1, 17)), 17)
    at_ns = maker.captured[24][1]
    check(maker, tmp_path / "out", AtTime(at_ns), 25)
    check(maker, tmp_path / "out", AtTime(at_ns + STEP_NS - 1), 25)
    with pytest.raises(RecoveryError, match="'never'"):
        replayed(maker, tmp_path / "no", None, AtBookmark("never"))
    with pytest.raises(RecoveryError, match="before it begins"):
        replayed(maker, tmp_path / "no", AtPosition(Position(1, 20)), AtPosition(Position(1, 10)))
    assert not (tmp_path / "no").exists()


def test_a_range_goes_on_from_an_image_of_its_begin(tmp_path: Path) -> None:
    maker = begun()
    for index in range(700):
        maker.put(write(index * 10, bytes([index % 255 + 1]) * 30), zero(index, 5))
    start = Position(1, 1200)
    (tmp_path / "out").write_bytes(image(maker.captured[:1200], 0))
    read: list[int | None] = []
    replay = Replay("v1", "writes", lambda kafka_offset: read.append(kafka_offset) or maker.read(kafka_offset))
    found = replay.find(AtPosition(start), Latest(), 0)
    file = BlockFile(tmp_path / "out")
    done = replay.apply(found, file)
    file.close()
    assert (tmp_path / "out").read_bytes() == image(maker.captured, 0)
    assert done.records == len(maker.captured) - 1200
    assert read[0] is None and read[1] > 0, "the second reading begins near the range"


def test_a_topic_that_lost_its_begin_says_so_and_goes_on_from_an_image(tmp_path: Path) -> None:
    maker = begun()
    for index in range(10):
        maker.put(write(index, bytes([index + 1])))
    whole = list(maker.messages)
    maker.messages, maker.low = whole[6:], 6
    with pytest.raises(RecoveryError, match="no longer begins"):
        replayed(maker, tmp_path / "no")
    first = WritesOrder("v1", "").accept(maker.messages[0])[0].batch.first_sequence
    (tmp_path / "out").write_bytes(image(maker.captured[: first - 1], 0))
    replayed(maker, tmp_path / "out", AtPosition(Position(1, first - 1)))
    assert (tmp_path / "out").read_bytes() == image(maker.captured, 0)
    with pytest.raises(RecoveryError):
        replayed(maker, tmp_path / "out", AtPosition(Position(1, first - 2)))


def test_nothing_is_sound_before_the_end_of_a_gap_that_began_before_the_topic(tmp_path: Path) -> None:
    maker = begun()
    maker.put(mark(Kind.GAP_BEGIN, reason="overflow"))
    begin = str(Position(1, maker.sequence))
    lost = len(maker.messages)
    maker.put(write(0, b"in the gap"))
    maker.put(mark(Kind.SYNC_END, closes=begin), write(0, b"after"))
    maker.messages, maker.low = maker.messages[lost:], lost
    replay = Replay("v1", "writes", maker.read)
    with pytest.raises(RecoveryError):
        replay.find(AtPosition(Position(1, maker.sequence - 2)), Latest(), 0)
    assert replay.find(AtPosition(Position(1, maker.sequence - 1)), Latest(), 0).start.sequence == maker.sequence - 1


def test_the_original_pace_is_that_of_the_capture(tmp_path: Path) -> None:
    maker = begun()
    for index in range(5):
        maker.time_ns += 3_000_000_000
        maker.put(write(index, b"x"), write(index + 100, b"y"))
    clock = FakeClock()
    done = replayed(maker, tmp_path / "out", speed=1.0, clock=clock)[1]
    assert clock.time_s == pytest.approx(done.captured_s, abs=0.1) and done.captured_s > 15
    clock = FakeClock()
    replayed(maker, tmp_path / "again", speed=10.0, clock=clock)
    assert clock.time_s == pytest.approx(done.captured_s / 10, abs=0.1)
    assert (tmp_path / "again").read_bytes() == image(maker.captured, 0)


def test_a_damaged_message_stops_it(tmp_path: Path) -> None:
    maker = begun()
    message = maker.put(write(0, b"x" * 100))
    raw = bytearray(message.value)
    raw[60] ^= 1
    maker.messages[-1] = type(message)(message.topic, message.kafka_offset, None, bytes(raw), {}, 0)
    with pytest.raises(IntegrityError):
        replayed(maker, tmp_path / "no")


def test_the_journal_is_applied_past_stale_workers_gaps_and_splits(tmp_path: Path) -> None:
    maker = JournalMaker()
    maker.batch(mark(Kind.EPOCH_START, first="true", size_bytes=str(SIZE)), write(0, b"a" * 1000))
    maker.batch(mark(Kind.SYNC_END, closes=str(Position(1, 1))), write(5, b"split", more=True))
    stale = maker.entries[-1]
    maker.batch(write(10, b"rest"), zero(100, 50))
    maker.repeat(stale)
    maker.fence("w2")
    maker.repeat(stale)
    maker.batch(write(200, b"b" * 100), flush())
    replayed(maker, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image(maker.records, 0)
    good = maker.sequence
    maker.gap()
    maker.sequence += 5
    maker.batch(write(0, b"in the gap"))
    assert replayed(maker, tmp_path / "again")[1].end.sequence == good
    closes = str(maker.open_gaps[0].position)
    maker.open_gaps = ()
    maker.batch(mark(Kind.SYNC_END, closes=closes), write(300, b"c"))
    replayed(maker, tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == image(maker.records, 0)


def test_a_volume_compared_with_an_image(tmp_path: Path) -> None:
    data = sparse_bytes(20 << 20, 3)
    path = tmp_path / "out"
    path.write_bytes(data)
    file = BlockFile(path)
    try:
        assert different_extents(file, FakeImage(data)) == []
        hole = data.index(bytes(8192), 9 << 20) + 4000
        other = bytearray(data)
        other[hole] ^= 1
        some = next(index for index, byte in enumerate(data) if byte)
        other[some] ^= 1
        found = different_extents(file, FakeImage(other))
        assert [extent for extent in found if extent.offset_bytes <= some < extent.end_bytes]
        assert [extent for extent in found if extent.offset_bytes <= hole < extent.end_bytes]
        assert sum(extent.length_bytes for extent in found) <= 1024
        assert different_extents(file, FakeImage(data[:-5])) == [Extent(len(data) - 5, 5)]
        file.zero(some, 1, punch=True)
        assert different_extents(file, FakeImage(data))
    finally:
        file.close()


def test_a_device_that_is_too_small_is_refused(tmp_path: Path) -> None:
    maker = begun()
    (tmp_path / "out").touch()
    file = SmallDevice(tmp_path / "out")
    replay = Replay("v1", "writes", maker.read)
    with pytest.raises(ConfigError, match="needs"):
        replay.apply(replay.find(None, Latest(), 0), file)
    file.close()


def test_records_of_a_newer_epoch_count_only_behind_its_start() -> None:
    """A message whose `epoch_start` a broker lost, or has not got yet, is passed by and noted as a hole."""
    maker = begun()
    order = WritesOrder("v1", maker.messages[0].topic)
    for message in maker.messages:
        order.accept(message)
    maker.epoch += 1
    late = maker.publish(*maker.capture(write(0, b"stranger")))
    assert order.accept(late) == []
    assert order.hole == late.kafka_offset


def test_half_a_split_write_is_not_joined_to_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_bytes(bytes(SIZE))
    file = BlockFile(tmp_path / "scratch")
    volume = ScratchVolume(file)

    def batch(sequence: int, offset: int, data: bytes, flags: int) -> Batch:
        return Batch("v1", 1, sequence, 0, bytes([Kind.WRITE]), bytes([flags]), [offset], [len(data)], [0], data, {})

    volume.apply(batch(1, 0, b"half", FLAG_MORE))
    volume.apply(batch(9, 100, b"whole", 0))
    volume.sync()
    file.close()
    assert (tmp_path / "scratch").read_bytes().strip(b"\0") == b"whole"
