"""Bookmarks of volumes and groups through the real agent and a real Kafka: one instant for all, once each, whatever is killed.

The writes topics are read by plain fastavro and the published schema (`tests.agent_rig`); no code of the agent takes part in the verdict.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream.control import Answer, Bookmark, Follower
from tests.agent_rig import MIB, WRITE, AgentRig, decode_plain, read_topic, records_of
from tests.kafka_fixture import Kafka

pytestmark = [pytest.mark.kafka]
BOOKMARK = 21
SIZE = 4 * MIB
COUNTER = struct.Struct("<Q")
BOOKMARKS = 50


class Bench:
    """A rig with two volumes in DATA, and a follower of `ho.control`."""

    def __init__(self, rig: AgentRig, kafka: Kafka, folder: Path) -> None:
        self.rig = rig
        self.a, self.b = sorted((kafka.fresh_volume_name("a"), kafka.fresh_volume_name("b")))
        for name in (self.a, self.b):
            source = folder / f"{name}.img"
            source.write_bytes(bytes(SIZE))
            rig.declare(name, source)
        rig.start()
        for name in (self.a, self.b):
            rig.wait_data(name)
        self.follower = Follower(rig.config.kafka)
        self.follower.catch_up()

    def ask(self, label: str, *, group: bool = True, in_s: float = 20.0) -> str:
        told = {"label": label, "until_ns": str(time.time_ns() + int(in_s * 1e9))}
        if group:
            told |= {"group": "g", "members": f"{self.a},{self.b}"}
        return self.rig.ask(self.a, "bookmark", **told)

    def answer(self, request: str, timeout_s: float = 90.0) -> Answer:
        """Return the final answer."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            found = self.follower.entries.get(f"answer/{request}")
            if isinstance(found, Answer) and (not found.done or found.attributes["durable"] == "true"):
                return found
            self.follower.poll(0.05)
        raise AssertionError(f"{request} was not answered\n{self.rig.log('capture')[-1500:]}\n{self.rig.log('publisher')[-1500:]}")

    def records(self, volume: str) -> list[tuple]:
        bootstrap = self.rig.config.kafka.bootstrap
        seen: dict[int, tuple] = {}
        for value, _ in read_topic(bootstrap, f"ho.{volume}.writes"):
            for record in records_of(decode_plain(value)):
                seen.setdefault(record[0], record)
        return [seen[sequence] for sequence in sorted(seen)]

    def marks(self, volume: str) -> list[tuple[int, dict[str, str]]]:
        return [(record[0], json.loads(record[6])) for record in self.records(volume) if record[1] == BOOKMARK]


@contextmanager
def bench(kafka: Kafka, folder: Path, **environment: str) -> Iterator[Bench]:
    with AgentRig(folder, kafka.bootstrap, **environment) as rig:
        made = Bench(rig, kafka, folder)
        try:
            yield made
        finally:
            made.follower.close()


@contextmanager
def running(*acts: Callable[[], None]) -> Iterator[None]:
    """Repeat each on a thread until the end of the block; what one of them raises fails the test."""
    over = threading.Event()
    failed: list[BaseException] = []

    def repeat(act: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    assert not failed, failed


def counter_at(records: list[tuple], mark: int, place: int) -> int:
    """Return the counter at an offset as a replay of everything before a mark has it."""
    found = 0
    for sequence, kind, _, offset, length, _, _, payload in records:
        if sequence >= mark:
            break
        if kind == WRITE and offset <= place < offset + length:
            found = COUNTER.unpack_from(payload, place - offset)[0]
    return found


@pytest.mark.slow
def test_counters_on_two_volumes_differ_by_at_most_one_at_every_bookmark_of_the_group(kafka: Kafka, tmp_path: Path) -> None:
    """Three applications increment counters in turn, two on a then b, one on b then a, under a load of large writes on both."""
    with bench(kafka, tmp_path) as made:
        places, orders = (0, 4096, 8192), ((made.a, made.b), (made.a, made.b), (made.b, made.a))
        counts = [0, 0, 0]
        clients = [{name: made.rig.client(name) for name in (made.a, made.b)} for _ in places]
        loads = {name: made.rig.client(name) for name in (made.a, made.b)}

        def increment(which: int) -> None:
            counts[which] += 1
            for name in orders[which]:
                clients[which][name].write(places[which], COUNTER.pack(counts[which]) + bytes(504))
            time.sleep(0.001)

        def load(name: str) -> None:
            block = os.urandom(65536)
            loads[name].write_all([(MIB + number * 65536, block) for number in range(4)])
            time.sleep(0.1)

        answers = []
        with running(*(lambda which=which: increment(which) for which in range(3)), *(lambda name=name: load(name) for name in loads)):
            for number in range(BOOKMARKS):
                answers.append(made.answer(made.ask(f"x{number}")))
        assert all(answer.done for answer in answers), [answer.attributes for answer in answers if not answer.done]
        stops = sorted(float(answer.attributes["stopped_ms"]) for answer in answers)
        assert stops[-1] <= 300
        records = {name: made.records(name) for name in (made.a, made.b)}
        marks = {name: {told["label"]: (at, told) for at, told in made.marks(name)} for name in (made.a, made.b)}
        for number, answer in enumerate(answers):
            (at_a, told_a), (at_b, told_b) = (marks[name][f"x{number}"] for name in (made.a, made.b))
            assert told_a == told_b == {"label": f"x{number}", "group": "g", "members": f"{made.a},{made.b}", "barrier": answer.id}
            assert answer.attributes["positions"] == f"{made.a}=00000001-{at_a:016d},{made.b}=00000001-{at_b:016d}"
            for place, (first, second) in zip(places, orders, strict=True):
                at = {made.a: at_a, made.b: at_b}
                ahead = counter_at(records[first], at[first], place) - counter_at(records[second], at[second], place)
                assert ahead in (0, 1), f"bookmark x{number}, counter at {place}"
        assert min(counts) > BOOKMARKS, "the writers were never held up"
        print(f"stopped for {stops[len(stops) // 2]:.1f} ms in the middle, {stops[-1]:.1f} ms at most; increments {counts}")


def test_a_label_is_given_once(kafka: Kafka, tmp_path: Path) -> None:
    with bench(kafka, tmp_path) as made:
        first = made.answer(made.ask("x", group=False))
        assert first.done
        refused = made.answer(made.ask("x"))
        assert not refused.done and refused.attributes["wrong"] == "true"
        assert "has a bookmark 'x' already, at " + first.attributes["position"] in refused.attributes["error"]
        assert [told["label"] for _, told in made.marks(made.a)] == ["x"] and made.marks(made.b) == []
        entry = made.follower.entries[f"bookmark/{made.a}/x"]
        assert isinstance(entry, Bookmark) and str(entry.position) == first.attributes["position"]


def test_no_bookmark_during_the_first_copy(kafka: Kafka, tmp_path: Path) -> None:
    with AgentRig(tmp_path, kafka.bootstrap, HOSTOFFLOAD_AGENT_SYNC_BYTES_PER_S_MAX=str(MIB // 4)) as rig:
        name = kafka.fresh_volume_name()
        source = tmp_path / "source"
        source.write_bytes(os.urandom(8 * MIB))
        rig.declare(name, source)
        rig.start()
        rig.wait(name, lambda capture, _: capture.get("mode") == "SYNC" and capture["serving"])
        request = rig.ask(name, "bookmark", label="x", until_ns=str(time.time_ns() + 20 * 10**9))
        follower = Follower(rig.config.kafka)
        deadline_s = time.monotonic() + 30
        while f"answer/{request}" not in follower.entries and time.monotonic() < deadline_s:
            follower.poll(0.05)
        follower.close()
        answer = follower.entries[f"answer/{request}"]
        assert not answer.done and "wrong" not in answer.attributes
        assert f"Volume {name} is in mode SYNC" in answer.attributes["error"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["capture", "publisher"])
def test_whatever_is_killed_a_bookmark_is_taken_once_or_not_at_all(kafka: Kafka, tmp_path: Path, kind: str) -> None:
    with bench(kafka, tmp_path) as made:
        told: dict[str, Answer] = {}
        for number in range(8):
            request = made.ask(f"x{number}", in_s=3)
            time.sleep(0.02 * number)
            made.rig.kill(kind)
            made.rig.start(kind)
            told[f"x{number}"] = made.answer(request)
            for name in (made.a, made.b):
                made.rig.wait_data(name)
        marks = {name: [one["label"] for _, one in made.marks(name)] for name in (made.a, made.b)}
        for label, answer in told.items():
            counts = [marks[name].count(label) for name in (made.a, made.b)]
            assert counts in ([0, 0], [1, 1]) or "in the middle of the barrier" in answer.attributes["error"]
            assert answer.done == (counts == [1, 1]), answer
            assert (f"bookmark/{made.a}/{label}" in made.follower.entries) == answer.done
