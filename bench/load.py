"""Loads, and fio that brings them: an NBD client in C, the same for every server.

A `Load` says what is written; `run` writes it at an export and returns what fio measured. Offsets are random over the whole export, and
no two runs repeat each other's.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from stream.errors import RetryError

FIO_EXTRA_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """Random writes of one size at one depth. Exactly one of `seconds` and `total_bytes` ends it; 0 of a rate means as fast as it goes."""

    name: str
    block_bytes: int
    depth: int
    seconds: float = 0.0
    total_bytes: int = 0
    writes_per_s: int = 0
    compressible_percent: int = 0

    def __post_init__(self) -> None:
        if self.block_bytes <= 0 or self.depth <= 0 or (self.seconds > 0) == (self.total_bytes > 0):
            raise ValueError(f"not a load: {self}")

    def arguments(self, uri: str, size_bytes: int) -> list[str]:
        """Return fio's command line."""
        told = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", f"--bs={self.block_bytes}"]
        told += [f"--iodepth={self.depth}", f"--size={size_bytes}", "--norandommap", "--randrepeat=0", "--output-format=json"]
        if self.seconds:
            told += ["--time_based", f"--runtime={round(self.seconds * 1000)}ms"]
        else:
            told += [f"--io_size={self.total_bytes}"]
        if self.writes_per_s:
            told.append(f"--rate_iops={self.writes_per_s}")
        if self.compressible_percent:
            told += ["--refill_buffers", f"--buffer_compress_percentage={self.compressible_percent}"]
        return told


@dataclass(frozen=True, slots=True)
class Measured:
    """What fio saw: writes answered, in how long, and how long each took."""

    writes: int
    bytes: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def writes_per_s(self) -> float:
        return self.writes / self.seconds

    @property
    def mb_per_s(self) -> float:
        return self.bytes / 1e6 / self.seconds


def run(load: Load, uri: str, size_bytes: int) -> Measured:
    """Write the load at `uri`. Raises RetryError with fio's words when it fails."""
    command = load.arguments(uri, size_bytes)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=load.seconds + FIO_EXTRA_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise RetryError(f"fio did not end: {load.name}", uri=uri, hint="A write was never answered: look at the server's log.") from error
    if done.returncode:
        raise RetryError(f"fio failed: {load.name}", uri=uri, said=(done.stderr or done.stdout).strip()[-500:])
    return parse(done.stdout)


def parse(text: str) -> Measured:
    """Return what fio's JSON says; fio may print lines before it."""
    job = json.loads(text[text.index("{") :])["jobs"][0]["write"]
    percentiles = job["clat_ns"]["percentile"]
    return Measured(
        writes=job["total_ios"],
        bytes=job["io_bytes"],
        seconds=job["runtime"] / 1000,
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
    )
