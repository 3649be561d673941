"""Any moment, as a user gets it: `restore` and `export` at positions and times against an oracle, in Kafka alone, stored, and folded.

The oracle is the list of what the client did, in its order; the topic, read with plain fastavro, says which position and time each of
it got. TEST_MOMENTS=200 and TEST_WRITES=100000 make the short run a long one.
"""

from __future__ import annotations

import json
import os
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from history.reader import list_segments
from history.store import open_store
from nbd.client import Client
from tests.agent_rig import SYNC_END, WRITE, ZERO, decode_plain, read_topic, records_of
from tests.e2e.system import System, make_source, running, wait_until
from tests.integration.test_export import Exported
from tests.kafka_fixture import Kafka

SEED = int(os.environ.get("TEST_SEED", "1"))
WRITES = int(os.environ.get("TEST_WRITES", "4000"))
MOMENTS = int(os.environ.get("TEST_MOMENTS", "12"))
SIZE_BYTES = 24 << 20
LENGTHS = (4096, 65536)
BLOCK_BYTES = 4096
ROUND = 500
RETENTION_SHORT = "any write 2 s, 1 s for 1 d, 3 s for 1 d"
FOLD_ENDS = 4

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


@dataclass(frozen=True, slots=True)
class Done:
    """One operation of the client; without data it is a zero or a trim."""

    offset_bytes: int
    length_bytes: int
    data: bytes | None


class Oracle:
    """Keeps its own copy of the volume: `image_at` an operation's number, counted from 1."""

    def __init__(self, done: list[Done]) -> None:
        self._done = done
        self.positions: list[str] = []
        self.times_ns: list[int] = []

    def learn(self, bootstrap: str, volume: str) -> None:
        """Read from the topic which position and time each operation got."""
        copied, length = False, 0
        for value, _ in read_topic(bootstrap, f"ho.{volume}.writes"):
            body = decode_plain(value)
            for sequence, kind, flags, _, part, captured_ns, _, _ in records_of(body):
                copied = copied or kind == SYNC_END
                if not copied or kind not in (WRITE, ZERO):
                    continue
                length += part
                if not flags & 1:  # the last fragment
                    assert length == self._done[len(self.positions)].length_bytes, "the stream has another order than the client"
                    self.positions.append(f"{body['epoch']:08d}-{sequence:016d}")
                    self.times_ns.append(captured_ns)
                    length = 0
        assert len(self.positions) == len(self._done)

    def images(self, numbers: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yield each of these moments with what the volume held then."""
        image, at = bytearray(SIZE_BYTES), 0
        for number in sorted(numbers):
            for one in self._done[at:number]:
                image[one.offset_bytes : one.offset_bytes + one.length_bytes] = one.data or bytes(one.length_bytes)
            at = number
            yield number, bytes(image)

    def number_at(self, position: str) -> int:
        return bisect_right(self.positions, position)

    def point(self, number: int, dice: random.Random) -> str:
        """Name the moment behind an operation: its position, or its time if no later one has the same."""
        time_ns = self.times_ns[number - 1]
        if dice.random() < 0.5 or (number < len(self.times_ns) and self.times_ns[number] == time_ns):
            return self.positions[number - 1]
        return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}Z"


def random_operation(dice: random.Random) -> Done:
    length = dice.randrange(LENGTHS[0], LENGTHS[1] + 1, BLOCK_BYTES)
    offset = dice.randrange(0, SIZE_BYTES - length + 1, BLOCK_BYTES)
    return Done(offset, length, dice.randbytes(length) if dice.random() < 0.85 else None)


def perform(uri: str, done: list[Done], dice: random.Random) -> None:
    """Write, trim and zero at random through the agent, one connection, noting what was done."""
    with Client(uri) as client:
        for _ in range(ROUND):
            one = random_operation(dice)
            if one.data is not None:
                client.write(one.offset_bytes, one.data)
            elif dice.random() < 0.5:
                client.zero(one.offset_bytes, one.length_bytes)
            else:
                client.trim(one.offset_bytes, one.length_bytes)
            done.append(one)
        client.flush()


def check_moment(system: System, volume: str, point: str, expected: bytes) -> None:
    """Restore the point, and read it from an export; both must be `expected`."""
    target = system.folder / "restored.img"
    system.run("restore", volume, "--at", point, "--to", target)
    assert target.read_bytes() == expected, f"restore at {point} is not the volume of then; TEST_SEED={SEED}"
    target.unlink()
    exported = Exported(system.state, volume, "--at", point)
    with Client(exported.uri) as client:
        assert client.read(0, SIZE_BYTES) == expected, f"export at {point} is not the volume of then; TEST_SEED={SEED}"
    exported.end()


def test_any_moment_is_the_volume_as_it_was(kafka: Kafka, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    environment = {"HOSTOFFLOAD_CX_SEGMENT_AGE_S_MAX": "900", "HOSTOFFLOAD_CX_SEGMENT_BYTES_MAX": str(8 << 20)}
    volume, done = kafka.fresh_volume_name("any"), []
    with running(tmp_path / "system", bootstrap=kafka.bootstrap, environment=environment) as system:
        source = make_source(system.folder / "source", SIZE_BYTES)
        uri = system.add(volume, source)
        system.wait_in_sync(volume)
        while len(done) < WRITES:
            perform(uri, done, dice)
        system.check_equal(volume, source)
        oracle = Oracle(done)
        oracle.learn(kafka.bootstrap, volume)
        store = open_store(str(system.state / "store"))
        stored = oracle.number_at(str(list_segments(store, volume)[-1].last))
        assert 0 < stored < len(done), "the newest moments are in Kafka alone"
        numbers = {len(done), dice.randrange(stored + 1, len(done)), *dice.sample(range(1, len(done) + 1), MOMENTS)}
        for number, expected in oracle.images(list(numbers)):
            check_moment(system, volume, oracle.point(number, dice), expected)
        check_folded(system, volume, oracle, dice)


def check_folded(system: System, volume: str, oracle: Oracle, dice: random.Random) -> None:
    """Let everything but the newest be folded; the ends of folds are what they were, and between them nothing is offered."""
    system.down()
    system.environment |= {"HOSTOFFLOAD_HISTORY_RETENTION": RETENTION_SHORT, "HOSTOFFLOAD_HISTORY_EVERY_S": "0.5"}
    system.up()

    ends: list[str] = []

    def settled() -> bool:
        before = list(ends)
        told = json.loads(system.run("points", volume, "--json"))
        ends[:] = [one["position"] for one in told["fold_ends"] if oracle.positions[0] <= one["position"]]
        return len(ends) >= 2 and ends == before and told["stretches"][0]["first"]["position"] > oracle.positions[0]

    wait_until(settled, "folded, and the finest history expired", 300)
    chosen = {oracle.number_at(end): end for end in dice.sample(ends, min(len(ends), max(FOLD_ENDS, MOMENTS)))}
    for number, expected in oracle.images(list(chosen)):
        check_moment(system, volume, chosen[number], expected)
    between = oracle.positions[oracle.number_at(ends[0]) - 2]
    assert between < ends[0]
    system.run("restore", volume, "--at", between, "--to", system.folder / "refused.img", code=3)
    assert not (system.folder / "refused.img").exists()
    system.run("check", volume)
