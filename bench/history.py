"""`python -m bench.history [FOLDER] [--writes N]`: opening, reading and folding a history of a million random writes, on the disk of that
folder.

Prints one figure a line. The history is not folded when points are opened, the worst case: every segment's header is read by the first who
opens one. Payload is compressible, so disks count for little; figures of processor time stand beside those of the clock.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from history.block_cache import BlockCache
from history.catalog import Catalog
from history.fold import FoldTask, fold
from history.image import Image
from history.store import open_store
from stream.position import Position
from tests.history_load import LongHistory

VOLUME_BYTES = 1 << 30
SEGMENT_BYTES = 32 << 20
POINTS = 30


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds by the clock and of the processor."""

    clock_s: float
    cpu_s: float


def main() -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.history")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--writes", type=int, default=1_000_000)
    options = parser.parse_args()
    for name, sizes, writes in (("4k", (4096, 4096), options.writes), ("4k to 64k", (4096, 65536), options.writes // 10)):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(f"{writes} writes of {name}", folder, sizes, writes)
    return 0


def measure(name: str, folder: str, sizes: tuple[int, int], writes: int) -> None:
    store = open_store(folder)
    made = LongHistory(store, 1, VOLUME_BYTES, write_bytes=sizes, segment_bytes=SEGMENT_BYTES, record_ns=200_000)
    made.write_all(writes, 1)
    last = Catalog(store, "v1").levels()[0][-1].last
    rng = random.Random(1)

    def opened() -> Image:
        return Catalog(store, "v1", cache=BlockCache()).image(Position(1, rng.randrange(2, last.sequence)))

    into = memoryview(bytearray(4096))
    cold = [took(lambda: opened().read(rng.randrange(VOLUME_BYTES - 4096), into)) for _ in range(POINTS)]
    say(f"{name}: a point opened and read from, p50", statistics.median(one.clock_s for one in cold) * 1e3, "ms")
    say(f"{name}: the same, slowest", max(one.clock_s for one in cold) * 1e3, "ms")
    catalog = Catalog(store, "v1")
    image = catalog.image(last)
    rate(f"{name}: whole image, as stored", VOLUME_BYTES, took(lambda: swept(image)))
    names = tuple(catalog.levels()[0])
    rate(f"{name}: folded, of payload", made.payload_bytes, took(lambda: fold(catalog, FoldTask("v1", 1, names, last), codec="zstd")))
    catalog.refresh()
    image = catalog.image(last)
    rate(f"{name}: whole folded image, as stored", VOLUME_BYTES, took(lambda: swept(image)))
    rate(f"{name}: whole folded image, in order", VOLUME_BYTES, took(lambda: read(image)))


def swept(image: Image) -> None:
    for _ in image.sweep():
        pass


def read(image: Image) -> None:
    into = memoryview(bytearray(1 << 20))
    for at in range(0, image.size_bytes, len(into)):
        image.read(at, into)


def took(run: Callable[[], object]) -> Took:
    began_s, cpu_s = time.perf_counter(), time.process_time()
    run()
    return Took(time.perf_counter() - began_s, time.process_time() - cpu_s)


def rate(what: str, size_bytes: int, one: Took) -> None:
    say(what, size_bytes / 1e6 / one.clock_s, f"MB/s ({size_bytes / 1e6 / one.cpu_s:.0f} a core)")


def say(what: str, figure: float, unit: str) -> None:
    print(f"{what:60} {figure:10.1f} {unit}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
