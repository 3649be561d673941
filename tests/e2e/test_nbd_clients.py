"""Real NBD clients against `python -m nbd` over a plain file: QEMU, libnbd's tools, fio, and one that breaks off."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from nbd.uri import format_uri
from tests.tools import need

SIZE_BYTES = 128 << 20
TIMEOUT_S = 120


class Served:
    """A server process; `uri` leads to its unix socket, `tcp` to its port."""

    def __init__(self, folder: Path, *options: str, export: str = "") -> None:
        self.image = folder / "image"
        if not self.image.exists():
            with self.image.open("wb") as file:
                file.truncate(SIZE_BYTES)
        self.path = folder / "nbd.sock"
        command = [sys.executable, "-m", "nbd", str(self.image), "--socket", str(self.path), "--port", "0", "--export", export, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.uri = self.process.stdout.readline().strip()
        self.tcp = self.process.stdout.readline().strip()
        assert self.tcp, self.process.stderr.read()

    def end(self) -> str:
        """Stop the server; it must end well. Return what it wrote to stderr."""
        assert self.process.poll() is None, "the server died"
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0
        assert "Traceback" not in errors
        return errors

    def bytes(self, offset: int, length: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.end()


def tool(name: str) -> str:
    need(name)
    path = shutil.which(name)
    assert path is not None, f"{name} is not on the PATH of a plain user"
    return path


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def qemu_io(uri: str, *commands: str) -> str:
    arguments = [part for command in commands for part in ("-c", command)]
    out = run(tool("qemu-io"), "-f", "raw", *arguments, uri)
    assert "fail" not in out, out
    return out


@pytest.mark.parametrize("way", ["uri", "tcp"])
@pytest.mark.parametrize("length", ["512", "4k", "64k", "1M", "32M"])
def test_qemu_writes_and_reads(served: Served, length: str, way: str) -> None:
    uri = getattr(served, way)
    qemu_io(
        uri, f"write -P 90 1536 {length}", f"read -P 90 1536 {length}", f"write -f -P 91 64M {length}", f"read -P 91 64M {length}", "flush"
    )
    nbytes = {"512": 512, "4k": 4096, "64k": 65536, "1M": 1 << 20, "32M": 32 << 20}[length]
    assert served.bytes(1536, nbytes) == b"\x5a" * nbytes
    assert served.bytes(64 << 20, nbytes) == b"\x5b" * nbytes
    assert served.bytes(0, 1536) == bytes(1536)


def test_qemu_zeroes_and_discards(served: Served) -> None:
    qemu_io(
        served.uri, "write -P 1 0 4M", "write -z 1M 1M", "write -z -u 2M 512k", "discard 3M 1M", "read -P 1 0 1M", "read -P 0 1M 1572864"
    )
    assert served.bytes(0, 4 << 20) == b"\1" * (1 << 20) + bytes(3 << 19) + b"\1" * (1 << 19) + bytes(1 << 20)
    allocated = served.image.stat().st_blocks * 512
    assert allocated < (3 << 20) + 65536


def test_qemu_keeps_many_requests_in_flight(served: Served) -> None:
    commands = [f"aio_write -P {n % 250 + 1} {n * 70_144} 65536" for n in range(200)]
    qemu_io(served.uri, *commands, "aio_flush", "flush")
    for n in range(200):
        assert served.bytes(n * 70_144, 65536) == bytes([n % 250 + 1]) * 65536


def test_qemu_is_refused_beyond_the_end_and_goes_on(served: Served) -> None:
    run(tool("qemu-io"), "-f", "raw", "-c", "write -P 5 0 512", "-c", "read -P 5 0 512", served.uri)
    done = subprocess.run(
        [tool("qemu-io"), "-f", "raw", "-c", f"write {SIZE_BYTES} 512", served.uri], capture_output=True, timeout=TIMEOUT_S
    )
    assert done.returncode != 0


def test_a_read_only_export(tmp_path: Path) -> None:
    served = Served(tmp_path, "--read-only")
    run(tool("qemu-io"), "-r", "-f", "raw", "-c", "read -P 0 0 1M", served.uri)
    assert json.loads(run(tool("nbdinfo"), "--json", served.uri))["exports"][0]["is_read_only"] is True
    served.end()


def test_nbdcopy_in_and_out(served: Served, tmp_path: Path) -> None:
    dice = random.Random(4)
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        for at in range(0, SIZE_BYTES, 8 << 20):
            file.seek(at)
            file.write(dice.randbytes(dice.choice([1, 4096, 1 << 20, 5 << 20])))
        file.truncate(SIZE_BYTES)
    run(tool("nbdcopy"), "--connections=4", "--flush", str(source), served.uri)
    run(tool("cmp"), str(source), str(served.image))
    run(tool("nbdcopy"), "--connections=4", served.uri, str(back))
    run(tool("cmp"), str(source), str(back))
    assert served.image.stat().st_blocks < source.stat().st_size // 512, "holes were not kept"


def test_nbdinfo_tells_all(tmp_path: Path) -> None:
    served = Served(tmp_path, export="vol 1")
    export = json.loads(run(tool("nbdinfo"), "--json", served.uri))["exports"][0]
    assert (export["export-name"], export["export-size"], export["is_read_only"]) == ("vol 1", SIZE_BYTES, False)
    for can in ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert export[can] is True, can
    assert (export["block_size_minimum"], export["block_size_preferred"], export["block_size_maximum"]) == (1, 4096, 32 << 20)
    assert export["contexts"] == ["base:allocation"]
    listed = json.loads(run(tool("nbdinfo"), "--list", "--json", format_uri("", served.path)))["exports"]
    assert [each["export-name"] for each in listed] == ["vol 1"]
    assert run(tool("nbdinfo"), "--size", format_uri("", served.path)).strip() == str(SIZE_BYTES)
    served.end()


def test_nbdinfo_maps(served: Served) -> None:
    qemu_io(served.uri, "write -P 1 8M 1M")
    extents = json.loads(run(tool("nbdinfo"), "--map", "--json", served.uri))
    assert [(each["offset"], each["length"], each["type"]) for each in extents] == [
        (0, 8 << 20, 3),
        (8 << 20, 1 << 20, 0),
        (9 << 20, SIZE_BYTES - (9 << 20), 3),
    ]


@pytest.mark.parametrize(
    ("block", "depth", "jobs"), [("--bs=4k", 32, 1), ("--bsrange=512-256k", 16, 1), ("--bs=1M", 4, 1), ("--bs=4k", 8, 4)]
)
def test_fio_verifies(served: Served, block: str, depth: int, jobs: int) -> None:
    run(
        *(tool("fio"), "--name=verify", "--ioengine=nbd", f"--uri={served.uri}", "--rw=randwrite", block),
        *(f"--iodepth={depth}", f"--numjobs={jobs}", f"--size={SIZE_BYTES // jobs}", f"--offset_increment={SIZE_BYTES // jobs}"),
        *("--io_size=24M", "--verify=xxhash", "--verify_fatal=1", "--do_verify=1", "--fsync=50"),
    )
    assert served.image.stat().st_blocks * 512 > 16 << 20, "nothing was written"


def test_survives_broken_clients(served: Served) -> None:
    """Garbage, half a request, a vanishing long write, a write above the limit; the server goes on and the image is untouched."""
    good = Client(served.uri)
    for said in (b"", b"garbage" * 1000, b"\0\0\0\3" + os.urandom(500)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(served.path))
            sock.sendall(said)
    for keep in (1, 27, 28, 29, 100_000, (20 << 20) - 1):
        broken = Client(served.uri)
        whole = bytes.fromhex("25609513 0000 0001 0000000000000007 0000000000000000") + (20 << 20).to_bytes(4, "big") + b"x" * (20 << 20)
        broken._sock.sendall(whole[:keep])
        broken._drop()
        assert good.read(0, 4096) == bytes(4096)
    long = Client(served.uri)
    long.agreed = type(long.agreed)(SIZE_BYTES, long.agreed.flags, request_bytes_max=1 << 30)
    with pytest.raises(OSError, match="Invalid argument"):
        long.write(0, bytes(64 << 20))
    assert long.read(0, 4096) == bytes(4096)
    long.close()
    good.close()
    assert not any(served.bytes(0, 32 << 20))


def test_a_wrong_use_is_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbd", str(tmp_path / "missing"), "--socket", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("can't serve")
    assert "Traceback" not in done.stderr
