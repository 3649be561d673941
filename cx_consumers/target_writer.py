"""The replica of one volume together with its checkpoint: where windows are applied, verified and written down.

Used by the session, which decides what is a window. One window, in this order (design section 7, rules 24 and 26):

    1. the label says durably *not consistent until Q*, unless the last checkpoint already did
    2. part by part: the writes, each byte once; a new size; the digest that a verify mark wants compared
    3. fdatasync
    4. the checkpoint, with the label of the next window and with what was verified

so a kill at any instant applies again and never skips. A mark is compared only while the replica is what the stream says at its
position: not in a gap, not before the first copy ended, and after a crash not before everything was applied again. What a comparison
came to counts with the checkpoint that holds it; a crash before leaves the round broken and the chunk to the next one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cx_consumers.apply import ApplyPlan, plan
from cx_consumers.checkpoint import Checkpoint, CheckpointFile, Label
from cx_consumers.replica import ReplicaVolume
from cx_consumers.target_chain import ChainState
from cx_consumers.target_label import UNKNOWN, ahead, at_rest, covers
from cx_consumers.target_verify import Round, VerifyMark, compared
from cx_consumers.target_window import Part, Window
from stream.errors import IntegrityError
from stream.log import event
from stream.position import Position

LAZY_CHECKPOINT_S = 5.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """One part of a window, planned; `size_bytes` is the volume's while it is written, `size_after_bytes` after it."""

    part: Part
    plan: ApplyPlan
    size_bytes: int
    size_after_bytes: int


class ReplicaWriter:
    """Apply windows to a replica and keep its checkpoint. One thread uses it."""

    def __init__(
        self, replica: ReplicaVolume, file: CheckpointFile, durable: Checkpoint, settled_at: int, topic: str, on_saved: Callable[[], None]
    ) -> None:
        """`settled_at`: below this kafka_offset the replica may hold bytes of later records, left by a crash; `on_saved` hears of each
        new checkpoint."""
        self.replica = replica
        self.durable = durable
        self.applied = durable.chain  # in the replica; ahead of the checkpoint by records without bytes only
        self.verify = durable.verify
        self.round: Round | None = None
        self.last_bytes_s = time.monotonic()
        self._file = file
        self._settled_at = settled_at
        self._topic = topic
        self._on_saved = on_saved
        self._saved_s = self.last_bytes_s

    def apply(self, window: Window, known_end: Position | None) -> int:
        """Apply one window in the numbered order above; return how many bytes its records carried.

        `known_end` is where the open gaps close, if that is known. Raises IntegrityError before the first byte for writes behind the
        volume's end, RetryError and ConfigError for a replica that can't be written.
        """
        steps = self._planned(window)
        before = self._size_of(self.applied)
        changes = before != self.replica.size_bytes or any(one.plan.writes or one.size_bytes != one.size_after_bytes for one in steps)
        if changes:
            self._prepare(steps, before, known_end)  # 1
        for one in steps:  # 2
            if one.plan.writes:
                self.replica.write(one.plan.writes)
                self.verify = self.verify.written((offset, length) for offset, length, _ in one.plan.writes)
            if one.size_after_bytes != one.size_bytes:
                self.replica.resize(one.size_after_bytes)
                self.verify = self.verify.resized(one.size_after_bytes)
            if one.part.check is not None:
                self._check(one.part.check, one.part.state)
        self.applied = window.state
        if changes:
            self.replica.sync()  # 3
            self._save(self._ahead(window.state, known_end), (self.replica.size_bytes,))  # 4
            self.last_bytes_s = time.monotonic()
        elif self.verify != self.durable.verify:
            self._save(self._label_unwritten(), self.durable.sizes)
        return sum(one.plan.record_bytes for one in steps)

    def rest(self, *, clean_stop: bool = False) -> None:
        """Say what the replica is while nothing is written to it; keep the checkpoint from growing old."""
        label = self._label_at_rest()
        moved = (self.applied, self.verify) != (self.durable.chain, self.durable.verify)
        if label is not None and self.durable.label.consistent_at is None:
            self._save(label, self.durable.sizes)
        elif moved and (clean_stop or time.monotonic() - self._saved_s >= LAZY_CHECKPOINT_S):
            self._save(label or self.durable.label, self.durable.sizes)

    def hold(self) -> None:
        """Label the replica as what it is and will stay for a while."""
        self._save(self._label_at_rest() or self.durable.label, self.durable.sizes)

    def repairs_asked(self) -> None:
        """Note that a resync of what differs was asked for; a crash before the next checkpoint asks again, which does no harm."""
        self.verify = self.verify.asked()

    def settled(self, state: ChainState) -> bool:
        """Tell whether nothing beyond `state` was ever written to a replica that stands there."""
        return state.kafka_offset >= self._settled_at

    def facts(self) -> Mapping[str, Any]:
        """Return what follows from the state, as `VolumeFacts` names it."""
        label = self.durable.label
        consistent_at = label.consistent_at
        if consistent_at is not None and self.applied.whole:
            consistent_at = self.applied.position  # moved on since by records without bytes only
        told = {"position": self.applied.position, "consistent_at": consistent_at, "not_until": label.not_until}
        running = self.round
        if running is None:
            return told | self.verify.facts()
        return told | self.verify.facts() | {"verify_round": running.id, "verify_percent": running.percent(self.replica.size_bytes)}

    def _planned(self, window: Window) -> list[_Step]:
        steps = []
        size_bytes = self._size_of(self.applied)
        for part in window.parts:
            todo, after = plan(part.batches), part.state.size_bytes or size_bytes
            if todo.end_bytes > size_bytes:
                raise IntegrityError(
                    f"The journal {self._topic} writes behind the end of the volume, below kafka_offset {window.state.kafka_offset}",
                    topic=self._topic,
                    kafka_offset=window.state.kafka_offset,
                    expected=size_bytes,
                    got=todo.end_bytes,
                    hint="Check that replica and journal belong to the same volume.",
                )
            steps.append(_Step(part, todo, size_bytes, after))
            size_bytes = after
        return steps

    def _prepare(self, steps: list[_Step], before: int, known_end: Position | None) -> None:
        """Make the label and the sizes true of everything that a crash may leave, then give the replica the size to begin with.

        It has another one only after a crash inside a resize, which is then done again.
        """
        end = steps[-1].part.state
        sizes = tuple(dict.fromkeys((before, self.replica.size_bytes, *(one.size_after_bytes for one in steps))))
        if not covers(self.durable.label, end.position) or sizes != self.durable.sizes:
            self._save(self._ahead(end, known_end), sizes)
        self.replica.check()
        self.replica.resize(before)

    def _size_of(self, state: ChainState) -> int:
        """Return the volume's size at `state`: as the journal told it, else what the replica had when that began."""
        return state.size_bytes or self.durable.sizes[0]

    def _check(self, mark: VerifyMark, at: ChainState) -> None:
        """Compare what a mark says with the replica, which has everything before it and nothing after it."""
        equal, got, size_bytes = None, None, self.replica.size_bytes
        if at.whole and self.settled(at) and mark.end_bytes <= size_bytes:
            got = self.replica.digest(mark.offset_bytes, mark.length_bytes, from_disk=True)
            equal = got == mark.digest
        if equal is False:
            event(
                _logger,
                logging.ERROR,
                "verify_mismatch",
                volume=self.durable.volume,
                offset_bytes=mark.offset_bytes,
                length_bytes=mark.length_bytes,
                position=mark.position,
                round=mark.round,
                path=self.replica.path,
                expected=mark.digest.hex(),
                got="unreadable" if got is None else got.hex(),
            )
        self.verify, self.round = compared(self.verify, self.round, mark, at, equal=equal, size_bytes=size_bytes)

    def _ahead(self, state: ChainState, known_end: Position | None) -> Label:
        """Return the label of a replica at `state` that is written further; while it is known to differ nobody knows until when."""
        return UNKNOWN if self.verify.repairs else ahead(state, known_end)

    def _label_at_rest(self) -> Label | None:
        return at_rest(self.applied, settled=self.settled(self.applied) and not self.verify.repairs)

    def _label_unwritten(self) -> Label:
        """Return the label after a window that wrote nothing: as it was, unless the replica was found to differ."""
        if self.verify.repairs:
            return UNKNOWN
        return self.durable.label if self.durable.label.consistent_at is None else self._label_at_rest() or self.durable.label

    def _save(self, label: Label, sizes: tuple[int, ...]) -> None:
        """Replace the checkpoint by what is applied and verified."""
        self.durable = replace(self.durable, chain=self.applied, label=label, sizes=sizes, verify=self.verify)
        self._file.save(self.durable)
        self._saved_s = time.monotonic()
        self._on_saved()
