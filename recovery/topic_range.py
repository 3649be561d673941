"""The range of a topic that a replay applies: which records, found by reading the topic once, before anything is written.

Called by `replay`. Kafka alone is asked: a POINT is looked up among what the topic itself says is a recovery point. Pure but for reading:
the messages come from the caller, who reads the same stretch of log each time it is asked to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from recovery.point import Ago, AtBookmark, AtPosition, AtTime, Latest, Wanted, format_time
from recovery.topic_order import Portion, TopicOrder
from stream.consumer import StoredMessage
from stream.errors import RecoveryError
from stream.position import ZERO, Position
from stream.record import Kind

SNAPSHOT_MESSAGES = 256

Messages = Callable[[int | None], Iterable[StoredMessage]]
"""Reads the topic from a kafka_offset (None: its start) to an end that stays the same."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where reading can begin again: before the message at `kafka_offset`, with everything up to `position` behind it."""

    kafka_offset: int
    position: Position
    order: TopicOrder


@dataclass(frozen=True, slots=True)
class TopicRange:
    """Records above `start`, up to `end`; both are recovery points (`start` may be ZERO, an empty volume). `snapshot` stands at or below
    `start`; `bookmarks` are those inside, by label."""

    start: Position
    end: Position
    end_time_ns: int
    snapshot: Snapshot


def find_range(messages: Messages, order: TopicOrder, start: Wanted | None, end: Wanted, *, now_ns: int, volume: str) -> TopicRange:
    """Read the topic and return the range. `start` None is the beginning. Raises RecoveryError that names what could be had, and what
    reading and the order raise; leaves `order.hole` set if records are missing at the end."""
    starts = PointFinder(volume, start, now_ns) if start is not None else None
    ends = PointFinder(volume, end, now_ns)
    snapshots: list[Snapshot] = []
    first: Portion | None = None
    last = ZERO
    for count, message in enumerate(messages(None)):
        if count % SNAPSHOT_MESSAGES == 0:
            snapshots.append(Snapshot(message.kafka_offset, last, order.copy()))
        for portion in order.accept(message):
            first = first or portion
            last = portion.batch.last
            for finder in (starts, ends):
                if finder is not None:
                    finder.feed(portion)
    if first is None:
        raise RecoveryError(f"The topic of {volume} holds no records", hint="Has the volume been written to, and is this its Kafka?")
    begin = _begin(starts, start, first, volume)
    stop, time_ns = ends.found()
    if stop < begin:
        raise RecoveryError(f"The range ends at {stop}, before it begins at {begin}", hint="Name the earlier point by --from.")
    index = max(0, bisect_right([one.position for one in snapshots], begin) - 1)
    return TopicRange(begin, stop, time_ns, snapshots[index])


def _begin(starts: PointFinder | None, wanted: Wanted | None, first: Portion, volume: str) -> Position:
    """Return the position that the range begins behind, proved to be one that the topic goes on from."""
    batch = first.batch
    if starts is None:
        told = batch.marks.get(0, {})
        if batch.kinds[0] != Kind.EPOCH_START or told.get("first") != "true":
            raise RecoveryError(
                f"The topic of {volume} no longer begins with the volume's first record, but at {batch.first}",
                hint="Name a later point by --from: the replay then begins with an image of it.",
                first=batch.first,
            )
        return ZERO
    assert wanted is not None
    follows = Position(batch.epoch, batch.first_sequence - 1)
    if isinstance(wanted, AtPosition) and wanted.position.sequence == follows.sequence and wanted.position <= follows:
        return wanted.position
    return starts.found()[0]


class PointFinder:
    """Find what a POINT means among the recovery points of a topic, fed in order."""

    def __init__(self, volume: str, wanted: Wanted, now_ns: int) -> None:
        self._volume = volume
        self._wanted = AtTime(max(0, now_ns - wanted.age_ns)) if isinstance(wanted, Ago) else wanted
        self._first_seen: Position | None = None
        self._before: tuple[Position, int] | None = None
        self._exact: tuple[Position, int] | None = None
        self._after: tuple[Position, int] | None = None
        self._marked: tuple[Position, int, bool] | None = None

    def feed(self, portion: Portion) -> None:
        """Look at the next portion."""
        self._first_seen = self._first_seen or portion.batch.first
        if portion.unsound_before:
            self._before = self._exact = self._after = None
            self._marked = None if self._marked is None else (*self._marked[:2], False)
        points = portion.recovery_points()
        wanted = self._wanted
        if isinstance(wanted, AtBookmark):
            self._look_for_mark(portion, set(points), wanted.label)
        if not points:
            return
        if isinstance(wanted, Latest | AtBookmark):
            self._before = self._at(portion, points[-1])
        elif isinstance(wanted, AtTime):
            batch = portion.batch
            count = bisect_right(points, wanted.time_ns - batch.capture_time_ns, key=batch.ages_ns.__getitem__)
            self._split(portion, points, count)
        elif isinstance(wanted, AtPosition):
            batch, position = portion.batch, wanted.position
            count = bisect_right(points, position, key=lambda index: Position(batch.epoch, batch.first_sequence + index))
            self._split(portion, points, count)
            if self._before is not None and self._before[0] == position:
                self._exact = self._before

    def found(self) -> tuple[Position, int]:
        """Return position and capture time. Raises RecoveryError that says why there is none and what is near."""
        wanted = self._wanted
        if isinstance(wanted, AtBookmark):
            if self._marked is not None and self._marked[2]:
                return self._marked[:2]
            why = "is not in the topic" if self._marked is None else f"at {self._marked[0]} lies in a gap"
            raise self._conflict(f"The bookmark {wanted.label!r} {why}")
        if isinstance(wanted, AtPosition):
            if self._exact is not None:
                return self._exact
            raise self._conflict(f"{wanted.position} is no recovery point of the topic")
        if self._before is None:
            when = f"at or before {wanted}" if isinstance(wanted, AtTime) else "yet"
            raise self._conflict(f"The topic of {self._volume} has no recovery point {when}")
        return self._before

    def _split(self, portion: Portion, points: list[int], count: int) -> None:
        """Take note of the last of the first `count` points, and of the first one behind them."""
        if count and (self._after is None or isinstance(self._wanted, AtPosition)):
            self._before = self._at(portion, points[count - 1])
        if count < len(points) and self._after is None:
            self._after = self._at(portion, points[count])

    def _look_for_mark(self, portion: Portion, points: set[int], label: str) -> None:
        batch = portion.batch
        for index, told in batch.marks.items():
            if batch.kinds[index] == Kind.BOOKMARK and told.get("label") == label:
                self._marked = (*self._at(portion, index), index in points)

    def _at(self, portion: Portion, index: int) -> tuple[Position, int]:
        batch = portion.batch
        return Position(batch.epoch, batch.first_sequence + index), batch.capture_time_ns + batch.ages_ns[index]

    def _conflict(self, sentence: str) -> RecoveryError:
        near = [f"{position} ({format_time(time_ns)})" for position, time_ns in filter(None, (self._before, self._after))]
        hint = f"Good ones nearby: {' and '.join(near)}." if near else "See what the topic still has: `hostoffload points`."
        return RecoveryError(sentence, hint=hint, volume=self._volume)
