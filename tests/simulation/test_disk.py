"""The simulated disk itself, and what it has shown of the product's files that needs no whole run."""

from __future__ import annotations

import errno
import os
import random

import pytest

from cx_consumers import checkpoint
from cx_consumers.checkpoint import Checkpoint, CheckpointFile, Label
from cx_consumers.target_chain import ChainState
from stream.position import Position
from tests.simulation.disk import Inode
from tests.simulation.filesystem import FileSystem
from tests.simulation.paths import SimulatedPath, open_of
from tests.simulation.scheduler import Scheduler


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    made = FileSystem(Scheduler(random.Random(1)), lambda: 0)
    made.folders.update(("/m", "/m/state"))
    monkeypatch.setattr(SimulatedPath, "files", made, raising=False)
    return made


def test_flushed_bytes_survive_and_others_may_not() -> None:
    fates = set()
    for seed in range(40):
        inode = Inode(1, ram=False, mode=0)
        inode.resize(2048)
        inode.put(0, b"a" * 1024)
        inode.flush()
        inode.put(512, b"b" * 1024)
        inode.lose_power(random.Random(seed))
        assert inode.data[:512] == b"a" * 512
        fates.add((bytes(inode.data[512:513]), bytes(inode.data[1024:1025])))
    assert fates == {(one, two) for one in (b"a", b"b") for two in (b"\0", b"b")}, "sectors survive in any order, torn from each other"


def test_a_failed_flush_is_not_made_good_by_the_next() -> None:
    inode = Inode(1, ram=False, mode=0)
    inode.put(0, b"a" * 512)
    inode.fail_flush()
    inode.flush()
    assert inode.data[:1] == b"a"
    inode.lose_power(random.Random(1))
    assert inode.data[:1] == b"\0"


def test_a_new_name_is_lost_without_an_fsync(files: FileSystem) -> None:
    fates = set()
    for seed in range(20):
        files.volume("/m/").names.clear()
        files.volume("/m/").stable.clear()
        os_ = files
        os_.close(os_.open("/m/state/old", os.O_CREAT | os.O_WRONLY))
        os_.fsync(os_.open("/m/state", os.O_RDONLY))
        os_.rename("/m/state/old", "/m/state/new")
        files.volume("/m/").lose_power(random.Random(seed))
        fates.add(tuple(sorted(files.volume("/m/").names)))
    assert ("/m/state/old",) in fates and ("/m/state/new",) in fates


def test_a_full_disk_takes_some_and_refuses_the_rest(files: FileSystem) -> None:
    fd = files.open("/m/state/v", os.O_CREAT | os.O_RDWR)
    files.lookup("/m/state/v").faults.plan("write", errno.ENOSPC)
    taken = files.pwrite(fd, bytes(8192), 0)
    assert taken < 8192
    if taken:
        with pytest.raises(OSError, match="No space"):
            files.pwrite(fd, bytes(8192 - taken), taken)
    assert files.pwrite(fd, bytes(8192), 0) == 8192


def test_a_checkpoint_that_was_loaded_survives_a_power_cut(files: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target killed between rename and fsync: the next one goes on under the label it finds, which the disk must not take back."""
    monkeypatch.setattr(checkpoint, "os", files)
    monkeypatch.setattr(checkpoint, "open", open_of(files), raising=False)
    consistent = Checkpoint("v1", "id", ChainState(kafka_offset=3), Label(consistent_at=Position(1, 9)), "/r", "i", (4096,))
    writing = Checkpoint("v1", "id", ChainState(kafka_offset=3), Label(not_until=Position(1, 99)), "/r", "i", (4096,))
    for seed in range(20):
        file = CheckpointFile(SimulatedPath("/m/state"), "v1")
        file.save(consistent)
        monkeypatch.setattr(checkpoint, "_sync_folder", _killed)
        with pytest.raises(KeyboardInterrupt):
            file.save(writing)
        monkeypatch.undo()
        monkeypatch.setattr(SimulatedPath, "files", files, raising=False)
        monkeypatch.setattr(checkpoint, "os", files)
        monkeypatch.setattr(checkpoint, "open", open_of(files), raising=False)
        assert file.load() == writing
        files.volume("/m/").lose_power(random.Random(seed))
        assert file.load() == writing


def _killed(folder: object) -> None:
    raise KeyboardInterrupt
