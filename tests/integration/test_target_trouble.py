"""A real target while its disk is full and while its broker is away: nothing is skipped, and it goes on by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journal_maker import write
from tests.kafka_fixture import Kafka, OwnBroker
from tests.target_feed import Feed, TargetProcess, config_of
from tests.target_script import script
from tests.tools import need

pytestmark = pytest.mark.kafka

VOLUME_BYTES = 8 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    need("mount", root=True)
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_is_told_and_waited_for(kafka: Kafka, tmp_path: Path, small_disk: Path) -> None:
    made = script(VOLUME_BYTES, 4, volume=kafka.fresh_volume_name("full"))
    config = config_of(kafka.bootstrap, name=kafka.fresh_volume_name("t"))
    feed = Feed(config, made.maker.volume, VOLUME_BYTES)
    with TargetProcess(config, tmp_path / "state") as process:
        feed.declare(small_disk / "replica")
        for index in range(6):
            made.maker.batch(
                write(index << 20, made.chance.randbytes(1 << 19)), write((index << 20) + (1 << 19), made.chance.randbytes(1 << 19))
            )
        feed.send(made.maker.messages)
        told = process.wait(made.maker.volume, lambda told: "No space left" in (told.get("error") or ""), "the disk is full")
        assert told["state"] == "retrying"
        assert told["consistent_at"] is None
        subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
        last = str(made.maker.last)
        told = process.wait(made.maker.volume, lambda told: told.get("consistent_at") == last, f"consistent at {last}")
        assert told["error"] is None
        assert (small_disk / "replica").read_bytes() == made.image()
        assert process.stop()[0] == 0


@pytest.mark.slow
def test_a_broker_that_goes_and_comes_back(own_broker: OwnBroker, tmp_path: Path) -> None:
    made = script(VOLUME_BYTES, 4, volume=own_broker.fresh_volume_name())
    config = config_of(own_broker.bootstrap)
    feed = Feed(config, made.maker.volume, VOLUME_BYTES)
    with TargetProcess(config, tmp_path / "state") as process:
        feed.declare(tmp_path / "replica")
        feed.send(made.maker.messages)
        last = str(made.maker.last)
        process.wait(made.maker.volume, lambda told: told.get("consistent_at") == last, f"consistent at {last}")
        own_broker.kill()
        told = process.wait(made.maker.volume, lambda told: told.get("error"), "the broker is away")
        assert told["consistent_at"] == last
        assert told["state"] == "applying"
        own_broker.start()
        for _ in range(5):
            made.batch()
        feed.send(made.maker.messages)
        last = str(made.maker.last)
        told = process.wait(made.maker.volume, lambda told: told.get("consistent_at") == last and told["error"] is None, "it goes on")
        assert (tmp_path / "replica").read_bytes() == made.image()
        own_broker.kill()
        code, took_s = process.stop()
        assert code == 0
        assert took_s < 12
        assert process.checkpoint(made.maker.volume)["consistent_at"] == last
