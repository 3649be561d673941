"""The command line itself: exit codes, where things are printed, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hostoffload.cli import _named, main
from stream.config import SECTIONS


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("HOSTOFFLOAD_") or name == "KAFKA_BOOTSTRAP":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOSTOFFLOAD_STATE", str(tmp_path / "state"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command that must be refused; return its first line on stderr. Nothing may be on stdout, and no traceback anywhere."""
    try:
        assert main(arguments) == code
    except SystemExit as ended:
        assert ended.code == code
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    lines = told.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], told.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
        (["volume"], "required: ACTION"),
        (["volume", "add", "db"], "required: --source, --replica"),
        (["wait", "db"], "required: --in-sync"),
        (["status", "--nonsense"], "Unrecognized arguments: --nonsense"),
        (["status", "db"], "There is no volume 'db'"),
        (["wait", "db", "--in-sync"], "There is no volume 'db'"),
        (["volume", "add", "Not A Name", "--source", "a", "--replica", "b"], "'Not A Name' is not a volume name"),
        (["volume", "add", "db", "--source", "/absent", "--replica", "/b"], "/absent can't be used"),
        (["volume", "remove", "db", "--purge"], "deletes all topics and history"),
        (["volume", "list"], "No broker is known here"),
        (["config", "check", "--config", "/absent/config.toml"], "/absent/config.toml can't be read"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_hint(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(arguments, capsys)


def test_a_wrong_key_or_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[agent]\nbufer_bytes_max = 1\n")
    assert "unknown key agent.bufer_bytes_max" in refused(["--config", str(path), "config", "check"], capsys)
    path.write_text('[agent]\nlisten = "everywhere"\n')
    assert "agent.listen is 'everywhere'" in refused(["--config", str(path), "config", "check"], capsys)
    monkeypatch.setenv("HOSTOFFLOAD_CX_CODEC", "rar")
    assert "cx.codec is 'rar'" in refused(["config", "check"], capsys)


def test_config_check_prints_what_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.toml").write_text('[cx]\ncodec = "zstd"\n[log]\nlevel = "debug"\n')
    monkeypatch.setenv("HOSTOFFLOAD_LOG_LEVEL", "error")
    assert main(["config", "check", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["cx"]["codec"], shown["log"]["level"], shown["agent"]["connections_max"]) == ("zstd", "error", 64)
    assert main(["config", "check"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == shown  # what is printed may be used as the file
    assert set(shown) == set(SECTIONS)


def test_options_that_stand_everywhere_may_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[cx]\ncodec = "lz4"\n')
    for arguments in (
        ["--json", "--config", str(path), "config", "check"],
        ["config", "--json", "check", "--config", str(path)],
        ["config", "check", "--config", str(path), "--json"],
    ):
        assert main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["cx"]["codec"] == "lz4"


def test_an_error_is_json_where_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "db", "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert json.loads(told.err)["error"].startswith("There is no volume 'db'")


def test_status_answers_on_a_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "volumes": [],
        "processes": [],
        "broker": {"kind": None, "bootstrap": None, "pid": None},
    }
    assert not (tmp_path / "state").exists()
    assert main(["down"]) == 0
    assert not (tmp_path / "state").exists()


def test_damaged_reports_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "state" / "status"
    folder.mkdir(parents=True)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"kind": "capture"}'), ("supervisor-local", '{"pid": "x"}'), ("d", '{"kind": 5}')):
        (folder / f"{name}.json").write_text(text)
    (tmp_path / "state" / "agent").mkdir()
    (tmp_path / "state" / "agent" / "volumes.json").write_text('{"volumes": [7]}')
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"] == []


def test_version() -> None:
    told = subprocess.run([sys.executable, "-m", "hostoffload", "--version"], capture_output=True, text=True, check=True)
    name, number = told.stdout.split()
    assert name == "hostoffload" and number[0].isdigit()


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m hostoffload config check --json | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_help_loads_neither_kafka_nor_faust() -> None:
    """Status and help are quick because the heavy libraries are loaded by the commands that need them."""
    code = (
        "import sys\nfrom hostoffload.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nmain(['status', '--json'])\n"
        "print([name for name in ('confluent_kafka', 'faust', 'fastavro', 'rich', 'obstore') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("status --watch", "status"),
        ("--state up --json export list", "export"),
        ("--config=a --state=b down", "down"),
        ("--help", None),
        ("", None),
        ("--stat up status", None),
        ("nonesuch", None),
        ("--state", None),
    ],
)
def test_only_the_command_that_is_given_is_looked_at(line: str, command: str | None) -> None:
    """Where it is not plain to see, all are: the answer is the same."""
    assert _named(line.split()) == command
