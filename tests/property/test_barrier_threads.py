"""The barrier as a state machine over disks that hang, and what its marks promise to applications that write to two volumes in turn."""

from __future__ import annotations

import random
import struct
import tempfile
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.barrier import Barrier, Passed
from stream.errors import RetryError
from stream.record import Kind
from tests.agent_parts import CHUNK, POOL_AT, WRITE, Parts

BOOKMARK = 21
NAMES = ("a", "b", "c")
MEMBERS = st.sets(st.sampled_from(NAMES), min_size=1)
COUNTER = struct.Struct("<Q")
SHORT_S = 0.05


def volume(folder: Path, name: str) -> Parts:
    (folder / name).mkdir()
    parts = Parts(folder / name, name=name, chunks=16)
    parts.log.keep_entries()
    return parts


class Writer:
    """One thread of an application: 8 bytes a write, one after the other in a chunk of its own of each volume."""

    def __init__(self, volumes: list[Parts], place: int) -> None:
        self._volumes = volumes
        self._place = place
        self._slots = [one.volume.intents.open() for one in volumes]
        self._chunks = [one.allocator.take(1)[0] for one in volumes]
        self._written = [0 for _ in volumes]

    def write(self, which: int, value: int) -> None:
        """Return when the volume has acknowledged it."""
        parts, number = self._volumes[which], self._chunks[which]
        at = self._written[which] * COUNTER.size
        self._written[which] += 1
        view = parts.pool.chunk(number)[at : at + COUNTER.size]
        view[:] = COUNTER.pack(value)
        parts.volume.write(self._slots[which], self._place * COUNTER.size, view, [(number, at, COUNTER.size)], COUNTER.size, False)


def counters_at(parts: Parts, mark: int, writers: int) -> list[int]:
    """Return the counter of each writer as a replay of the ring up to the mark has it."""
    found = [0] * writers
    for sequence in range(parts.acked + 1, mark + 1):
        entry = parts.entry(sequence)
        if entry[6] == WRITE:
            found[entry[2] // COUNTER.size] = COUNTER.unpack_from(parts.pool.memory.view, POOL_AT + entry[4] * CHUNK + entry[5])[0]
    return found


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    forward=st.integers(1, 3),
    backward=st.integers(0, 3),
    slow=st.floats(0, 0.3),
    limit_s=st.sampled_from((0.002, 0.3, 0.3)),
)
def test_of_two_writes_the_later_is_never_before_a_mark_if_the_earlier_is_behind_it(
    seed: int, forward: int, backward: int, slow: float, limit_s: float
) -> None:
    """Some writers increment a counter on a, then on b; others on b, then on a: at each mark the first is the second, or one ahead."""
    with tempfile.TemporaryDirectory() as folder:
        pair = [volume(Path(folder), "a"), volume(Path(folder), "b")]
        pause, chance = threading.Event(), random.Random(seed)
        for parts in pair:
            parts.source.file.before["write"] = lambda *_: pause.wait(0.001) if chance.random() < slow else None
            parts.ring.set_text = lambda *_: pause.wait(0.001)  # between the marks there is time for whoever is not held
        over = threading.Event()
        orders = [(0, 1)] * forward + [(1, 0)] * backward
        threads = [
            threading.Thread(target=increment, args=(Writer(pair, place), order, over), daemon=True) for place, order in enumerate(orders)
        ]
        for thread in threads:
            thread.start()
        taken = []
        for number in range(24):
            head = pair[0].head
            while pair[0].head == head and any(thread.is_alive() for thread in threads):
                pause.wait(0.0002)  # there is something new between two marks
            try:
                taken.append(Barrier([one.volume for one in pair], limit_s).mark(Kind.BOOKMARK, {"label": str(number)}, str(number)))
            except RetryError as refused:
                assert "the barrier was given up" in refused.sentence
        over.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert taken or limit_s < 0.3
        for passed in taken:
            check(passed, pair, orders)


def increment(writer: Writer, order: tuple[int, int], over: threading.Event) -> None:
    """Increment a counter on both volumes in turn."""
    value = 0
    while not over.is_set() and value < 3000:
        value += 1
        for which in order:
            writer.write(which, value)


def check(passed: Passed, pair: list[Parts], orders: list[tuple[int, int]]) -> None:
    marks = [int(passed.marks[name].position.partition("-")[2]) for name in ("a", "b")]
    a, b = (counters_at(parts, mark, len(orders)) for parts, mark in zip(pair, marks, strict=True))
    for (first, _), on_a, on_b in zip(orders, a, b, strict=True):
        ahead = on_a - on_b if first == 0 else on_b - on_a
        assert ahead in (0, 1), f"{on_a} on a and {on_b} on b"


class HangingDisks(RuleBasedStateMachine):
    """Three volumes whose disks hang and go on; the model knows which writes are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.parts = {name: volume(Path(self.folder.name), name) for name in NAMES}
        self.gates = {name: threading.Event() for name in NAMES}
        self.hung: dict[str, list[threading.Thread]] = {name: [] for name in NAMES}
        self.lost: set[str] = set()
        self.writes = 0
        for name, gate in self.gates.items():
            gate.set()
            self.parts[name].source.file.before["write"] = lambda *_, gate=gate: gate.wait(20)
        self.writers = {name: [Writer([parts], place) for place in range(8)] for name, parts in self.parts.items()}

    def teardown(self) -> None:
        for name in NAMES:
            self.go_on(name)
        self.folder.cleanup()

    @rule(name=st.sampled_from(NAMES))
    def hang(self, name: str) -> None:
        self.gates[name].clear()

    @rule(name=st.sampled_from(NAMES))
    def go_on(self, name: str) -> None:
        self.gates[name].set()
        for thread in self.hung[name]:
            thread.join(10)
            assert not thread.is_alive()
        self.hung[name].clear()

    @rule(name=st.sampled_from(NAMES))
    def write(self, name: str) -> None:
        self.writes += 1
        if self.gates[name].is_set():
            self.writers[name][7].write(0, self.writes)
        elif len(self.hung[name]) < 7:
            writer, locks = self.writers[name][len(self.hung[name])], self.parts[name].volume.locks
            before = len(locks.in_flight())
            thread = threading.Thread(target=writer.write, args=(0, self.writes), daemon=True)
            thread.start()
            while len(locks.in_flight()) == before:
                threading.Event().wait(0.0005)
            self.hung[name].append(thread)

    @rule(name=st.sampled_from(NAMES))
    def lose_order(self, name: str) -> None:
        self.parts[name].volume.lose_order()
        self.lost.add(name)

    @rule(members=MEMBERS)
    def mark(self, members: set[str]) -> None:
        heads = {name: parts.head for name, parts in self.parts.items()}
        volumes = [self.parts[name].volume for name in members]
        busy = {name for name in members if self.hung[name]}
        try:
            passed = Barrier(volumes, SHORT_S if busy else 5.0).mark(Kind.BOOKMARK, {"label": "x"}, "id")
        except RetryError as refused:
            named = [name for name in NAMES if f"olume {name} " in refused.sentence]
            assert set(named) <= (members & self.lost or busy), refused.sentence
            assert named and {name: parts.head for name, parts in self.parts.items()} == heads
        else:
            assert not busy and not members & self.lost
            assert passed.marks.keys() == members
            for name, parts in self.parts.items():
                assert parts.head == heads[name] + (name in members)
                assert name not in members or parts.entry(parts.head)[6] == BOOKMARK

    @invariant()
    def nobody_is_held(self) -> None:
        assert not any(parts.volume.locks._waiters for parts in self.parts.values())


HangingDisks.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestHangingDisks = HangingDisks.TestCase
