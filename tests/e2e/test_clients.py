"""Real NBD clients write through the agent; source and replica must be byte-equal each time."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mounted import Mounted
from tests.e2e.system import System, make_source, running
from tests.tools import need

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("clients")) as one:
        yield one


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def test_qemu_io_writes_of_every_size(system: System) -> None:
    need("qemu-io")
    source = make_source(system.folder / "qemu.img", 256 << 20)
    uri = system.add("qemu", source)
    commands = []
    offset = 0
    for power in range(9, 26):
        size = 1 << power
        commands += [f"write -P {power} {offset} {size}", f"write -f -P {power + 40} {offset + 512} {min(size, 65536)}"]
        offset = (offset + size + 4096) % (192 << 20)
    commands += ["write -z 1M 3M", "write -z -u 8M 3M", "discard 20M 5M", "write -P 9 21M 12345", "flush", "read -P 9 21M 12345"]
    _run("qemu-io", "-f", "raw", *[part for command in commands for part in ("-c", command)], uri)
    status = system.check_equal("qemu", source)
    assert status["captured_bytes"] >= sum(1 << power for power in range(9, 26))


def test_nbdcopy_in_and_out(system: System) -> None:
    need("nbdcopy")
    source = make_source(system.folder / "copy.img", 128 << 20)
    data = make_source(system.folder / "data.raw", 128 << 20, used_bytes=40 << 20)
    uri = system.add("copy", source)
    _run("nbdcopy", str(data), uri)
    system.check_equal("copy", source)
    back = system.folder / "back.raw"
    _run("nbdcopy", uri, str(back))
    assert back.read_bytes() == data.read_bytes()


def test_fio_verifies_its_random_writes(system: System) -> None:
    need("fio")
    source = make_source(system.folder / "fio.img", 128 << 20)
    uri = system.add("fio", source)
    _run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=0",
        "--blockalign=512", "--iodepth=16", "--size=128M", "--verify=xxhash", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0",
        "--randseed=7",
    )  # fmt: skip
    system.check_equal("fio", source)


def test_mounted_ext4_with_untar_delete_and_fstrim(system: System) -> None:
    need("nbdfuse", "losetup", "fstrim", "mkfs.ext4", "e2fsck", root=True)
    source = make_source(system.folder / "ext4.img", 256 << 20)
    _run("mkfs.ext4", "-q", "-F", str(source))
    archive = system.folder / "files.tar"
    tree = Path(os.__file__).parent
    _run("tar", "-cf", str(archive), "-C", str(tree), "email", "json", "unittest", "asyncio", "encodings")
    uri = system.add("ext4", source)
    with Mounted(system.folder, uri) as mount:
        for round_number in range(3):
            place = mount / f"round-{round_number}"
            place.mkdir()
            _run("tar", "-xf", str(archive), "-C", str(place))
            if round_number:
                shutil.rmtree(mount / f"round-{round_number - 1}")
            assert os.path.ismount(mount)
            _run("fstrim", str(mount))
    system.check_equal("ext4", source)
    _run("e2fsck", "-fn", str(system.replica(source)))
