"""A consistency group has one instant: a counter that is increased on one volume, then on the other, never differs by more than one.

TEST_BOOKMARKS=50 makes the short run a long one.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.system import System, make_source, running
from tests.kafka_fixture import Kafka

BOOKMARKS = int(os.environ.get("TEST_BOOKMARKS", "10"))
SIZE_BYTES = 1 << 20
BLOCK_BYTES = 4096
STOPPED_MS_MAX = 300

pytestmark = [pytest.mark.slow, pytest.mark.kafka]


class Counting:
    """A writer that increases the same counter on both volumes in turn, as fast as they answer, until it is closed."""

    def __init__(self, uris: list[str]) -> None:
        self.reached = 0
        self._clients = [Client(uri) for uri in uris]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a write was never answered"
        for client in self._clients:
            client.close()

    def _run(self) -> None:
        while not self._over.is_set():
            self.reached += 1
            for client in self._clients:
                client.write(0, self.reached.to_bytes(8, "little") + bytes(BLOCK_BYTES - 8))


def counter_at(system: System, volume: str, label: str) -> int:
    target = system.folder / "restored.img"
    system.run("restore", volume, "--at", label, "--to", target)
    with open(target, "rb") as file:
        found = int.from_bytes(file.read(8), "little")
    target.unlink()
    return found


def test_the_bookmarks_of_a_group_are_one_instant(kafka: Kafka, tmp_path: Path) -> None:
    names, group = [kafka.fresh_volume_name("first"), kafka.fresh_volume_name("second")], kafka.fresh_volume_name("group")
    with running(tmp_path / "system", bootstrap=kafka.bootstrap) as system:
        uris = [system.add(name, make_source(system.folder / f"{name}.img", SIZE_BYTES)) for name in names]
        for name in names:
            system.wait_in_sync(name)
        system.run("group", "create", group, *names)
        counting = Counting(uris)
        stopped_ms = []
        for number in range(BOOKMARKS):
            told = json.loads(system.run("bookmark", group, f"instant-{number}", "--json"))
            assert set(told["positions"]) == set(names)
            stopped_ms.append(told["stopped_ms"])
        counting.close()
        for name in names:
            system.check_equal(name, system.folder / f"{name}.img")
        pairs = [tuple(counter_at(system, name, f"instant-{number}") for name in names) for number in range(BOOKMARKS)]
    print(f"{BOOKMARKS} bookmarks among {counting.reached} counts; writes stopped for {max(stopped_ms):.2f} ms at most; {pairs}")
    assert max(stopped_ms) <= STOPPED_MS_MAX
    assert [pair for pair in pairs if not 0 <= pair[0] - pair[1] <= 1] == []
    assert [pair[0] for pair in pairs] == sorted({pair[0] for pair in pairs}), "the counter did not go on between the bookmarks"
