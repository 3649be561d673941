"""The checkpoint: what is saved is loaded, and nothing else is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from cx_consumers.checkpoint import Checkpoint, CheckpointFile, Label
from cx_consumers.target_chain import ANCHORED, ChainState
from cx_consumers.target_verify import Ended, VerifyState
from stream.errors import IntegrityError, RetryError
from stream.journal import OpenGap
from stream.position import Position

CHECKPOINT = Checkpoint(
    "v1",
    "topic-id",
    ChainState(
        kafka_offset=12,
        fence=3,
        position=Position(2, 40),
        digest=bytes(range(16)),
        open_gaps=(OpenGap(Position(2, 30), "buffer_full", 5),),
        own_gaps=(OpenGap(Position(1, 3), "retention", 6),),
        gaps=4,
        size_bytes=1 << 20,
        anchor=ANCHORED,
    ),
    Label(not_until=Position(2, 99)),
    "/replicas/v1",
    "inode 7 generation 8",
    (1 << 20, 1 << 21),
    verify=VerifyState(
        mismatches=3,
        proved_position=Position(1, 30),
        done=Ended("b2", Position(2, 35), True, 1, (4096,)),
        ended=(Ended("b1", Position(2, 33), False), Ended("b2", Position(2, 35), True, 1, (4096,))),
        repairs=((4096, 8192), (10000, 10001)),
        unasked=((4096, 8192),),
        unasked_at=Position(2, 34),
    ),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path, "v1")
    assert file.load() is None
    file.save(CHECKPOINT)
    assert CheckpointFile(tmp_path, "v1").load() == CHECKPOINT
    assert os.listdir(tmp_path) == ["v1.json"]
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_checkpoint_from_before_verification_is_read(tmp_path: Path) -> None:
    """As it was written then: the same format without the key, under a checksum of its own."""
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    body = json.loads(file.path.read_bytes())
    del body["verify"], body["checksum"]
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    file.path.write_bytes(json.dumps(body | {"checksum": checksum}).encode())
    assert file.load() == replace(CHECKPOINT, verify=VerifyState())


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    raw = file.path.read_bytes()
    for index in range(len(raw) - 1):
        damaged = bytearray(raw)
        damaged[index] ^= 0x04
        file.path.write_bytes(damaged)
        if raw[index : index + 1].isspace():
            continue  # layout is not content
        with pytest.raises(IntegrityError, match="is damaged"):
            file.load()


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_a_short_checkpoint_is_damaged(tmp_path: Path, length: int) -> None:
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    file.path.write_bytes(file.path.read_bytes()[:length])
    with pytest.raises(IntegrityError) as caught:
        file.load()
    assert str(file.path) in caught.value.sentence
    assert caught.value.hint


def test_a_checkpoint_under_another_name_is_refused(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    os.rename(file.path, tmp_path / "v2.json")
    with pytest.raises(IntegrityError, match="that of volume v1"):
        CheckpointFile(tmp_path, "v2").load()


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    os.mkdir(tmp_path / ".v1.json.new")
    with pytest.raises(RetryError, match="can't be written"):
        file.save(CHECKPOINT)
    assert file.load() == CHECKPOINT


def test_another_format_is_refused(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path, "v1")
    file.save(CHECKPOINT)
    body = json.loads(file.path.read_bytes())
    file.path.write_bytes(json.dumps(body | {"format": 99}).encode())
    with pytest.raises(IntegrityError):
        file.load()
