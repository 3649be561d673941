"""The drill as a command, on a real filesystem in a store and without Kafka: reports, bisection, and nothing left whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from history.store import LocalStore
from stream.position import Position
from stream.record import Kind
from tests.history_maker import stored
from tests.journal_maker import JournalMaker, flush, mark, write
from tests.tools import need

SIZE_BYTES = 64 << 20
PIECE_BYTES = 128 << 10
COMMAND_S_MAX = 120
SLEEP_S = 10**8 + os.getpid() + 1  # no other process sleeps that long


class History:
    """A state folder whose store holds an ext4 filesystem, then good changes of a file, then bad ones behind position `good`."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        image = folder / "image"
        (folder / "files").mkdir()
        (folder / "files" / "state").write_bytes(b"good" * 1024)
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(folder / "files"), str(image)], check=True)
        data = image.read_bytes()
        at = data.index(b"good" * 1024)
        maker = JournalMaker()
        maker.batch(mark(Kind.EPOCH_START, first="true", size_bytes=str(SIZE_BYTES)))
        for start in range(0, SIZE_BYTES, PIECE_BYTES):
            if data[start : start + PIECE_BYTES].strip(b"\0"):
                maker.batch(write(start, data[start : start + PIECE_BYTES]))
        maker.batch(mark(Kind.SYNC_END, closes=str(Position(1, 1))))
        self.first = maker.last
        for number in range(20):
            maker.batch(write(at + 512, b"good %03d" % number), flush())
        maker.batch(mark(Kind.BOOKMARK, label="before"))
        self.good = maker.last
        for number in range(7):
            maker.batch(write(at + 1024 + number, b"bad"), flush())
        self.last = maker.last
        count = len(maker.messages)
        stored(maker.messages, [count // 3, count - 20, count], store=LocalStore(self.state / "store"))

    def run(self, *arguments: object, code: int = 0) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "hostoffload", "--state", str(self.state), "drill", "v1", *map(str, arguments)]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    need("mkfs.ext4", "e2fsck", "nbdfuse", "losetup", "mount", root=True)
    return History(tmp_path_factory.mktemp("drill"))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert traces() == []


def traces() -> list[str]:
    """Return mounts, loop devices, processes and folders of drills."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "hostoffload-drill" in line]
    found += [str(path) for path in Path("/tmp").glob("hostoffload-drill-*")]
    for path in [*Path("/sys/block").glob("loop*/loop/backing_file"), *Path("/proc").glob("[0-9]*/cmdline")]:
        with contextlib.suppress(OSError):
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [text] if "hostoffload-drill" in text or f"sleep {SLEEP_S}" in text else []
    return found


def test_a_point_that_is_good_and_its_reports(history: History, tmp_path: Path) -> None:
    told = json.loads(
        history.run(
            *("--at", "before", "--check", "fsck", "--check", "mount", "--check", "grep -q '^good' {mount}/state && echo fine"),
            *("--json", "--junit", tmp_path / "r.xml", "--html", tmp_path / "r.html"),
        )
    )
    assert told["passed"] and told["points"][0]["position"] == str(history.good)
    assert [check["verdict"] for check in told["points"][0]["checks"]] == ["good"] * 3
    assert 0 < told["rto_s"] < 30 and told["points"][0]["mounted_s"] > 0
    assert ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite").get("tests") == "3"
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_a_bad_point_is_told_by_the_exit_code(history: History) -> None:
    text = history.run("--check", "mount", "--check", "! grep -q bad {mount}/state", code=1)
    assert "NOT GOOD" in text.splitlines()[-1]


def test_bisection_prints_the_last_good_point(history: History) -> None:
    told = json.loads(history.run("--bisect", "--check", "! grep -q bad {device}", "--json"))
    assert told["last_good"]["position"] == str(history.good) and told["exact"]
    assert len(told["points"]) < 15
    nothing = history.run("--bisect", "--from", history.last, "--check", "! grep -q bad {device}", code=1)
    assert "no good point" in nothing


def test_every_flush_of_a_range(history: History) -> None:
    told = json.loads(history.run("--every-flush", "--from", history.first, "--to", "before", "--check", "fsck", "--json"))
    assert told["good"] == len(told["points"]) == 20 and {point["why"] for point in told["points"]} == {"flush"}


def test_what_checks_write_is_gone_with_the_point(history: History) -> None:
    for _ in range(2):
        history.run("--check", "test ! -e {mount}/new && touch {mount}/new && sync {mount}/new")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_an_interrupted_drill(history: History, number: int) -> None:
    command = history.command("--check", f"cd {{mount}}; setsid sleep {SLEEP_S} & sleep {SLEEP_S}")
    drill = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ends_s = time.monotonic() + COMMAND_S_MAX
    while not any(one.startswith(f"sleep {SLEEP_S}") for one in traces()):
        assert time.monotonic() < ends_s and drill.poll() is None
        time.sleep(0.02)
    drill.send_signal(number)
    assert "Traceback" not in drill.communicate(timeout=COMMAND_S_MAX)[1]
    assert drill.returncode == (128 + number if number == signal.SIGINT else -number)
    while traces():  # the keeper outlives a drill that was killed, by a moment
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_wrong_use_is_a_sentence(history: History) -> None:
    for arguments in (("--check", ""), ("--from", "latest", "--check", "x"), ("--at", "latest", "--bisect", "--check", "x"), ()):
        history.run(*arguments, code=2)
    history.run("--at", "never", "--check", "x", code=3)
