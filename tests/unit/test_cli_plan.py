"""`hostoffload plan`: what it prints, what it exits with, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload.cli import main
from nbd.client import Client
from tests.tools import lacking, need
from tests.unit.test_capacity_trace import BLKPARSE, IOSTAT

WAIT_S = 90


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("HOSTOFFLOAD_") or name == "KAFKA_BOOTSTRAP":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOSTOFFLOAD_STATE", str(tmp_path / "state"))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace"
    path.write_text(BLKPARSE, encoding="ascii")
    return str(path)


def facts(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict:
    assert main(["plan", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def test_a_trace_is_planned_for(trace: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = facts(["--trace", trace, "--outage", "2s", "--ratio", "2", "--size", "1G"], capsys)
    assert told["trace"] == {
        "form": "blkparse text",
        "lines": 15,
        "bad_lines": 0,
        "bad": [],
        "notes": ["action Q is counted, 3 writes"],
    }
    assert told["workload"]["payload_bytes"] == 16_384 and told["workload"]["ratio"] == 2.0
    assert told["workload"]["size_bytes"] == 1 << 30
    assert told["buffer"]["outage_s"] == 2 and told["buffer"]["needed_bytes"] == 96 << 20
    assert told["suffices"] and all(one["suffices"] is not False for one in told["config"])
    assert told["bandwidth"]["peak_10s"] is None
    assert not (tmp_path / "state").exists(), "a plan changes nothing"


def test_the_text_has_a_line_for_each_and_says_what_is_not_known(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--trace", trace]) == 0
    out = capsys.readouterr().out
    for part in ("bandwidth    mean 5.46 kB/s", "journal topic", "L0 every write for 1 d", "buffer       256 MiB", "not known"):
        assert part in out, part
    assert "busiest 10 s unknown" in out
    assert "agent.buffer_bytes_max: " in out and "no outage is asked for" in out


def test_what_is_known_not_to_suffice_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace"
    path.write_text(IOSTAT.replace("300.00", "900000.00").replace("100.00", "900000.00"), encoding="ascii")
    told = facts(["--trace", str(path), "--outage", "5s"], capsys, code=1)
    (one,) = [one for one in told["config"] if one["suffices"] is False]
    assert one["key"] == "agent.buffer_bytes_max" and one["wanted"] == told["buffer"]["needed_bytes"] > 256 << 20


def test_bad_lines_go_to_stderr(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(trace).write_text("nonsense\n" + BLKPARSE, encoding="ascii")
    assert main(["plan", "--trace", trace]) == 0
    told = capsys.readouterr().err
    assert "1 of 16 lines can't be read" in told and "line 1: it is no event" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "What is to be planned for?"),
        (["/absent"], "/absent can't be used"),
        (["--trace", "/absent"], "/absent can't be read"),
        (["/dev/null"], "/dev/null can't be opened"),
        (["x", "--trace", "y"], "What is to be planned for?"),
        (["x", "--outage", "soon"], "'soon' is no time"),
        (["x", "--for", "0s"], "'0s' is no time"),
        (["x", "--for", "32d"], "'32d' is longer than 31 days"),
        (["x", "--size", "big"], "'big' is no size"),
        (["x", "--ratio", "0.5"], "'0.5' is no ratio"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_hint(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and [line.split(":")[0] for line in lines] == ["error", "hint"], err
    assert told in lines[0]


def test_signals_are_as_before_after_a_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    source = tmp_path / "source"
    source.write_bytes(bytes(4096))
    told = facts([str(source), "--for", "1s"], capsys)
    assert told["workload"]["writes"] == 0 and told["workload"]["ratio"] is None and told["workload"]["size_bytes"] == 4096
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def started(path: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hostoffload", "plan", path, "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_file_is_served_until_interrupted_and_nothing_is_left(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 20)
    with tempfile.TemporaryDirectory(prefix="ho-plan-") as folder:
        path = Path(folder) / "nbd.sock"
        process = started(str(source), "--for", "1h", "--socket", str(path))
        assert process.stderr is not None
        assert "serving" in process.stderr.readline()
        uri = process.stderr.readline().strip()
        with Client(uri) as client:
            client.write(4096, b"x" * 4096)
            client.flush()
        refused = started(str(source), "--for", "1s")
        assert refused.wait(WAIT_S) == 2 and "is held by process" in (refused.stderr.read() if refused.stderr else "")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, err
        assert json.loads(out)["workload"]["writes"] == 1
        assert not path.exists()
    assert source.read_bytes()[4096:8192] == b"x" * 4096


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loop device of 16 MiB, and its file."""
    need("losetup", root=True)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        lacking(f"losetup can't make a loop device: {made.stderr.strip()}")
    yield made.stdout.strip(), image
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.mark.root
def test_a_block_device_is_watched_by_its_counters(loop: tuple[str, Path]) -> None:
    process = started(loop[0], "--for", "1h")
    assert process.stderr is not None and "watching the counters" in process.stderr.readline()
    deadline = 20
    fd = os.open(loop[0], os.O_RDWR | os.O_DSYNC)
    try:
        while deadline and process.poll() is None:
            os.pwrite(fd, os.urandom(1 << 20), 0)
            deadline -= 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    finally:
        os.close(fd)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["workload"]["payload_bytes"] >= 1 << 20 and told["workload"]["size_bytes"] == 16 << 20
    assert told["overwrites"] is None and "/proc/diskstats of loop" in told["workload"]["source"]
