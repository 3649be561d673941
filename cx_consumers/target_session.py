"""One volume at the target: the loop that reads its journal and applies it to its replica.

Run by the volume's thread (`target_volume`). It decides what is a window, when the replica holds before a gap, and what is told and asked;
`target_writer` applies. Everything it knows it can read again from the checkpoint and the journal: on any doubt it raises, and a new
session begins. *Consistent at P* is written when nothing has been left to apply for `REST_S`, by a hold and by a clean stop.

Between windows it answers requests for digests and asks for the repair of what verification found to differ.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from cx_consumers.checkpoint import Checkpoint
from cx_consumers.replica import identity_of
from cx_consumers.target_chain import ChainState, Step, part
from cx_consumers.target_delay import check_delay, stored_s
from cx_consumers.target_digests import DigestServer
from cx_consumers.target_facts import VolumeFacts
from cx_consumers.target_hold import Hold, begins_hold, gap_opened
from cx_consumers.target_resume import Resumption, resume
from cx_consumers.target_source import Source
from cx_consumers.target_task import Surroundings, Task, repair_request, resync_request
from cx_consumers.target_window import Item, Window, divided, take
from cx_consumers.target_writer import ReplicaWriter
from history.chain import HOLES
from stream.consumer import StoredMessage
from stream.errors import IntegrityError, RetryError
from stream.journal import JournalBatch, JournalGap, OpenGap
from stream.log import event
from stream.position import Position

REST_S = 0.1
HOLD_CHECK_S = 1.0
REPAIR_ASK_S = 1.0  # what is found to differ meanwhile goes into one request
SILENCE_S = 2.5  # longer than a heartbeat: a reader is told nothing of a topic that was made anew
READ_AHEAD_BYTES_MAX = 16 << 20
_logger = logging.getLogger(__name__)


class Session:
    """Apply one volume's journal until it is told to stop. One thread uses it, once."""

    def __init__(self, task: Task, around: Surroundings, facts: VolumeFacts) -> None:
        self._task = task
        self._around = around
        self._log: Source
        self._writer: ReplicaWriter
        self._digests: DigestServer
        self._seen = ChainState()  # followed; ahead of what is applied by what is in `_items`
        self._pending: deque[StoredMessage] = deque()
        self._items: list[Item] = []
        self._items_bytes = 0
        self._hold: Hold | None = None
        self._held_since_s = 0.0
        self._hold_check_s = 0.0
        self._release_at = 0  # below this kafka_offset a hold was lifted: no other begins
        self._release_end: Position | None = None
        self._following = False  # this gap can't be held
        self._not_before_s = 0.0
        self._heard_s = 0.0
        self._repair_asked_s = 0.0
        self.facts = facts

    def run(self) -> None:
        """Apply until `stopped` is set, then leave the replica labelled as what it is.

        Raises RetryError and ResyncError (begin a new session), IntegrityError and ConfigError (the volume parks).
        """
        self._log = Source(self._around.open_log(), self._around.history, self._task.volume)
        try:
            self._begin()
            try:
                while not self._around.stopped.is_set():
                    self._turn()
                self._writer.rest(clean_stop=True)
            except IntegrityError as error:
                if self._log.topic_id() != self._writer.durable.topic_id:
                    raise RetryError(f"Topic {self._log.topic} was made anew", topic=self._log.topic) from error
                raise
            finally:
                self._writer.replica.close()
        finally:
            self._log.close()

    # --- beginning

    def _begin(self) -> None:
        """Open replica and journal where the checkpoint says; leave a checkpoint that is true of both."""
        task, file = self._task, self._around.file
        topic_id = self._log.topic_id()
        checkpoint = self._usable(file.load(), topic_id)
        config = self._around.config
        check_delay(task.delay_s, config.kafka, stored_s=stored_s(config, has_store=self._log.has_store))
        bounds, lacking = self._log.reach(checkpoint)
        resumed = resume(checkpoint, topic_id, bounds, time.time_ns(), lacking)
        sizes = (task.size_bytes,) if checkpoint is None else checkpoint.sizes
        replica = self._around.open_replica(task.path, sizes, checkpoint.identity if checkpoint else None)
        try:
            self._ask_for(resumed.chain.own_gaps if resumed.missed else ())
            durable = Checkpoint(task.volume, topic_id, resumed.chain, resumed.label, task.path, replica.identity, sizes)
            if checkpoint is not None:
                durable = replace(durable, verify=checkpoint.verify)
            if durable != checkpoint:
                file.save(durable)
            self._writer = ReplicaWriter(replica, file, durable, resumed.settled_at, self._log.topic, self._tell)
            self._digests = DigestServer(self._around.digests, replica, self._around.put, self._around.config.target.name)
            self._seen = resumed.chain
            self._ask_repairs()
            self._log.seek(resumed.chain)
        except BaseException:
            replica.close()
            raise
        self._heard_s = time.monotonic()
        self._tell(state="applying", note=resumed.note, error=None, hint=None)
        self._log_begin(resumed)

    def _usable(self, checkpoint: Checkpoint | None, topic_id: str) -> Checkpoint | None:
        """Return the checkpoint if it speaks of this replica: the operator may have named another, or removed and added the volume."""
        if checkpoint is None:
            return None
        moved = checkpoint.replica_path != self._task.path
        if (moved or checkpoint.retired) and identity_of(self._task.path) != checkpoint.identity:
            return None
        if checkpoint.retired and checkpoint.topic_id != topic_id:
            return None
        return replace(checkpoint, retired=False, replica_path=self._task.path)

    def _log_begin(self, resumed: Resumption) -> None:
        chain = self._writer.applied
        event(
            _logger,
            logging.INFO,
            "target_begins",
            volume=self._task.volume,
            position=chain.position,
            kafka_offset=chain.kafka_offset,
            consistent_at=resumed.label.consistent_at,
            missed=resumed.missed,
            note=resumed.note,
        )

    # --- the loop

    def _turn(self) -> None:
        """Read what is there, apply what may be applied, or rest."""
        if self._hold is not None:
            self._look_ahead(self._hold)
        else:
            self._read()
            self._follow()
            window, self._items = take(self._items)
            if window is not None:
                self._items_bytes = sum(item.work_bytes for item in self._items)
                self._apply(window)
            if self._hold is not None:
                self._enter_hold(self._hold)
            elif time.monotonic() - self._writer.last_bytes_s >= REST_S:
                self._writer.rest()
        self._digests.serve(self._writer.applied.position, self._held_before)
        if self._writer.verify.unasked and time.monotonic() - self._repair_asked_s >= REPAIR_ASK_S:
            self._ask_repairs()

    def _read(self) -> None:
        """Fetch messages; wait only when there is nothing else to do."""
        wait_s = self._rest_s
        if self._pending:
            wait_s = min(wait_s, max(0.0, self._not_before_s - time.time()))
            if sum(len(message.value or b"") for message in self._pending) >= READ_AHEAD_BYTES_MAX:
                self._around.stopped.wait(wait_s)
                return
        self._pending.extend(self._listen(wait_s))

    def _listen(self, wait_s: float) -> list[StoredMessage]:
        """Return what arrives; look after the topic when nothing has for `SILENCE_S`. Raises RetryError if it was made anew."""
        messages = self._log.poll(wait_s)
        now_s = time.monotonic()
        if messages:
            self._heard_s = now_s
            if self.facts.error is not None:
                self._tell(error=None, hint=None)
        elif now_s - self._heard_s >= SILENCE_S:
            try:
                topic_id = self._log.topic_id()
            except RetryError as error:  # the broker is away: what was read stays good, and reading goes on by itself
                self._tell(error=error.sentence, hint=error.hint or None)
            else:
                self._tell(error=None, hint=None)
                if topic_id != self._writer.durable.topic_id:
                    raise RetryError(f"Topic {self._log.topic} was made anew", topic=self._log.topic)
            self._heard_s = time.monotonic()
        return messages

    def _follow(self) -> None:
        """Follow pending messages into `_items`, as much as a window takes."""
        while self._pending and self._hold is None and self._takes_more():
            message = self._pending[0]
            entry = self._log.decode(message)
            if self._too_young(entry):
                return
            done = self._log.step(self._seen, message, entry)
            if done.state.own_gaps != self._seen.own_gaps:
                self._ask_for(gap for gap in done.state.own_gaps if gap not in self._seen.own_gaps)
            elif isinstance(entry, JournalGap) and not done.dropped:
                self._ask_for(done.state.own_gaps, entry.at_ns)
            if self._must_hold(done):
                self._begin_hold(done)
                return
            self._pending.popleft()
            self._add(Item(done.joined, done.state, None if done.entry is None else done.unpack(self._log.topic)))
            self._seen = done.state
            if done.state.whole and not done.before.whole:
                self._following = False

    def _add(self, item: Item) -> None:
        for piece in divided(item):
            self._items.append(piece)
            self._items_bytes += piece.work_bytes

    def _takes_more(self) -> bool:
        """Tell whether the window may grow: below its limit, or as long as all there is belongs to one split write."""
        return self._items_bytes < self._around.config.target.apply_window_bytes_max or take(self._items)[0] is None

    def _too_young(self, entry: object) -> bool:
        if not self._task.delay_s or not isinstance(entry, JournalBatch):
            return False
        self._not_before_s = entry.records.last_capture_time_ns / 1e9 + self._task.delay_s
        return self._not_before_s > time.time()

    def _apply(self, window: Window) -> None:
        """Have one window applied, and tell."""
        applied_bytes = self._writer.apply(window, self._known_end())
        batches = window.batches
        if not batches:
            return
        captured_ns = batches[-1].last_capture_time_ns
        age_ms = round((time.time_ns() - captured_ns) / 1e6, 3)
        self._tell(applied_capture_ns=captured_ns, apply_age_ms=age_ms, applied_bytes=self.facts.applied_bytes + applied_bytes)

    @property
    def _rest_s(self) -> float:
        """Return how long to wait when there is nothing to read."""
        return 0.0 if self._digests.waits(self._writer.applied.position, self._held_before) else REST_S

    # --- holds

    def _must_hold(self, done: Step) -> bool:
        return (
            self._around.config.target.during_resync == "hold"
            and not self._following
            and done.before.kafka_offset >= self._release_at
            and self._writer.settled(done.before)
            and begins_hold(done.before, done.state)
        )

    def _begin_hold(self, done: Step) -> None:
        """Let through what comes before the mark that opens the gap, in the same message; the hold is entered when that is applied."""
        batch = None if done.entry is None else done.unpack(self._log.topic)
        gap, count = gap_opened(done, batch)
        if batch is not None and count:
            prefix = batch.slice(0, count)
            self._seen = part(done.joined, done.state, prefix)
            self._add(Item(done.joined, self._seen, prefix))
        self._hold = Hold(self._seen, done.state.kafka_offset - 1, gap, self._around.config.kafka)

    def _enter_hold(self, begun: Hold) -> None:
        """Label the replica and read on from there, without applying."""
        applied = self._writer.applied  # fragments of a split that never ended are not in it
        self._hold = Hold(applied, begun.begins_at, begun.gap, self._around.config.kafka)
        self._drop_read(applied)
        self._held_since_s = self._hold_check_s = time.monotonic()
        self._writer.hold()
        self._tell(state="held", held=True)
        event(_logger, logging.INFO, "target_holds", volume=self._task.volume, position=applied.position)

    @property
    def _held_before(self) -> Position | None:
        return None if self._hold is None else self._hold.gap

    def _look_ahead(self, hold: Hold) -> None:
        for message in self._listen(self._rest_s):
            entry = self._log.decode(message)
            done = self._log.step(hold.seen, message, entry)
            hold.saw(
                done.state,
                log_bytes=len(message.value or b""),
                payload_bytes=0 if done.entry is None else done.entry.payload_bytes,
                timestamp_ms=message.timestamp_ms,
            )
            if hold.over:
                self._release(hold, None)
                return
        now_s = time.monotonic()
        log_start = None
        if now_s - self._hold_check_s >= HOLD_CHECK_S:
            self._hold_check_s = now_s
            log_start = self._log.bounds()[0]
        held_s = now_s - self._held_since_s
        reason = hold.must_end(held_s, log_start)
        if reason is not None and not self._log.keeps(hold, held_s):
            self._release(hold, reason)
        elif hold.waiting_bytes != self.facts.waiting_bytes:
            self._tell()

    def _release(self, hold: Hold, given_up: str | None) -> None:
        """Go back to the held message: to apply everything in one go, or as it comes if the journal will not keep it."""
        self._hold = None
        if given_up is None:
            self._release_at = hold.seen.kafka_offset
            self._release_end = hold.seen.position
        else:
            self._following = True
        self._drop_read(self._writer.applied)
        note = None if given_up is None else f"the hold was given up, the resync is followed as it comes: {given_up}"
        self._tell(state="applying", held=False, waiting_bytes=0, note=note)
        event(
            _logger,
            logging.INFO if given_up is None else logging.WARNING,
            "target_goes_on",
            volume=self._task.volume,
            position=self._writer.applied.position,
            until=None if given_up else hold.seen.position,
            given_up=given_up,
        )

    def _known_end(self) -> Position | None:
        """Return where the gap of a lifted hold closes, None when that has been passed."""
        return self._release_end if self._writer.applied.kafka_offset < self._release_at else None

    def _drop_read(self, state: ChainState) -> None:
        """Forget what was read and read again from `state` on."""
        self._pending.clear()
        self._items = []
        self._items_bytes = 0
        self._seen = state
        self._log.seek(state)

    # --- what is told and asked

    def _tell(self, **changed: object) -> None:
        """Publish the facts: those named, and those that follow from the state."""
        hold = self._hold
        seen = self._writer.applied if hold is None else hold.seen
        follows = {
            "open_gaps": len(seen.open_gaps) + len(seen.own_gaps),
            "gaps": seen.gaps,
            "waiting_bytes": 0 if hold is None else hold.waiting_bytes,
        }
        self.facts = replace(self.facts, **(self._writer.facts() | follows | changed))
        self._around.publish(self.facts)

    def _ask_for(self, gaps: Iterable[OpenGap], newest_ns: int | None = None) -> None:
        """Ask for a resync that closes these gaps of ours; the same gap asks under the same id, so it is one request, and another one after
        order began a gap at `newest_ns`."""
        for gap in gaps:
            if gap.reason not in HOLES:  # persist noted those, and asked
                self._around.put(resync_request(self._task.volume, self._around.config.target.name, gap, newest_ns))

    def _ask_repairs(self) -> None:
        """Ask for a resync of what is known to differ, if nobody was asked for it yet."""
        verify = self._writer.verify
        if verify.unasked:
            self._around.put(repair_request(self._task.volume, self._around.config.target.name, verify, time.time_ns()))
            self._writer.repairs_asked()
            self._repair_asked_s = time.monotonic()
