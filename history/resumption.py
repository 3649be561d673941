"""Going on behind the newest segment: where in the journal what follows is read, and why it may not continue the history.

Used by persist, and by whoever reads what no segment holds yet. Pure.
"""

from __future__ import annotations

from history.builder import Start
from history.chain import JOURNAL_EXPIRED, JOURNAL_RECREATED, JOURNAL_SHORTENED, NO_FENCE, Chain
from history.segment import SegmentHeader
from stream.position import ZERO
from stream.record import DIGEST_START


def resumed(volume: str, header: SegmentHeader | None, topic_id: str, low: int, high: int) -> tuple[Start, Chain, str | None]:
    """Return where to go on behind the newest segment, None if there is none, in a journal of this id and of `[low, high)`; the chain that
    proves what is read from there; and why it may not continue the history, None if it must."""
    start, reason = _start(volume, header, topic_id, low, high)
    after_gap = header is not None and any(gap.position == header.name.last for gap in header.gaps)
    chain = Chain(volume, start.position, start.digest, fence=start.fence, open_gaps=start.open_gaps, after_gap=after_gap)
    if reason is not None:
        chain.foretell(reason, certain=reason == JOURNAL_RECREATED)
    return start, chain, reason


def _start(volume: str, header: SegmentHeader | None, topic_id: str, low: int, high: int) -> tuple[Start, str | None]:
    if header is None:
        return Start(volume, ZERO, DIGEST_START, topic_id, low), JOURNAL_EXPIRED  # a gap only if the history does not begin here
    coverage, origin = header.coverage, header.origin
    next_kafka_offset, fence, reason = origin.next_kafka_offset, origin.fence, None
    if origin.topic_id != topic_id:
        next_kafka_offset, fence, reason = low, NO_FENCE, JOURNAL_RECREATED
    elif next_kafka_offset < low:
        next_kafka_offset, reason = low, JOURNAL_EXPIRED
    elif next_kafka_offset > high:
        next_kafka_offset, reason = high, JOURNAL_SHORTENED
        fence = fence if fence < high else NO_FENCE  # one that was lost too would outdate every worker to come
    start = Start(volume, header.name.last, coverage.digest_after, topic_id, next_kafka_offset, fence, coverage.open_gaps)
    return start, reason
