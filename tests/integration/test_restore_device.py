"""Restore to a real block device: every byte is the image's, what is in use is refused, a killed one goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery.restore import Restore, Restored
from recovery.restore_target import RestoreTarget
from recovery.runs import REGION_BYTES
from stream.errors import ConfigError, RetryError
from tests.recovery_parts import FakeImage, sparse_bytes
from tests.tools import need

SIZE = 40 << 20


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device larger than the image, full of garbage."""
    need("losetup", "mkfs.ext4", "mount", root=True)
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        for _ in range(SIZE // (1 << 20) + 1):
            file.write(os.urandom(1 << 20))
    path = run("losetup", "--find", "--show", str(backing)).strip()
    yield Path(path)
    run("losetup", "--detach", path)


def run(*command: str) -> str:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


def restore(image: FakeImage, device: Path, folder: Path, watch=lambda *_: None) -> Restored:
    target = RestoreTarget(device, image.size_bytes, force=True, journal_dir=folder / "journals")
    try:
        return Restore(image, target, watch=watch, window_bytes=REGION_BYTES).run()
    finally:
        target.close()


def test_every_byte_of_a_device_is_the_image(device: Path, tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE - 512, 3, extents=100))
    behind = device.read_bytes()[SIZE - 512 :]
    done = restore(image, device, tmp_path)
    assert device.read_bytes() == image.data + behind, "what lies behind the volume is left alone"
    assert done.direct and done.verified_bytes >= image.size_bytes and os.listdir(tmp_path / "journals") == []


def test_a_killed_restore_goes_on(device: Path, tmp_path: Path) -> None:
    image = FakeImage(sparse_bytes(SIZE, 4, extents=300))

    def kill(what: str, done_bytes: int, _: int) -> None:
        if what == "write" and done_bytes >= 2 * REGION_BYTES:
            raise Killed

    with pytest.raises(Killed):
        restore(image, device, tmp_path, kill)
    assert len(os.listdir(tmp_path / "journals")) == 1
    assert restore(image, device, tmp_path).kept_bytes > 0
    assert device.read_bytes()[:SIZE] == image.data


def test_what_is_mounted_too_small_or_not_asked_for_is_refused(device: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        RestoreTarget(device, SIZE, force=False)
    with pytest.raises(ConfigError, match="needs"):
        RestoreTarget(device, SIZE * 2, force=True)
    run("mkfs.ext4", "-q", "-F", str(device))
    (tmp_path / "mnt").mkdir()
    run("mount", str(device), str(tmp_path / "mnt"))
    try:
        with pytest.raises(RetryError, match="in use"):
            RestoreTarget(device, SIZE, force=True)
    finally:
        if os.path.ismount(tmp_path / "mnt"):
            run("umount", str(tmp_path / "mnt"))
