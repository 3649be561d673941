"""`python -m bench` (`make bench`): the agent beside nbdkit, and the whole way to the replica, in one run.

Prints tables on stdout and progress on stderr, keeps the figures in `bench/results/`, and ends with the key figure. Exit code 0: every
goal is met; 1: one was missed; 2 and 3: it could not be measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench import kafka, machine, report
from bench.compare import compare
from bench.load import Load
from bench.processes import Agent, Nbdkit
from bench.replication import Replication
from bench.results import RATIO_LOADS, Results
from stream.config import KafkaConfig, TargetConfig
from stream.control import Replica, VolumeDeclaration
from stream.errors import ConfigError, HostoffloadError

Say = Callable[[str], None]
RESULTS = Path(__file__).parent / "results"
SHM = Path("/dev/shm")
AGENT = "bench"
FILL_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: the default keeps below six minutes, `QUICK` below one and a half."""

    volume_bytes: int
    rounds: int
    seconds: float
    paced_rounds: int
    paced_seconds: float
    end_to_end_bytes: int
    lag_seconds: float
    loads: tuple[str, ...]
    free_bytes_min: int


FULL = Scale(1 << 30, 5, 2.0, 3, 4.0, 768 << 20, 10.0, ("4k QD1", *RATIO_LOADS), 16 << 30)
QUICK = Scale(256 << 20, 3, 0.7, 1, 1.5, 192 << 20, 3.0, RATIO_LOADS, 6 << 30)


def main() -> int:
    """Measure; return the exit code."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    results, code = Results({}), 0
    try:
        _measure(options, QUICK if options.quick else FULL, results, say)
    except HostoffloadError as error:
        print(f"{error}\n{error.hint}".strip(), file=sys.stderr)
        if not results.saturated:
            return error.exit_code
        results.error, code = str(error), error.exit_code  # what was measured before is worth keeping
    say(f"results: {report.save(results, options.results)}")
    report.show(results)
    return code or (1 if results.misses() else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds and fewer of them, for CI")
    parser.add_argument("--without-kafka", action="store_true", help="capture alone: no broker, nothing to a replica")
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a broker that nobody else uses (default: one of its own)")
    parser.add_argument("--dir", type=Path, default=tempfile.gettempdir(), help="on the disk to measure on (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="measurements of each server and load")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and volumes")
    return parser


def _measure(options: argparse.Namespace, scale: Scale, results: Results, say: Say) -> None:
    """Measure everything into `results`."""
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    if shutil.which("fio") is None:
        raise ConfigError("fio is not installed", hint="It brings the load: install the package fio.")
    if machine.file_system(options.dir) == "tmpfs":
        raise ConfigError(f"{options.dir} is in memory", hint="Name a folder on a disk by --dir.")
    if shutil.disk_usage(options.dir).free < scale.free_bytes_min:
        raise ConfigError(f"{options.dir} has less than {scale.free_bytes_min >> 30} GiB free", hint="Name another folder by --dir.")
    folder = Path(tempfile.mkdtemp(prefix="ho-bench-", dir=options.dir))
    results.machine |= machine.facts(folder) | {"scale": "quick" if options.quick else "full"}
    try:
        with ExitStack() as stack:
            config = None
            if options.without_kafka:
                results.skipped.append("anything with Kafka (--without-kafka)")
            else:
                say("starting Kafka")
                config = stack.enter_context(kafka.broker(folder / "kafka", options.bootstrap, say))
            _beside_nbdkit(folder, config, scale, results, say)
            if config is not None:
                _to_replica(folder, config, scale, results, say)
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _beside_nbdkit(folder: Path, config: KafkaConfig | None, scale: Scale, results: Results, say: Say) -> None:
    """Compare nbdkit, the agent with a publisher that discards, and the agent with Kafka."""
    image = _filled(folder / "source", scale.volume_bytes)
    with ExitStack() as stack:
        servers = [Nbdkit(folder / "nbdkit", image)]
        stack.callback(servers[0].close)
        declaration = VolumeDeclaration("bench", AGENT, str(image), scale.volume_bytes)
        environment = kafka.environment(os.environ, None, AGENT)
        alone = Agent("agent, discarding", folder / "discard", declaration, environment, discard=True, shm=SHM)
        stack.callback(alone.close)
        servers.append(alone)
        if config is not None:
            source = _filled(folder / "source-kafka", scale.volume_bytes)
            declaration = kafka.declare(config, VolumeDeclaration("bench-kafka", AGENT, str(source), scale.volume_bytes))
            stack.callback(kafka.withdraw, config, declaration)
            environment = kafka.environment(os.environ, config, AGENT)
            published = Agent("agent, Kafka", folder / "publish", declaration, environment, discard=False, shm=SHM)
            stack.callback(published.close)
            servers.append(published)
        for load in _saturating(scale):
            results.saturated.append(compare(load, servers, scale.volume_bytes, scale.rounds, say))
        paced = Load("4k at 5,000/s", 4096, 1, scale.paced_seconds, writes_per_s=5000)
        results.paced.append(compare(paced, servers, scale.volume_bytes, scale.paced_rounds, say))


def _to_replica(folder: Path, config: KafkaConfig, scale: Scale, results: Results, say: Say) -> None:
    """Measure the whole way: throughput, then the lag at two fixed rates."""
    say("starting CX and target")
    source, size_bytes = _filled(folder / "source-replicated", scale.volume_bytes // 2), scale.volume_bytes // 2
    replica = _filled(folder / "replica", size_bytes)
    declaration = VolumeDeclaration(
        "bench-replicated", AGENT, str(source), size_bytes, replicas=(Replica(TargetConfig().name, str(replica)),)
    )
    declaration = kafka.declare(config, declaration)
    with ExitStack() as stack:
        environment = kafka.environment(os.environ, config, AGENT)
        agent = Agent("agent, replicated", folder / "replicate", declaration, environment, discard=False, shm=SHM)
        stack.callback(agent.close)
        replication = Replication(agent, config, size_bytes)
        half = 50  # percent compressible, as file systems' data is
        say("end to end, saturated")
        results.throughput = replication.throughput(Load("64k", 65536, 8, total_bytes=scale.end_to_end_bytes, compressible_percent=half))
        for load in (
            Load("64k at 20 MB/s", 65536, 8, scale.lag_seconds, writes_per_s=305, compressible_percent=half),
            Load("4k at 5,000/s", 4096, 8, scale.lag_seconds, writes_per_s=5000, compressible_percent=half),
        ):
            say(f"RPO lag, {load.name}")
            results.lags.append(replication.lag(load))


def _saturating(scale: Scale) -> list[Load]:
    loads = [
        Load("4k QD1", 4096, 1, scale.seconds),
        Load("4k QD32", 4096, 32, scale.seconds),
        Load("64k QD8", 65536, 8, scale.seconds),
        Load("1M QD4", 1 << 20, 4, scale.seconds),
    ]
    return [load for load in loads if load.name in scale.loads]


def _filled(path: Path, size_bytes: int) -> Path:
    """Make a file whose blocks are all allocated and written, and durable: what is measured is not the file system's allocator."""
    zeroes = bytes(FILL_BYTES)
    with path.open("wb") as file:
        for _ in range(size_bytes // FILL_BYTES):
            file.write(zeroes)
        file.flush()
        os.fsync(file.fileno())
    return path


if __name__ == "__main__":
    sys.exit(main())
