"""The replica: which file is taken, which is refused, and what is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from cx_consumers.replica import READ_BYTES, ReplicaVolume, identity_of
from stream.errors import ConfigError

SIZE = 1 << 20


def test_a_missing_replica_is_made_sparse(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (SIZE,), None)
    found = path.stat()
    assert (found.st_size, found.st_blocks, found.st_mode & 0o777) == (SIZE, 0, 0o600)
    assert replica.identity == identity_of(str(path))
    replica.close()


def test_a_replica_that_had_a_checkpoint_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is gone") as caught:
        ReplicaVolume(str(tmp_path / "r"), (SIZE,), "inode 1 generation 2")
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [1, SIZE - 1, SIZE + 1])
def test_a_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "r"
    path.write_bytes(bytes(size))
    with pytest.raises(ConfigError, match=f"has {size} bytes, the volume has {SIZE}"):
        ReplicaVolume(str(path), (SIZE,), None)
    assert path.stat().st_size == size


def test_an_empty_file_is_what_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.touch()
    ReplicaVolume(str(path), (SIZE,), None).close()
    assert path.stat().st_size == SIZE


def test_either_side_of_a_resize_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "r"
    ReplicaVolume(str(path), (SIZE,), None).close()
    identity = identity_of(str(path))
    os.truncate(path, 2 * SIZE)
    replica = ReplicaVolume(str(path), (SIZE, 2 * SIZE), identity)
    assert replica.size_bytes == 2 * SIZE
    replica.close()


def test_a_digest_is_of_what_the_disk_holds(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (5 * READ_BYTES // 2,), None)
    content = os.urandom(5 * READ_BYTES // 2)
    replica.write([(0, len(content), [memoryview(content)])])
    replica.sync()
    for start, end in ((0, len(content)), (100, 101), (READ_BYTES - 7, READ_BYTES + 9), (len(content) - 5, len(content))):
        for from_disk in (False, True):
            assert replica.digest(start, end - start, from_disk=from_disk) == xxhash.xxh3_128_digest(content[start:end])
    with open(path, "r+b") as other:
        other.seek(1000)
        other.write(b"flipped")
    flipped = content[:1000] + b"flipped" + content[1007:]
    assert replica.digest(0, len(content), from_disk=True) == xxhash.xxh3_128_digest(flipped)
    assert replica.digest(len(content) - 5, 100) == xxhash.xxh3_128_digest(content[-5:]), "as far as the replica has it"
    assert replica.digest(len(content), 100) == xxhash.xxh3_128_digest(b"")
    os.truncate(path, 10)
    assert replica.digest(0, 100) is None, "what can't be read has no digest"
    replica.close()


def test_a_swapped_replica_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    ReplicaVolume(str(path), (SIZE,), None).close()
    identity = identity_of(str(path))
    path.unlink()
    path.write_bytes(bytes(SIZE))  # the file system may give the same inode again: the generation tells
    with pytest.raises(ConfigError, match="not the one that was written"):
        ReplicaVolume(str(path), (SIZE,), identity)


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    program = (
        "import sys; from cx_consumers.replica import ReplicaVolume; "
        f"r = ReplicaVolume({str(path)!r}, ({SIZE},), None); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"is held by process {other.pid}"):
            ReplicaVolume(str(path), (SIZE,), None)
    finally:
        other.communicate(b"")
    ReplicaVolume(str(path), (SIZE,), None).close()


@pytest.mark.parametrize("name", ["no/such/folder/r", "."])
def test_what_can_be_no_replica_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't be opened"):
        ReplicaVolume(str(tmp_path / name), (SIZE,), None)


def test_pieces_and_zeroes_are_written_and_zeroes_are_holes(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (SIZE,), None)
    ones = memoryview(b"\1" * 65536)
    replica.write([(0, 131072, [ones, ones]), (SIZE - 65536, 65536, [ones])])
    replica.sync()
    before = path.stat().st_blocks
    replica.write([(65536, 65536, None)])
    replica.sync()
    assert path.read_bytes() == bytes(ones) + bytes(SIZE - 131072) + bytes(ones)
    assert path.stat().st_blocks < before
    replica.close()


def test_many_small_pieces_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (SIZE,), None)
    pieces = [memoryview(bytes([index & 255]) * 3) for index in range(5000)]
    replica.write([(7, 15000, pieces)])
    assert path.read_bytes()[7:15007] == b"".join(pieces)
    replica.close()


def test_a_replica_cut_short_or_deleted_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (SIZE,), None)
    replica.check()
    os.truncate(path, SIZE // 2)
    with pytest.raises(ConfigError, match="has 524288 bytes"):
        replica.check()
    os.truncate(path, SIZE)
    replica.check()
    path.unlink()
    with pytest.raises(ConfigError, match="was deleted"):
        replica.check()
    replica.close()


def test_a_resize_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "r"
    replica = ReplicaVolume(str(path), (SIZE,), None)
    replica.resize(2 * SIZE)
    replica.check()
    assert path.stat().st_size == 2 * SIZE
    replica.close()
