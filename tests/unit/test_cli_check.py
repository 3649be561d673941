"""`hostoffload check`: what it prints, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from history.catalog import Catalog
from history.store import open_store
from hostoffload.cli import main
from tests.history_maker import damage
from tests.history_story import long_journal, store_all


def store_of(state: Path) -> Path:
    folder = state / "store"
    store_all(long_journal(1, 80), open_store(str(folder)), set(range(0, 200, 9)))
    return folder


def run(state: Path, *arguments: str) -> int:
    return main(["check", "--state", str(state), *arguments])


def test_nothing_wrong_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_of(tmp_path)
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert out.startswith("v1: ") and "nothing is wrong" in out
    assert run(tmp_path, "v1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["good"] is True and told["volumes"][0]["problems"] == []
    assert told["volumes"][0]["levels"] == {"L0": told["volumes"][0]["segments"]}


def test_a_flipped_byte_is_1_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(store_of(tmp_path)))
    name = Catalog(store, "v1").levels()[0][1]
    damage(store, str(name), len(store.get(str(name))) - 40)
    assert run(tmp_path, "--json") == 1
    out, err = capsys.readouterr()
    (problem,) = json.loads(out)["volumes"][0]["problems"]
    assert problem["path"] == str(name) and problem["extents"] and problem["extents_bytes"] > 0
    assert str(name) in err
    assert run(tmp_path) == 1
    assert "1 thing is wrong" in capsys.readouterr().out


def test_what_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 2
    assert "There is no store" in capsys.readouterr().err
    store_of(tmp_path)
    assert run(tmp_path, "v2") == 2
    assert "Volumes there: v1" in capsys.readouterr().err
