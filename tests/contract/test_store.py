"""What every store promises, tried on each of them; and what only a local folder can get wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from history import store as store_module
from history.seal import KEY_BYTES, KeyRing
from history.store import DEBRIS_AGE_S, PARTS_MAX, LocalStore, Store, StoredObject, open_store
from history.vault import Vault
from stream.errors import ConfigError, IntegrityError, RetryError
from tests.tools import need

NAME = "v1/L0/a.avro"


@pytest.fixture(params=["folder", "file-url", "memory", "obstore-file", "sealed-folder", "sealed-memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "deep" / "store"))
    if request.param == "file-url":
        return open_store((tmp_path / "a store").as_uri())
    if request.param.startswith("sealed-"):
        below = open_store(str(tmp_path / "store") if request.param == "sealed-folder" else "memory:///")
        return Vault(below, KeyRing([os.urandom(KEY_BYTES)]), required=True)
    if request.param == "memory":
        return open_store("memory:///")
    from obstore.store import LocalStore as Foreign

    return store_module.ObjectStore(Foreign(str(tmp_path)), "obstore-file")


def test_an_object_comes_back_as_it_was_put(store: Store) -> None:
    assert store.put(NAME, [b"one", b"", b"two"])
    assert store.get(NAME) == b"onetwo"


def test_many_and_large_parts(store: Store) -> None:
    parts = [bytes([number % 251]) * (number % 7) for number in range(3 * PARTS_MAX)] + [bytes(9 << 20)]
    assert store.put(NAME, parts)
    assert store.get(NAME) == b"".join(parts)


def test_an_object_is_never_replaced(store: Store) -> None:
    assert store.put(NAME, [b"first"])
    assert not store.put(NAME, [b"second"])
    assert store.get(NAME) == b"first"


def test_ranges_end_where_the_object_ends(store: Store) -> None:
    store.put(NAME, [b"0123456789"])
    assert store.get_range(NAME, 0, 4) == b"0123"
    assert store.get_range(NAME, 3, 7) == b"3456"
    assert store.get_range(NAME, 8, 99) == b"89"
    assert store.get_range(NAME, 10, 20) == b""
    assert store.get_range(NAME, 50, 60) == b""
    assert store.get_range(NAME, 5, 5) == b""


def test_a_listing_is_sorted_and_below_its_prefix(store: Store) -> None:
    names = [f"v1/L0/{number:03d}.avro" for number in range(50)]
    for name in reversed([*names, "v1/L1/x.avro", "v10/L0/y.avro"]):
        store.put(name, [b"12345"])
    assert store.list("v1/L0/") == [StoredObject(name, 5) for name in names]
    assert len(store.list()) == 52
    assert store.list("v2/L0/") == []


def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: Store) -> None:
    store.put(NAME, [b"x"])
    store.delete(NAME)
    store.delete(NAME)
    assert store.list("v1/L0/") == []


@pytest.mark.parametrize("read", [lambda store: store.get(NAME), lambda store: store.get_range(NAME, 0, 9)])
def test_what_is_not_there_can_not_be_read(store: Store, read) -> None:
    with pytest.raises(IntegrityError) as caught:
        read(store)
    assert caught.value.facts["name"] == NAME


def test_of_many_writers_of_one_name_one_wins(store: Store) -> None:
    made: list[bool] = []
    begin = threading.Barrier(8)

    def put(number: int) -> None:
        begin.wait()
        made.append(store.put(NAME, [bytes([number]) * 100_000]))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]
    data = store.get(NAME)
    assert data == data[:1] * 100_000
    assert [found.name for found in store.list()] == [NAME]


@pytest.mark.parametrize("url", ["", "nonsense://x", "file://host/store", "s3:///", "http//x://y"])
def test_a_wrong_address_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.hint


def test_a_folder_without_rights_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="refuses access"):
        open_store(str(tmp_path / "file" / "store"))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(RetryError, match="full") as caught:
        store.put(NAME, [b"x"])
    assert "space" in caught.value.hint
    monkeypatch.undo()
    assert store.list() == []
    assert list((tmp_path / ".new").iterdir()) == []
    assert store.put(NAME, [b"x"])


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    need("mount", root=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], check=True)
    try:
        store = LocalStore(tmp_path / "store")
        with pytest.raises(RetryError, match="full"):
            store.put(NAME, [bytes(2 << 20)])
        assert store.list() == []
        assert store.put(NAME, [bytes(1 << 19)])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_store_that_was_unmounted_is_not_an_empty_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put(NAME, [b"x"])
    (tmp_path / "store").rename(tmp_path / "away")
    for attempt in (lambda: store.list("v1/L0/"), lambda: store.put("v1/L0/b.avro", [b"x"])):
        with pytest.raises(RetryError, match="gone"):
            attempt()
    assert not (tmp_path / "store").exists()


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    LocalStore(tmp_path)
    young, old = tmp_path / ".new" / "young", tmp_path / ".new" / "old"
    for path in (young, old):
        path.write_bytes(b"half a segment")
    os.utime(old, (0, time.time() - DEBRIS_AGE_S - 10))
    store = LocalStore(tmp_path)
    assert store.list() == []
    assert [path.name for path in (tmp_path / ".new").iterdir()] == ["young"]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)

    def refuse(old: object, new: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(store_module.os, "link", refuse)
    assert store.put(NAME, [b"x"])
    assert not store.put(NAME, [b"y"])
    assert store.get(NAME) == b"x"


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path: Path) -> None:
    """Trace the system calls of one put: the file is synced before it has its name, its folder after."""
    need("strace")
    trace = tmp_path / "trace"
    code = (
        f"from history.store import LocalStore; LocalStore(__import__('pathlib').Path({str(tmp_path / 's')!r})).put('v1/L0/a.avro', [b'x'])"
    )
    calls = "openat,fsync,fdatasync,link,linkat,unlink,unlinkat,mkdir,mkdirat"
    command = ["strace", "-y", "-qq", "-e", f"trace={calls}", "-o", str(trace), sys.executable, "-c", code]
    subprocess.run(command, check=True, cwd=Path(store_module.__file__).parents[1])
    lines = [line for line in trace.read_text().splitlines() if str(tmp_path) in line and "ENOENT" not in line]
    order = [(line.split("(")[0], line) for line in lines]
    linked = next(number for number, (call, _) in enumerate(order) if call in ("link", "linkat"))
    synced = [number for number, (call, line) in enumerate(order) if call == "fsync" and "/.new/" in line]
    folder_synced = [
        number for number, (call, line) in enumerate(order) if call == "fsync" and line.split("<")[1].startswith(f"{tmp_path}/s/v1/L0>")
    ]
    assert synced and synced[0] < linked < folder_synced[-1], "\n".join(lines)
    made = [number for number, (call, _) in enumerate(order) if call in ("mkdir", "mkdirat")]
    assert len(made) == 4, "store, .new, v1, L0"
    for number in made:
        assert any(call == "fsync" for call, _ in order[number + 1 :]), "a folder that was made is not synced"
