"""A named overlay against a bytearray: reads, extents, and what is left after a kill, a power cut, and a cut inside a flush."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.blockfile import BlockFile
from recovery.overlay import BLOCK_BYTES, Base, Overlay, open_named
from stream.errors import ConfigError, RetryError
from stream.position import Position
from tests.recovery_image import BytesImage

SIZE_BYTES = 20 * BLOCK_BYTES + 1234
BASE = Base.of("v1", Position(1, 5), SIZE_BYTES)

ops = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "zero", "flush"]),
        st.one_of(st.integers(0, SIZE_BYTES - 1), st.integers(0, 20).map(lambda block: block * BLOCK_BYTES)),
        st.one_of(st.integers(1, 300), st.integers(1, 5).map(lambda blocks: blocks * BLOCK_BYTES)),
    ),
    min_size=1,
    max_size=12,
)


def base_image() -> BytesImage:
    return BytesImage(random.Random(1).randbytes(10 * BLOCK_BYTES) + bytes(SIZE_BYTES - 10 * BLOCK_BYTES))


class Model:
    """What the volume holds, and what each byte may be after a crash: as it was when a flush began last, or as it was written since."""

    def __init__(self, content: bytes) -> None:
        self.now = bytearray(content)
        self.may = [{value} for value in content]

    def write(self, at: int, data: bytes) -> None:
        self.now[at : at + len(data)] = data
        for number, value in enumerate(data, at):
            self.may[number].add(value)

    def flushed(self) -> None:
        self.may = [{value} for value in self.now]

    def allows(self, content: bytes) -> bool:
        return all(value in allowed for value, allowed in zip(content, self.may, strict=True))


def content(overlay: Overlay) -> bytes:
    into = bytearray(SIZE_BYTES)
    overlay.read(0, memoryview(into))
    return bytes(into)


def play(overlay: Overlay, model: Model, folder: Path, told: list[tuple[str, int, int]]) -> bytes:
    """Carry the operations out; return what `data` held when it was made durable last."""
    durable = (folder / "data").read_bytes()
    for number, (kind, at, length) in enumerate(told):
        length = min(length, SIZE_BYTES - at)
        if kind == "flush":
            overlay.flush()
            model.flushed()
            durable = (folder / "data").read_bytes()
        elif kind == "zero":
            overlay.zero(at, length)
            model.write(at, bytes(length))
        else:
            payload = bytes([number + 1]) * length
            overlay.write(at, memoryview(payload), length)
            model.write(at, payload)
    return durable


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ops, st.sampled_from(["close", "kill", "power", "inside a flush"]), st.randoms(use_true_random=False))
def test_what_was_flushed_is_there_and_nothing_else_is_made_up(told: list[tuple[str, int, int]], end: str, dice: random.Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mine"
        image, model = base_image(), Model(base_image().content)
        overlay = open_named(image, BASE, folder)
        durable = play(overlay, model, folder, told)
        assert content(overlay) == model.now
        check_extents(overlay, model)
        if end == "close":
            overlay.flush()
            model.flushed()
        if end == "inside a flush":
            before = (folder / "map").read_bytes()
            overlay.flush()
            after = (folder / "map").read_bytes().ljust(len(before), b"\0")
            torn = bytes(dice.choice(pair) for pair in zip(before.ljust(len(after), b"\0"), after, strict=True))
            overlay.close()
            (folder / "map").write_bytes(torn)
        else:
            overlay.close()  # closing writes nothing: it is what a kill leaves
        if end == "power":
            lose(folder / "data", durable, dice)
        again = open_named(image, BASE, folder)
        assert model.allows(content(again))
        again.close()


def lose(path: Path, durable: bytes, dice: random.Random) -> None:
    """Take back some pages of what was not durable."""
    with path.open("r+b") as file:
        for at in range(0, SIZE_BYTES, BLOCK_BYTES):
            if dice.random() < 0.5:
                os.pwrite(file.fileno(), durable[at : at + BLOCK_BYTES], at)


def check_extents(overlay: Overlay, model: Model) -> None:
    at = 0
    while at < SIZE_BYTES:
        for length, state in overlay.extents(at, SIZE_BYTES - at, 3):
            assert length > 0
            assert not state or not any(model.now[at : at + length]), "what is told to be zero is not"
            at += length
    assert at == SIZE_BYTES


def test_an_overlay_belongs_to_one_process_and_one_point(tmp_path: Path) -> None:
    image = base_image()
    first = open_named(image, BASE, tmp_path / "mine")
    with pytest.raises(RetryError, match="in use"):
        open_named(image, BASE, tmp_path / "mine")
    first.close()
    with pytest.raises(ConfigError, match="00000001-0000000000000005"):
        open_named(image, Base.of("v1", Position(1, 6), SIZE_BYTES), tmp_path / "mine")
    open_named(image, BASE, tmp_path / "mine").close()
    (tmp_path / "mine" / "base.json").write_text('{"form": 2}')
    with pytest.raises(ConfigError, match="can't be read"):
        open_named(image, BASE, tmp_path / "mine")


def test_an_overlay_takes_the_space_of_what_was_written(tmp_path: Path) -> None:
    """And what was zeroed takes none."""
    size = 1 << 30
    base = Base.of("v1", Position(1, 5), size)
    overlay = open_named(BytesImage(b""), base, tmp_path / "mine")
    overlay.write(512 << 20, memoryview(b"x" * 8192), 8192)
    overlay.zero(0, 256 << 20)
    overlay.flush()
    assert overlay.written_bytes == (256 << 20) + 8192
    assert overlay.extents(0, 256 << 20, 10) == [(256 << 20, 3)]
    overlay.close()
    assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "mine").iterdir()) < 1 << 20


def test_a_flush_makes_the_data_durable_before_the_map_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    sync, pwrite, fdatasync = BlockFile.sync, os.pwrite, os.fdatasync
    overlay = open_named(base_image(), BASE, tmp_path / "mine")
    map_fd = overlay._map_fd
    overlay.write(0, memoryview(b"x" * 4096), 4096)
    monkeypatch.setattr(BlockFile, "sync", lambda self: (told.append("data"), sync(self))[1])
    monkeypatch.setattr(os, "pwrite", lambda fd, *rest: (fd == map_fd and told.append("map"), pwrite(fd, *rest))[1])
    monkeypatch.setattr(os, "fdatasync", lambda fd: (fd == map_fd and told.append("map durable"), fdatasync(fd))[1])
    overlay.flush()
    assert told == ["data", "map", "map durable"]
    monkeypatch.undo()
    overlay.close()


def test_after_a_flush_that_failed_everything_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says once what it lost."""
    overlay = open_named(base_image(), BASE, tmp_path / "mine")
    overlay.write(0, memoryview(b"x" * 4096), 4096)

    def fail(self: BlockFile) -> None:
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(BlockFile, "sync", fail)
    with pytest.raises(OSError, match="planted"):
        overlay.flush()
    monkeypatch.undo()
    for attempt in (overlay.flush, lambda: overlay.write(0, memoryview(b"y" * 4096), 4096)):
        with pytest.raises(OSError):
            attempt()
    overlay.close()
