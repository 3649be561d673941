"""What a target's session reads: the journal, and the store for what the journal no longer has (design rule 25).

A session sees one history. Below the journal's start its entries come from the segments, up to a message that the journal still has, and
from there on from the journal; kafka_offsets are the journal's throughout. One thread uses a `Source`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Protocol

from cx_consumers.checkpoint import Checkpoint
from cx_consumers.target_chain import ChainState, Step, step
from cx_consumers.target_hold import Hold
from cx_consumers.target_store import Place, StoredEntry, StoredHistory, follow, place_of
from history.segment import StoredGap
from stream.consumer import StoredMessage
from stream.errors import ResyncError, RetryError
from stream.journal import JournalEntry

POLL_BYTES = 1 << 20
POLL_ENTRIES_MAX = 64
STALE_MESSAGES_MAX = 64  # a worker that lost the volume leaves no more than that many in a row
STORE_CHECK_S = 1.0


class Log(Protocol):
    """The journal alone (`target_log.JournalLog`)."""

    topic: str

    def topic_id(self) -> str: ...
    def bounds(self) -> tuple[int, int]: ...
    def seek(self, kafka_offset: int) -> None: ...
    def poll(self, timeout_s: float) -> list[StoredMessage]: ...
    def decode(self, message: StoredMessage) -> JournalEntry: ...
    def close(self) -> None: ...


class Source:
    """Read one volume's history from a state on. What it raises says what to do, as for the journal alone; ResyncError also when
    the store lacks what it seemed to have: `reach` then says so."""

    def __init__(self, log: Log, history: StoredHistory | None, volume: str) -> None:
        self.topic = log.topic
        self._log = log
        self._history = history
        self._volume = volume
        self._topic_id = ""
        self._entries: Iterator[tuple[StoredEntry, Place]] | None = None
        self._place: Place | None = None
        self._failed: ResyncError | None = None
        self._stale = 0
        self._kept: tuple[float, int | None] = (float("-inf"), None)

    @property
    def has_store(self) -> bool:
        """Tell whether there is a store behind the journal."""
        return self._history is not None and self._history.exists

    def topic_id(self) -> str:
        self._topic_id = self._log.topic_id()
        return self._topic_id

    def bounds(self) -> tuple[int, int]:
        """Return the journal's own bounds."""
        return self._log.bounds()

    def reach(self, checkpoint: Checkpoint | None) -> tuple[tuple[int, int], str]:
        """Return the bounds within which this source can serve the holder of the checkpoint, and why they begin no earlier; "" if the
        store was not needed. Call after `topic_id`."""
        start, end = self._log.bounds()
        chain = ChainState() if checkpoint is None else checkpoint.chain
        anew = checkpoint is not None and checkpoint.topic_id != self._topic_id
        place = place_of(chain)
        if anew or place is None or (start == 0 if checkpoint is None else start <= chain.kafka_offset):
            return (start, end), ""
        if self._history is None:
            return (start, end), "there is no store"
        why = self._history.lacks(place, self._topic_id, (start, end))
        if why is not None:
            return (start, end), why
        begins_at = self._history.begins_at() if checkpoint is None else chain.kafka_offset
        return (start if begins_at is None else min(start, begins_at), end), ""

    def seek(self, state: ChainState) -> None:
        """Read on from this state. Raises ResyncError when neither journal nor store can."""
        self._entries = self._place = self._failed = None
        self._stale = 0
        start, end = self._log.bounds()
        if start <= state.kafka_offset or self._history is None:
            self._log.seek(state.kafka_offset)
        else:
            self._enter_store(place_of(state), (start, end))

    def poll(self, timeout_s: float) -> list[StoredMessage | StoredEntry]:
        """Return what comes next, in order; wait for it only where the journal's end is near."""
        if self._entries is None:
            return list(self._log.poll(timeout_s))
        if self._failed is not None:
            raise self._failed
        found: list[StoredMessage | StoredEntry] = []
        size = 0
        try:
            for entry, place in self._entries:
                self._place = place
                found.append(entry)
                size += len(entry.value)
                if size >= POLL_BYTES or len(found) >= POLL_ENTRIES_MAX:
                    return found
        except ResyncError as error:
            if not found:
                raise
            self._failed = error  # what came before it is good
        if not found:
            self._leave_store()
        return found

    def decode(self, message: StoredMessage | StoredEntry) -> JournalEntry | StoredGap | None:
        """Return what a message or a stored entry says."""
        return message.entry if isinstance(message, StoredEntry) else self._log.decode(message)

    def step(self, state: ChainState, message: StoredMessage | StoredEntry, entry: JournalEntry | StoredGap | None) -> Step:
        """Return what a message does to the state. Raises IntegrityError; RetryError when the topic turns out to be another one."""
        if isinstance(message, StoredEntry):
            return follow(state, message, topic=self.topic, volume=self._volume)
        done = step(state, message.kafka_offset, entry, topic=self.topic, volume=self._volume)
        self._stale = self._stale + 1 if done.dropped in ("stale", "foreign") else 0
        if self._stale > STALE_MESSAGES_MAX:  # fences of another topic would hide everything of this one
            self._stale = 0
            if self._log.topic_id() != self._topic_id:
                raise RetryError(f"Topic {self.topic} was made anew", topic=self.topic)
        return done

    def keeps(self, hold: Hold, held_s: float) -> bool:
        """Tell whether a hold that the journal alone could not keep may last, because the store keeps up. Looks once in `STORE_CHECK_S`."""
        place = place_of(hold.held)
        if self._history is None or place is None:
            return False
        now_s = time.monotonic()
        if now_s >= self._kept[0] + STORE_CHECK_S:
            self._kept = now_s, self._history.reaches(place, self._topic_id, self._log.bounds())
        stored_to = self._kept[1]
        return stored_to is not None and hold.must_end(held_s, None, stored_to) is None

    def close(self) -> None:
        self._log.close()

    def _leave_store(self) -> None:
        """Go on in the journal, or in what was stored meanwhile."""
        place = self._place
        assert place is not None and self._history is not None
        start, end = self._log.bounds()
        if start <= place.kafka_offset:
            self._entries = self._place = None
            self._log.seek(place.kafka_offset)
        else:
            self._enter_store(place, (start, end))

    def _enter_store(self, place: Place | None, bounds: tuple[int, int]) -> None:
        """Read from the segments behind `place`. Raises ResyncError when they lead nowhere."""
        assert self._history is not None
        why = "it is no part of this journal" if place is None else self._history.lacks(place, self._topic_id, bounds)
        if place is None or why is not None:
            raise ResyncError(
                f"{self.topic} begins at kafka_offset {bounds[0]}: {why}", topic=self.topic, hint="The volume is copied again by a resync."
            )
        self._place = place
        self._entries = self._history.entries(place, self._topic_id)
