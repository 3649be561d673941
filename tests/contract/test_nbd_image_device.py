"""The contract of NBD devices, on images with overlays: one without a name, one with, and one over an image that has bytes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from history.image import Image
from nbd.device import Session
from recovery.image_device import ImageDevice
from recovery.overlay import Base, Overlay, open_named, open_unnamed
from stream.errors import HostoffloadError, IntegrityError
from stream.position import Position
from tests.contract.test_nbd_device import SIZE_BYTES, DeviceContract
from tests.recovery_image import BytesImage

AT = Position(1, 9)


def failed(error: HostoffloadError) -> None:
    raise AssertionError(error)


class TestUnnamedOverlay(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[ImageDevice]:
        image = Image("v1", AT, SIZE_BYTES, [])
        overlay = open_unnamed(image, Base.of("v1", AT, SIZE_BYTES), tmp_path)
        assert list(tmp_path.iterdir()) == [], "it has no name"
        yield ImageDevice(image, overlay, failed=failed)
        overlay.close()


class TestNamedOverlay(DeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[ImageDevice]:
        image = Image("v1", AT, SIZE_BYTES, [])
        overlay = open_named(image, Base.of("v1", AT, SIZE_BYTES), tmp_path / "mine")
        yield ImageDevice(image, overlay, failed=failed)
        overlay.close()


class TestReadOnly:
    @pytest.fixture
    def session(self) -> Session:
        return ImageDevice(BytesImage(b"x" * 5000 + bytes(5000)), failed=failed).open_session()

    def test_reads_and_describes(self, session: Session) -> None:
        into = bytearray(6000)
        session.read(1000, memoryview(into))
        assert into == b"x" * 4000 + bytes(2000)

    def test_holes_have_edges_that_clients_can_count_in_sectors(self, session: Session) -> None:
        assert session.extents(0, 10_000, 10) == [(8192, 0), (1808, 3)]
        assert session.extents(0, 10_000, 1) == [(8192, 0)]
        assert session.extents(5000, 5000, 1) == [(5000, 3)]

    def test_refuses_every_change(self, session: Session) -> None:
        for change in (
            lambda: session.write(0, memoryview(b"y"), 1, False),
            lambda: session.zero(0, 1, punch=True, fast=False, fua=False),
            lambda: session.trim(0, 1, fua=False),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EPERM
        session.flush()


def test_an_error_of_the_image_is_the_clients_alone(tmp_path: Path) -> None:
    image = BytesImage(b"x" * 10_000)
    told: list[HostoffloadError] = []
    device = ImageDevice(image, failed=told.append)
    image.damaged = IntegrityError("A block is wrong", path="v1/L0/a")
    session = device.open_session()
    with pytest.raises(OSError) as caught:
        session.read(0, memoryview(bytearray(10)))
    assert caught.value.errno == errno.EIO
    assert told == [image.damaged]
    image.damaged = None
    session.read(0, memoryview(bytearray(10)))


def test_an_overlay_is_written_where_its_image_is_damaged(tmp_path: Path) -> None:
    """Only an edge needs the image: whole blocks can be written over what can't be read."""
    image = BytesImage(b"x" * 10_000)
    overlay: Overlay = open_unnamed(image, Base.of("v1", AT, 10_000), tmp_path)
    image.damaged = IntegrityError("A block is wrong")
    overlay.write(4096, memoryview(b"y" * 4096), 4096)
    with pytest.raises(IntegrityError):
        overlay.write(100, memoryview(b"y"), 1)
    image.damaged = None
    into = bytearray(10_000)
    overlay.read(0, memoryview(into))
    assert into == b"x" * 4096 + b"y" * 4096 + b"x" * 1808
    overlay.close()
