"""A store made from a journal, as persisters make it: sealed where a test says, by one or by several that overlap."""

from __future__ import annotations

from collections.abc import Sequence

from history.store import Store, open_store
from stream.consumer import StoredMessage
from tests.journal_maker import JournalMaker
from tests.persist_parts import Bench


def stored(messages: Sequence[StoredMessage], seals: Sequence[int], *, store: Store | None = None, low: int = 0) -> Bench:
    """Persist `messages[low:]`, sealing behind each of these counts of messages; return the persister's bench, its store in it."""
    bench = Bench(JournalMaker(), store or open_store("memory:///"))
    bench.journal.low = low
    for count in seals:
        bench.journal.messages = list(messages[:count])
        bench.persister = bench.new()
        bench.run()
    return bench


def damage(store: Store, name: str, at_bytes: int) -> None:
    """Flip a bit of an object."""
    raw = bytearray(store.get(name))
    raw[at_bytes] ^= 1
    store.delete(name)
    assert store.put(name, [bytes(raw)])
