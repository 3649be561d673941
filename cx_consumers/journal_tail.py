"""The end of a journal: the last message that no fence outdates, found by reading back in growing windows.

Called when a worker takes a volume; the state of that message is all it resumes from (design rule 21). Only headers are looked at on the
way, one message is decoded.

A message is outdated when a fence above its `writer` stands before it. A window that begins after the writer's own fence can't show the
fences before the window. But no worker of any version has more than `LATE_MESSAGES_MAX` messages under way, and it stops at the first
acknowledgement that shows a foreign fence, so it leaves no more than that many behind one: when the window shows more of the last writer,
it is valid. A message that names a fence at or behind itself is foreign: a worker wrote it that had not noticed yet that the topic was made
anew; and so are those that follow it, until a fence.
"""

from __future__ import annotations

from collections.abc import Iterable

from cx_consumers.broker import Reader
from cx_consumers.order import Tail
from stream.codec import decode_journal
from stream.consumer import StoredMessage
from stream.errors import IntegrityError
from stream.journal import JournalFence, JournalGap

LATE_MESSAGES_MAX = 64
WINDOW_MESSAGES = LATE_MESSAGES_MAX + 16
WINDOW_GROWTH = 4
IDLE_S_MAX = 5.0
FENCE = "fence"


def find_tail(reader: Reader, start: int, end: int) -> tuple[Tail | None, bool]:
    """Return the journal's tail as of `end`, None if `[start, end)` holds nothing but fences; and whether every reader believes it.

    It is not certain where the fence that may have outdated it is deleted: who read that fence has passed over what is shown here.
    Raises IntegrityError when that message is not what was written, RetryError and ResyncError from reading.
    """
    size = WINDOW_MESSAGES
    while True:
        begin = max(start, end - size)
        last, certain = last_valid(reader.read_range(begin, end, idle_s_max=IDLE_S_MAX), begin)
        if certain or begin == start:
            return (None, True) if last is None else (_tail(last), certain)
        size *= WINDOW_GROWTH


def last_valid(messages: Iterable[StoredMessage], begin: int) -> tuple[StoredMessage | None, bool]:
    """Return the last message that no fence outdates, of consecutive ones from `begin` on, and whether earlier ones can't change that."""
    last: StoredMessage | None = None
    last_writer, shown, highest = -1, 0, -1
    for message in messages:
        if message.headers.get("kind") == FENCE.encode():
            highest = max(highest, message.kafka_offset)
            continue
        writer = writer_of(message)
        if writer >= message.kafka_offset:
            _tail(message)  # unless its header is damaged
            highest = max(highest, message.kafka_offset + 1)
        elif writer >= highest:
            shown = shown + 1 if writer == last_writer else 1
            last, last_writer, highest = message, writer, writer
    return last, last is not None and (last_writer >= begin - 1 or shown > LATE_MESSAGES_MAX)


def writer_of(message: StoredMessage) -> int:
    """Return the incarnation of the worker that wrote a journal message. Raises IntegrityError."""
    try:
        return int(message.headers["writer"])
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            "A journal message does not say who wrote it", topic=message.topic, kafka_offset=message.kafka_offset
        ) from error


def _tail(message: StoredMessage) -> Tail:
    entry = decode_journal(message.value or b"", topic=message.topic, kafka_offset=message.kafka_offset)
    if isinstance(entry, JournalFence) or entry.writer != writer_of(message):
        raise IntegrityError("A journal message contradicts its headers", topic=message.topic, kafka_offset=message.kafka_offset)
    return Tail(entry.state, after_gap=isinstance(entry, JournalGap))
