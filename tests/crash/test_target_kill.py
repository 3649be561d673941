"""A real target process killed at random instants while it applies: the label never lies, and the bytes are the records' in the end."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest

from stream.position import Position
from tests.kafka_fixture import Kafka
from tests.target_feed import Feed, TargetProcess, config_of
from tests.target_script import EVENTS, Script, play, script

pytestmark = pytest.mark.kafka

VOLUME_BYTES = 4 << 20
KILLS = 30
SEED = 20260


@pytest.mark.parametrize("mode", ["hold", "follow"])
def test_target_survives_kill_at_any_instant(kafka: Kafka, tmp_path: Path, mode: str) -> None:
    chance = random.Random(SEED)
    made = script(VOLUME_BYTES, SEED, volume=kafka.fresh_volume_name("kill"))
    made.write_bytes_max = 60_000
    config = config_of(kafka.bootstrap, name=kafka.fresh_volume_name("t"), during_resync=mode, apply_window_bytes_max=1 << 20)
    feed = Feed(config, made.maker.volume, VOLUME_BYTES)
    feed.declare(tmp_path / "replica")
    ended = threading.Event()
    writer = threading.Thread(target=_write, args=(made, feed, chance, ended))
    process = TargetProcess(config, tmp_path / "state")
    images = {}
    with process:
        writer.start()
        try:
            for kill in range(KILLS // 2):
                process.wait(made.maker.volume, lambda told: told.get("applied_bytes", 0) > 0 or told.get("held"), "it works")
                time.sleep(chance.uniform(0, 0.2))
                process.kill()
                images[kill] = _torn(tmp_path, made)
                process.start()
        finally:
            ended.set()
            writer.join()
        last = str(made.maker.last)
        process.wait(made.maker.volume, lambda told: told.get("consistent_at") == last, f"consistent at {last}")
        assert (tmp_path / "replica").read_bytes() == made.image()
        assert process.stop()[0] == 0
    assert any(at is None for at, _ in images.values()), "no kill fell into a window"
    for kill, (at, found) in images.items():
        assert at is None or found == made.image(at), f"kill {kill}: the label said consistent at {at}"
    assert len(images) == KILLS // 2


def _torn(folder: Path, made: Script) -> tuple[Position | None, bytes]:
    """Return what the label says after a kill, and the bytes under it."""
    path = folder / "state" / "target" / f"{made.maker.volume}.json"
    if not path.exists():
        return None, b""
    at = json.loads(path.read_text())["consistent_at"]
    return (Position.parse(at), (folder / "replica").read_bytes()) if at else (None, b"")


def _write(made: Script, feed: Feed, chance: random.Random, ended: threading.Event) -> None:
    """Keep the target busy with everything that happens to a journal, and rest now and then."""
    while not ended.is_set():
        play(made, chance.choice(EVENTS))
        feed.send(made.maker.messages)
        ended.wait(chance.choice((0, 0.01, 0.05, 0.2)))
