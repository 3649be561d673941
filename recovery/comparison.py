"""A volume compared with an image, byte for byte: equal, or which extents differ.

Used by `replay` to judge what it made. The image is read once in the order in which it is stored; what it does not give must read as zero.
"""

from __future__ import annotations

from collections.abc import Callable

from history.image import Image
from nbd.blockfile import EXTENT_HOLE, BlockFile
from recovery.runs import REGION_BYTES, Run, Runs, gaps_between
from stream.extent import Extent, ExtentSet

GRAIN_BYTES = 512
EXTENTS_MAX = 1024
DIFFERENT_MAX = 1 << 16
_ZEROES = bytes(REGION_BYTES)


def different_extents(file: BlockFile, image: Image, watch: Callable[[int, int], None] = lambda done_bytes, of_bytes: None) -> list[Extent]:
    """Return the extents in which the volume differs from the image, to the 512 bytes, sorted and merged; one that is shorter or longer
    (a file) differs there. At most some `DIFFERENT_MAX` places are looked for. Raises OSError and what the image raises."""
    found = ExtentSet()
    size, have = image.size_bytes, file.measure()
    if have < size or (have > size and not file.is_device):
        found.add(min(size, have), max(size, have))
    shown = min(size, have)
    given = Runs()
    buffer = memoryview(bytearray(REGION_BYTES))
    for offset, data in image.sweep(0, shown):
        into = buffer[: len(data)]
        file.read(offset, into)
        if into != data and len(found) < DIFFERENT_MAX:
            _note(found, offset, into, data)
        given.add(Run(offset, offset + len(data), 0))
        watch(min(given.total_bytes, shown), shown)
    for region in range(-(-shown // REGION_BYTES)):
        start, end = region * REGION_BYTES, min((region + 1) * REGION_BYTES, shown)
        for gap_start, gap_end in gaps_between(given.region(region), start, end):
            _note_data(found, file, gap_start, gap_end, buffer)
        watch(end, shown)
    return list(found)


def reads_as_zero(file: BlockFile) -> bool:
    """Tell whether a volume holds nothing but zeroes."""
    found = ExtentSet()
    buffer = memoryview(bytearray(REGION_BYTES))
    size = file.measure()
    for start in range(0, size, REGION_BYTES):
        _note_data(found, file, start, min(start + REGION_BYTES, size), buffer)
        if len(found):
            return False
    return True


def _note_data(found: ExtentSet, file: BlockFile, start: int, end: int, buffer: memoryview) -> None:
    """Note what does not read as zero."""
    at = start
    while at < end and len(found) < DIFFERENT_MAX:
        for length, kind in file.extents(at, end - at, EXTENTS_MAX):
            if kind != EXTENT_HOLE:
                into = buffer[:length]
                file.read(at, into)
                if into.tobytes() != _ZEROES[:length]:
                    _note(found, at, into, memoryview(_ZEROES)[:length])
            at += length


def _note(found: ExtentSet, offset: int, one: memoryview, other: memoryview) -> None:
    for at in range(0, len(one), GRAIN_BYTES):
        end = min(at + GRAIN_BYTES, len(one))
        if one[at:end] != other[at:end]:
            found.add(offset + at, offset + end)
