"""Canaries: planted bugs, by name. Each must be caught within a bounded number of seeds; one that survives fails the suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent import barrier
from agent import ring as layout
from agent.activity_log import ActivityLog
from agent.barrier import Barrier
from agent.bookmarks import TakenMark
from agent.debts import Debts
from agent.digests import Digests
from agent.extents import ExtentLocks
from agent.generations import Generations
from agent.intents import IntentSlots
from agent.publication import Publication
from agent.record_log import RecordLog
from agent.session import CaptureDevice
from agent.settled import Settled
from agent.volume import Volume
from cx_consumers import order, target_window
from cx_consumers.order import Verdict
from cx_consumers.persist import Persister
from cx_consumers.replica import ReplicaVolume
from cx_consumers.target_writer import ReplicaWriter
from history.builder import SealedSegment
from nbd.blockfile import BlockFile
from stream.errors import RetryError


@dataclass(frozen=True, slots=True)
class Canary:
    """A bug that `plant` puts into the product of this process; `faults` are those under which it shows."""

    story: str
    plant: Callable[[], None]
    faults: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the plan of a run must say besides, by the names of its fields."""


def _ack_before_persist() -> None:
    plain = Persister._put

    def put(self: Persister, sealed: SealedSegment) -> None:
        with suppress(RetryError):
            plain(self, sealed)

    Persister._put = put


def _count_before_kafka() -> None:
    plain = Publication._publish

    def publish(self: Publication) -> int:
        given = plain(self)
        self._words[layout.W_ACKED] = max(self._words[layout.W_ACKED], self._sent)
        return given

    Publication._publish = publish


def _skip_source_fsync() -> None:
    plain = ReplicaVolume.sync
    honest = BlockFile.sync

    def sync(self: ReplicaVolume) -> None:
        BlockFile.sync = honest
        try:
            plain(self)
        finally:
            BlockFile.sync = skip

    def skip(self: BlockFile) -> None:
        pass

    ReplicaVolume.sync = sync
    BlockFile.sync = skip


def _skip_replica_fsync() -> None:
    ReplicaVolume.sync = lambda self: None


def _accept_a_gap() -> None:
    plain = order._admit

    def admit(tail: Any, batch: Any, incarnation: bytes) -> Any:
        verdict, kept = plain(tail, batch, incarnation)
        return (Verdict.JOURNALED, batch) if verdict is Verdict.OUT_OF_SEQUENCE else (verdict, kept)

    order._admit = admit


def _ignore_epoch() -> None:
    plain = order._admit

    def admit(tail: Any, batch: Any, incarnation: bytes) -> Any:
        verdict, kept = plain(tail, batch, incarnation)
        return (Verdict.JOURNALED, batch) if verdict is Verdict.FENCED else (verdict, kept)

    order._admit = admit


def _drop_trim() -> None:
    def trim(self: Volume, slot: int, offset_bytes: int, length_bytes: int, *, durable: bool) -> int:
        recorded = self.begin(slot, offset_bytes, length_bytes, 1)
        self.source.file.trim(offset_bytes, length_bytes, durable=durable)
        self._leave(offset_bytes, recorded)
        return self.log.head

    Volume.trim = trim


def _checkpoint_before_data() -> None:
    plain = ReplicaWriter.apply

    def apply(self: ReplicaWriter, window: Any, known_end: Any) -> int:
        before, self.applied = self.applied, window.state
        self._save(self._ahead(window.state, known_end), self.durable.sizes)
        self.applied = before
        return plain(self, window, known_end)

    ReplicaWriter.apply = apply


def _label_after_bytes() -> None:
    ReplicaWriter._prepare = lambda self, steps, before, known_end: None


def _rewind_the_ring() -> None:
    plain = RecordLog.__init__

    def init(self: RecordLog, ring: Any, *rest: Any) -> None:
        ring.words[layout.W_HEAD] = ring.words[layout.W_ACKED]
        plain(self, ring, *rest)

    RecordLog.__init__ = init


def _reorder_overlapping() -> None:
    def enter(self: ExtentLocks, start_bytes: int, end_bytes: int) -> None:
        self._flying[start_bytes] = end_bytes

    ExtentLocks.enter = enter
    ExtentLocks.leave = lambda self, start_bytes: self._flying.pop(start_bytes, None)


def _free_before_acknowledged() -> None:
    RecordLog.retire = lambda self, chunk, sequence: self.allocator.give([chunk])


def _cut_splits() -> None:
    def append_write(self: RecordLog, offset_bytes: int, pieces: list[Any]) -> int:
        for piece in pieces:
            plain(self, offset_bytes, [piece])
            offset_bytes += piece[2]
        return self.head

    plain = RecordLog.append_write
    RecordLog.append_write = append_write


def _apply_half_a_split() -> None:
    target_window.complete = list
    target_window.complete_count = lambda batch: batch.count


def _flush_without_kafka() -> None:
    CaptureDevice.wait_stream = lambda self, sequence: None


def _forget_intents() -> None:
    IntentSlots.standing = lambda self: iter(())


def _owe_nothing_in_bitmap() -> None:
    Debts.owe_touched = lambda self, start_bytes, end_bytes: None


def _take_without_intent() -> None:
    def take(self: Debts, place: int, start_bytes: int, length_bytes_max: int) -> Any:
        with self._mutex:
            run = self._ring.next_owed(start_bytes, length_bytes_max)
            if run is not None:
                self._paying, self._paying_bytes = run, run[1] - run[0]
                self._ring.settle(*run)
            return run

    Debts.take = take


def _copy_without_a_second_look() -> None:
    plain = Settled.__enter__

    def enter(self: Settled) -> Any:
        self._watch.touched = False
        return plain(self)

    Settled.__enter__ = enter
    enter_watched = ExtentLocks.enter_watched
    ExtentLocks.enter_watched = lambda self, watch: enter_watched(self, watch) and False


def _trust_old_digests() -> None:
    Debts._doubt_digests = lambda self: None
    Digests._void = property(lambda self: False)


def _write_before_the_activity_log() -> None:
    ActivityLog.touch = lambda self, start_bytes, end_bytes: None


def _clear_before_kafka() -> None:
    plain = Generations.take_expired

    def take_expired(self: Generations, now_s: float, acked: int) -> Any:
        return plain(self, now_s, 1 << 62)

    Generations.take_expired = take_expired


def _mark_one_by_one() -> None:
    def put(self: Barrier, kind: Any, attributes: Any, mark_id: str, puts: Any) -> Any:
        marks = {}
        for volume in self._volumes:
            with self._held(volume):
                marks[volume.name] = TakenMark(str(volume.log.next_position), 0)
                puts[volume.name](kind, attributes)
            barrier.time.sleep(0.01)
        return marks

    Barrier._close = Barrier._drain = lambda self: None
    Barrier._put = put


def _mark_in_a_gap() -> None:
    Volume.out_of_order = lambda self: None


CANARIES: dict[str, Canary] = {
    "ack-before-persist": Canary("a segment counts as stored although the store refused it", _ack_before_persist, ("store_fails",)),
    "count-before-kafka": Canary(
        "what was given to Kafka counts as acknowledged", _count_before_kafka, ("break_producers", "kill_publisher")
    ),
    "skip-source-fsync": Canary("a flush is answered without fdatasync", _skip_source_fsync, ("host_power",)),
    "skip-replica-fsync": Canary("a checkpoint is written without fdatasync of the replica", _skip_replica_fsync, ("target_power",)),
    "accept-a-gap": Canary("order takes a batch that does not follow", _accept_a_gap, ("break_producers", "broker_loses")),
    "ignore-epoch": Canary("order takes what an older epoch publishes late", _ignore_epoch, ("host_power",)),
    "drop-trim": Canary("a trim is not recorded", _drop_trim),
    "checkpoint-before-data": Canary("the checkpoint says applied before the bytes are", _checkpoint_before_data, ("kill_target",)),
    "label-after-bytes": Canary("the replica is written under its old label", _label_after_bytes),
    "rewind-the-ring": Canary("capture begins again at what was acknowledged", _rewind_the_ring, ("kill_capture",)),
    "reorder-overlapping": Canary("overlapping operations do not wait for each other", _reorder_overlapping),
    "free-before-acknowledged": Canary("a payload's memory is used again before Kafka has it", _free_before_acknowledged, ("broker_down",)),
    "cut-splits": Canary("the parts of a split write are records of their own", _cut_splits, (), {"write_sectors": (600, 1300)}),
    "apply-half-a-split": Canary("a target applies the begin of a split write", _apply_half_a_split, ("kill_target", "kill_cx")),
    "flush-without-kafka": Canary("a flush under `stream` does not wait for Kafka", _flush_without_kafka, ("slow_network",)),
    "forget-intents": Canary("what a dead capture left unfinished is not copied", _forget_intents, ("kill_capture",)),
    "owe-nothing-in-bitmap": Canary("a write in BITMAP is not owed", _owe_nothing_in_bitmap, ("broker_down", "slow_network")),
    "take-without-intent": Canary(
        "a copier that dies forgets what it had taken", _take_without_intent, ("kill_capture", "ask_resync", "slow_disk")
    ),
    "copy-without-a-second-look": Canary("what was written during a copy is not read again", _copy_without_a_second_look),
    "trust-old-digests": Canary("digests count although debts came after them", _trust_old_digests, ("host_power", "source_error")),
    "write-before-the-activity-log": Canary("a write does not wait for its bit", _write_before_the_activity_log, ("host_power",)),
    "mark-one-by-one": Canary("the volumes of a group are marked one after the other", _mark_one_by_one, ("ask_bookmark",)),
    "mark-in-a-gap": Canary("a bookmark is taken while order is lost", _mark_in_a_gap, ("ask_bookmark", "outage")),
    "clear-before-kafka": Canary(
        "a bit is cleared before Kafka has what was written", _clear_before_kafka, ("host_power", "broker_down"), {"clear_after_s": 0.5}
    ),
}
