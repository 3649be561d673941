"""The keeper with real devices: a volume is shown as device and filesystem, checks run, and nothing is left whatever ends first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.exports import ExportTable
from nbd.filedevice import FileDevice
from nbd.listen import listen_unix
from nbd.server import Server
from nbd.uri import format_uri
from recovery.checks import Check, Need
from recovery.keeper_line import KeeperLine
from recovery.stage import StageError
from tests.tools import need

SIZE_BYTES = 64 << 20
TIMEOUT_S = 120.0
SLEEP_S = 10**8 + os.getpid()  # no other process sleeps that long


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve an ext4 filesystem with a file in it."""
    need("mkfs.ext4", "nbdfuse", "losetup", "mount", root=True)
    folder = tmp_path_factory.mktemp("served")
    (folder / "files").mkdir()
    (folder / "files" / "hello").write_text("world")
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(folder / "files"), str(image)], check=True)
    device = FileDevice(image)
    listener = listen_unix(folder / "nbd.sock")
    server = Server(ExportTable({"v": device}), [listener])
    server.start()
    yield format_uri("v", folder / "nbd.sock")
    server.stop()
    listener.close()
    device.close()


@pytest.fixture
def line(uri: str) -> Iterator[KeeperLine]:
    with KeeperLine() as one:
        one.show(uri)
        yield one
    check_nothing_left(one)


def check_nothing_left(line: KeeperLine) -> None:
    assert not line.folder.exists()
    assert str(line.folder) not in Path("/proc/self/mountinfo").read_text()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            assert str(line.folder) not in backing.read_text()
    assert str(line.folder) not in "".join(command_lines())


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def run(line: KeeperLine, text: str, timeout_s: float = TIMEOUT_S):
    check = Check.parse(text)
    for need_ in sorted(check.needs):
        line.place(need_)
    return line.check(check.command(line.places), timeout_s, {"DRILL_POSITION": "7"})


def test_built_in_checks_and_own_ones(line: KeeperLine) -> None:
    assert run(line, "fsck").exit_code == 0
    assert run(line, "mount").exit_code == 0
    done = run(line, "test $(cat {mount}/hello) = world && echo fine at $DRILL_POSITION; touch {mount}/written")
    assert (done.exit_code, done.output, done.left) == (0, "fine at 7\n", 0)
    assert run(line, "exit 9").exit_code == 9
    line.unmount()
    assert run(line, "fsck").exit_code == 0, "it may be checked again once it is unmounted"
    assert run(line, "nbdinfo --size {uri}").output.strip() == str(SIZE_BYTES)


def test_what_a_check_leaves_running_is_ended(line: KeeperLine) -> None:
    done = run(line, "cd {mount}; setsid sh -c 'sleep 1000 & exec sleep 1000' & sleep 0.2; echo started")
    assert done.exit_code == 0 and done.left >= 2
    line.unmount()


def test_a_check_that_takes_too_long_is_ended(line: KeeperLine) -> None:
    began_s = time.monotonic()
    done = run(line, "trap '' TERM; cd {mount}; echo begun; sleep 1000; sleep 1000", 0.5)
    assert done.timed_out and done.exit_code is None and "begun" in done.output
    assert time.monotonic() - began_s < TIMEOUT_S


def test_a_check_that_is_killed_is_bad_and_nothing_stays(line: KeeperLine) -> None:
    assert run(line, "cd {mount}; kill -9 $$").exit_code == -signal.SIGKILL


def test_the_end_of_what_a_check_says_is_kept(line: KeeperLine) -> None:
    done = run(line, "yes hello | head -c 10000000; echo the end")
    assert done.output.endswith("the end\n") and len(done.output) <= 16 << 10


def test_what_can_not_be_mounted_says_why(uri: str, tmp_path: Path) -> None:
    with KeeperLine() as line:
        line.show(uri.replace("/v?", "/unknown?"))
        with pytest.raises(StageError, match="nbdfuse"):
            line.place(Need.MOUNT)
    check_nothing_left(line)


def test_another_volume_takes_the_place_of_the_first(line: KeeperLine, uri: str) -> None:
    for _ in range(3):
        assert run(line, "ls {mount}/hello {device}").exit_code == 0
        line.show(uri)
    assert line.clear() == []


@pytest.mark.parametrize("victim", ["keeper", "drill"])
def test_nothing_is_left_when_one_side_is_killed_while_a_check_runs(uri: str, victim: str) -> None:
    line = KeeperLine()
    line.show(uri)
    line.place(Need.MOUNT)
    script = f"cd {line.places[Need.MOUNT]}; sleep {SLEEP_S} & sleep {SLEEP_S}"
    line._process.stdin.write(b'{"do": "check", "line": "%s", "timeout_s": 1000, "environment": {}}\n' % script.encode())
    line._process.stdin.flush()
    while len(sleepers()) < 2:  # both: what is begun after they are counted would outlive its keeper
        time.sleep(0.01)
    if victim == "keeper":
        os.kill(line._process.pid, signal.SIGKILL)
        for pid in sleepers():
            os.kill(pid, signal.SIGKILL)  # they lost their keeper; the mount goes all the same
    line.close()
    check_nothing_left(line)
    assert sleepers() == []


def sleepers() -> list[int]:
    """The processes that sleep for the time that is ours alone, without the shell that began them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == b"sleep\0%d\0" % SLEEP_S:
                found.append(int(path.parent.name))
    return found
