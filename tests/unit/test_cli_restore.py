"""`restore` as a command, on a store without Kafka: what it says, what it refuses, and what damage does to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from history.store import LocalStore
from hostoffload.cli import main
from stream.position import Position
from stream.record import Kind
from tests.history_maker import damage, stored
from tests.journal_maker import JournalMaker, image, mark, write, zero

SIZE = 1 << 20


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JournalMaker:
    monkeypatch.delenv("KAFKA_BOOTSTRAP", raising=False)
    made = JournalMaker()
    made.batch(mark(Kind.EPOCH_START, first="true", size_bytes=str(SIZE)), write(0, b"a" * 70_000))
    made.batch(mark(Kind.SYNC_END, closes=str(Position(1, 1))))
    for number in range(30):
        made.batch(write(number * 5000, bytes([number]) * 9000), zero(number * 7000, 3000), mark(Kind.BOOKMARK, label=f"b{number}"))
    stored(made.messages, [10, 20, len(made.messages)], store=LocalStore(tmp_path / "state" / "store"))
    return made


def restore(tmp_path: Path, *arguments: object) -> int:
    return main(["--state", str(tmp_path / "state"), "restore", "v1", *map(str, arguments)])


def wanted(maker: JournalMaker, position: Position) -> bytes:
    return bytes(image([one for one in maker.records if one[0] <= position], SIZE))


def test_a_bookmark_is_restored_and_told(tmp_path: Path, maker: JournalMaker, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(tmp_path, "--at", "b7", "--to", tmp_path / "out", "--json") == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (tmp_path / "out").read_bytes() == wanted(maker, Position.parse(told["position"]))
    assert told["size_bytes"] == SIZE and told["path"] == str(tmp_path / "out")
    assert "newest writes may be missing" in said.err
    assert restore(tmp_path, "--at", "latest", "--to", tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert restore(tmp_path, "--at", "latest", "--to", tmp_path / "out", "--force") == 0
    assert (tmp_path / "out").read_bytes() == wanted(maker, maker.last)
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


def test_what_is_no_point_is_refused_with_the_nearest(tmp_path: Path, maker: JournalMaker, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(tmp_path, "--at", "nobody", "--to", tmp_path / "out") == 3
    assert restore(tmp_path, "--at", Position(1, 10**6), "--to", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "b29" in said and str(maker.last) in said
    assert not (tmp_path / "out").exists()


def test_damage_refuses_and_names_good_points(tmp_path: Path, maker: JournalMaker, capsys: pytest.CaptureFixture[str]) -> None:
    """A restore that needs a damaged file is refused, leaves nothing, and what it names can be restored."""
    store = LocalStore(tmp_path / "state" / "store")
    name = sorted(one.name for one in store.list("v1/"))[1]
    damage(store, name, len(store.get(name)) - 40)
    assert restore(tmp_path, "--at", "latest", "--to", tmp_path / "out", "--json") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    told = json.loads(said)
    assert told["facts"]["path"] == name and not list(tmp_path.glob("out*"))
    before = told["facts"]["before"].split()[0]
    assert restore(tmp_path, "--at", before, "--to", tmp_path / "out") == 0
    assert (tmp_path / "out").read_bytes() == wanted(maker, Position.parse(before))
