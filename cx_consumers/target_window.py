"""What was read and not yet applied, and how much of it may be applied as one window.

Pure. A window ends behind a whole write: the fragments of a split that is not yet complete stay behind, even inside a batch (design
rule 6), and the checkpoint then points at that message, which is cut by position when it is read again. Inside, a window has a part for
each mark that must be acted upon exactly where it stands: a `verify` mark and a new size (design rule 26).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cx_consumers.apply import complete, complete_count
from cx_consumers.target_chain import ChainState, mark_indexes, part, told_size
from cx_consumers.target_verify import VerifyMark, verify_mark
from stream.record import Batch

CHECK_BYTES_MAX = 16 << 20
"""What verify marks of one window may have read of the replica, so that a window stays short."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message that was followed, or a piece of one: the states before and after it and the records it let through, None if none.

    `check` is the verify mark that it ends with.
    """

    before: ChainState
    state: ChainState
    batch: Batch | None
    check: VerifyMark | None = None

    @property
    def work_bytes(self) -> int:
        """Return how many bytes applying it writes and reads, about."""
        return (len(self.batch.payload) if self.batch is not None else 0) + self.check_bytes

    @property
    def check_bytes(self) -> int:
        return self.check.length_bytes if self.check is not None else 0


@dataclass(frozen=True, slots=True)
class Part:
    """Batches to apply, the state after them, and then the mark to check."""

    batches: Sequence[Batch]
    state: ChainState
    check: VerifyMark | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Parts to apply in their order in one go; never empty."""

    parts: Sequence[Part]

    @property
    def state(self) -> ChainState:
        return self.parts[-1].state

    @property
    def batches(self) -> list[Batch]:
        return [batch for one in self.parts for batch in one.batches]


def take(items: Sequence[Item]) -> tuple[Window | None, list[Item]]:
    """Return the longest window that may be applied, None if there is none, and the items left over."""
    most = end = _enough(items)
    while end:
        index = next((at for at in range(end - 1, -1, -1) if items[at].batch is not None), None)
        if index is None or not items[index].batch.ends_inside_split:
            return _window(items[:end]), list(items[end:])
        count = complete_count(items[index].batch)
        if count:
            head, tail = cut(items[index], count)
            return _window([*items[:index], head]), [tail, *items[index + 1 :]]
        end = index
    assert most == len(items), "what ends with a mark is whole"
    return None, list(items)


def divided(item: Item) -> list[Item]:
    """Return the item in pieces that end behind each mark to be acted upon where it stands."""
    found: list[Item] = []
    while item.batch is not None:
        index, check = _next_stop(item)
        if index is None:
            break
        if index + 1 == item.batch.count:
            item = replace(item, check=check)
            break
        head, item = cut(item, index + 1)
        found.append(replace(head, check=check))
    return [*found, item]


def cut(item: Item, count: int) -> tuple[Item, Item]:
    """Divide an item behind its first `count` records; the second part begins inside the message."""
    assert item.batch is not None and 0 < count < item.batch.count
    prefix = item.batch.slice(0, count)
    inside = part(item.before, item.state, prefix)
    rest = Item(inside, item.state, item.batch.slice(count, item.batch.count), item.check)
    return Item(item.before, inside, prefix), rest


def _next_stop(item: Item) -> tuple[int | None, VerifyMark | None]:
    """Return the first mark of the item to stop behind, and what it wants checked."""
    batch, size_bytes = item.batch, item.before.size_bytes
    for index in mark_indexes(batch):
        check = verify_mark(batch, index)
        if check is not None or told_size(batch, index) not in (0, size_bytes):
            return index, check
    return None, None


def _enough(items: Sequence[Item]) -> int:
    """Return how many items a window may take: all, or up to the one with which it has read enough."""
    check_bytes = 0
    for index, item in enumerate(items):
        check_bytes += item.check_bytes
        if check_bytes >= CHECK_BYTES_MAX:
            return index + 1
    return len(items)


def _window(items: Sequence[Item]) -> Window:
    parts: list[Part] = []
    begin = 0
    for index, item in enumerate(items):
        if item.check is not None or item.state.size_bytes != items[begin].before.size_bytes or index == len(items) - 1:
            batches = complete(one.batch for one in items[begin : index + 1] if one.batch is not None)
            parts.append(Part(batches, item.state, item.check))
            begin = index + 1
    return Window(parts)
