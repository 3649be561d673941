"""`python -m bench.volumes [FOLDER] [--volumes N] [--seconds S]`: many volumes on one machine at low load, for a while.

Everything is started by the product's own command line, as a user would. Each volume gets `WRITES_PER_S` writes of 4 KiB at random places.
The RPO lag of every volume is asked from `status` every `LOOK_S`; the last lines are its percentiles over all volumes and looks, and the
memory and processor time of each process. Exit code 1 if a volume was ever in another mode than DATA, or the lag's p99 is too high.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench.history import say
from bench.results import percentile
from nbd.client import Client
from tests.e2e.system import System, first_difference, make_source, running

VOLUME_BYTES = 256 << 20
USED_BYTES = 8 << 20
BLOCK_BYTES = 4096
WRITES_PER_S = 4.0
LOOK_S = 5.0
RPO_P99_MS_MAX = 2000.0


def main() -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.volumes")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--volumes", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, running(Path(folder)) as system:
        names = [f"v{number:02d}" for number in range(options.volumes)]
        sources = {name: make_source(system.folder / f"{name}.img", VOLUME_BYTES, USED_BYTES) for name in names}
        began_s = time.monotonic()
        uris = {name: system.add(name, source) for name, source in sources.items()}
        for name in names:
            system.wait_in_sync(name)
        say(f"{len(names)} volumes of {VOLUME_BYTES >> 20} MiB: protected and in sync after", time.monotonic() - began_s, "s")
        with _load(uris):
            good = _watch(system, names, options.seconds)
        for name, source in sources.items():
            system.wait_in_sync(name)
            if first_difference(source, system.replica(source)) is not None:
                print(f"{name}: the replica differs", file=sys.stderr)
                good = False
    return 0 if good else 1


@contextlib.contextmanager
def _load(uris: dict[str, str]) -> Iterator[None]:
    """Write to every volume, in turns, on one thread."""
    over, dice = threading.Event(), random.Random(5)

    def run() -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(uri)) for uri in uris.values()]
            pause_s, next_s = 1.0 / (WRITES_PER_S * len(clients)), time.monotonic()
            while True:
                for client in clients:
                    client.write(dice.randrange(VOLUME_BYTES // BLOCK_BYTES) * BLOCK_BYTES, dice.randbytes(BLOCK_BYTES))
                    next_s += pause_s
                    if over.wait(max(0.0, next_s - time.monotonic())):
                        return

    thread = threading.Thread(target=run, name="load")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(system: System, names: list[str], seconds: float) -> bool:
    """Look at all volumes again and again; tell whether all was well."""
    lags_ms, others, used = [], [], defaultdict(list)
    cpu_s: dict[str, float] = {}
    ends_s = time.monotonic() + seconds
    began = _processes(system)
    while time.monotonic() < ends_s:
        told = json.loads(system.run("status", "--json"))
        for one in told["volumes"]:
            lags_ms.append(float("inf") if one["rpo_ms"] is None else one["rpo_ms"])
            if one["mode"] != "DATA":
                others.append(f"{one['volume']}: {one['mode']} ({one['mode_reason']})")
        now = _processes(system)
        for name, pid in now.items():
            used[name].append(_pss_bytes(pid, set(now.values())))
        time.sleep(LOOK_S)
    for name, pid in _processes(system).items():
        cpu_s[name] = _cpu_s(pid)
        if began.get(name) != pid:
            others.append(f"{name} was started again")
    lags_ms.sort()
    p99_ms = percentile(lags_ms, 99)
    say(f"{len(names)} volumes, {seconds:.0f} s, {WRITES_PER_S:.0f} writes a second each: RPO lag, p50", percentile(lags_ms, 50), "ms")
    say("RPO lag, p99", p99_ms, "ms")
    say("RPO lag, highest", lags_ms[-1], "ms")
    for name, sizes in sorted(used.items()):
        say(f"{name}: memory at most (proportional share)", max(sizes) / 1e6, "MB")
        say(f"{name}: processor time since its start", 1e3 * cpu_s[name] / max(1.0, _age_s(began[name])), "ms a second")
    for other in sorted(set(others)):
        print(other, file=sys.stderr)
    return not others and p99_ms < RPO_P99_MS_MAX


def _processes(system: System) -> dict[str, int]:
    """Return the pid of every process, by kind and number."""
    found: dict[str, int] = {}
    for one in json.loads(system.run("status", "--json"))["processes"]:
        number = sum(1 for name in found if name.split("-")[0] == one["kind"])
        found[f"{one['kind']}-{number}" if number else one["kind"]] = one["pid"]
    return found


def _pss_bytes(pid: int, others: set[int]) -> int:
    """Return the memory of a process and its children but those others, each shared page counted by its share."""
    children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    total = 0
    for one in {pid, *(children - others)}:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _age_s(pid: int) -> float:
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
