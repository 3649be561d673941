"""History folded and expired beside persist, by real workers on a real broker, one of them killed meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from history.catalog import Catalog
from history.checker import Checked, check_volume
from history.store import open_store
from stream.position import Position
from stream.record import Kind
from tests.cx_stage import Agent, Stage, stage, wait_until
from tests.kafka_fixture import Kafka

pytestmark = pytest.mark.kafka

RECORDS = 4
WRITE_BYTES = 4096
VOLUME_BYTES = RECORDS * WRITE_BYTES


@pytest.fixture
def cx(kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("HOSTOFFLOAD_HISTORY_RETENTION", "any write 3 s, 1 s for 1 d, 3 s for 1 d")
    monkeypatch.setenv("HOSTOFFLOAD_HISTORY_EVERY_S", "0.2")
    with stage(kafka.bootstrap, tmp_path) as one:
        yield one


def volume_at(agent: Agent, position: Position) -> bytes:
    """Return what the volume holds at a position, from what the agent sent."""
    shown = bytearray(VOLUME_BYTES)
    writes = [one for one in agent.sent if one[2]]
    for number, (epoch, sequence, body) in enumerate(writes):
        if Position(epoch, sequence) <= position:
            at = number % RECORDS * WRITE_BYTES
            shown[at : at + WRITE_BYTES] = body
    return bytes(shown)


@pytest.mark.slow
def test_history_is_folded_beside_persist(cx: Stage, kafka: Kafka) -> None:
    agent = cx.add(kafka.fresh_volume_name("fold"))
    agent.mark(Kind.RESIZE, size_bytes=str(VOLUME_BYTES))
    worker = cx.worker("first")
    store = open_store(str(cx.state_dir / "store"))
    bookmark: Position | None = None

    def load() -> None:
        agent.write(RECORDS, WRITE_BYTES)
        agent.flush()
        time.sleep(0.01)

    def until(condition) -> None:
        deadline_s = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline_s, worker.log()
            load()

    until(lambda: worker.facts(agent.volume).get("folds", 0) >= 2)
    agent.mark(Kind.BOOKMARK, label="here")
    bookmark = Position(agent.epoch, agent.sequence)
    worker.kill()
    worker = cx.worker("second")
    until(lambda: worker.facts(agent.volume).get("expired", 0) >= 4)
    until(lambda: Catalog(store, agent.volume).levels()[0][0].first > bookmark)
    cx.journaled(agent)
    newest = Position(agent.epoch, agent.sequence)
    wait_until(lambda: worker.facts(agent.volume)["persisted"] == str(newest), "persisted")
    assert worker.stop() == 0
    assert "Traceback" not in worker.log()
    assert list(check_volume(store, agent.volume, Checked())) == []
    catalog = Catalog(store, agent.volume)
    levels = catalog.levels()
    assert {1, 2} <= set(levels)
    for position in (bookmark, newest, *(name.last for level in (1, 2) for name in levels[level])):
        shown = bytearray(VOLUME_BYTES)
        catalog.image(position).read(0, memoryview(shown))
        assert shown == volume_at(agent, position), position
