"""A FileDevice over a real block device keeps the contract as one over a file does, sectors or not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_nbd_device import SIZE_BYTES, DeviceContract

from nbd.filedevice import FileDevice
from tests.tools import lacking, need

pytestmark = pytest.mark.root


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """The path of a loop device of SIZE_BYTES."""
    need("losetup", root=True)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True)
    if made.returncode:
        lacking(f"losetup can't make a loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


class TestLoopDevice(DeviceContract):
    @pytest.fixture
    def device(self, loop: str) -> Iterator[FileDevice]:
        device = FileDevice(loop)
        assert device.file.is_device
        assert device.file.sector_bytes >= 512
        yield device
        device.close()


def test_a_read_only_device_can_be_served(loop: str) -> None:
    device = FileDevice(loop, read_only=True)
    session = device.open_session()
    into = bytearray(1000)
    session.read(SIZE_BYTES - 1000, memoryview(into))
    assert into == bytes(1000)
    session.close()
    session.lane.close()
    device.close()
