"""The outline of a segment: its header without the extent index, which is most of it.

Read by whoever looks at many segments to know when, and not where, something was written: the planner of recovery points and the timeline.
"""

from __future__ import annotations

from history.container import decode_head, decode_outline, index_bytes
from history.reader import HEAD_READ_BYTES
from history.segment import SegmentHeader, SegmentName, header_of
from history.store import Store
from stream.errors import IntegrityError

_NO_INDEX = {"extent_steps": (), "extent_lengths": (), "extent_records": (), "extent_payloads": (), "pages": ()}


def read_outline(store: Store, name: SegmentName) -> SegmentHeader:
    """Return a segment's header with an empty extent index and no pages, every byte of it proved.

    Raises IntegrityError that names the file, and what the store raises.
    """
    path = str(name)
    data = store.get_range(path, 0, HEAD_READ_BYTES)
    head = decode_head(data, path)
    begin = head.length_bytes
    end = begin + index_bytes(data, head, path)
    if end > len(data) == HEAD_READ_BYTES:
        data += store.get_range(path, len(data), end)
    if end > len(data):
        raise _wrong("A segment ends inside its header", path, begin)
    body = decode_outline(memoryview(data)[begin:end], head, path, begin)
    try:
        header = header_of(body | _NO_INDEX)
    except (KeyError, ValueError) as error:
        raise _wrong(f"A segment's header contradicts itself: {error}", path, begin) from error
    if header.name != name:
        raise _wrong(f"A segment holds {header.name}, not what its name says", path, begin)
    return header


def _wrong(sentence: str, path: str, at_bytes: int) -> IntegrityError:
    return IntegrityError(
        sentence,
        path=path,
        at_bytes=at_bytes,
        hint="Keep the file as it is; restore it from another copy of the store, or let the volume be copied again.",
    )
