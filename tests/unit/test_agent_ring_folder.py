"""What is given back of the shared memory after a stop, and that nothing is that anybody needs."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent import declared as declared_file
from agent import ring as layout
from agent.declared import Declared
from agent.ring_folder import give_back
from tests.served_parts import SIZE, Host, marks, owed, touch

GAP_BEGIN, FLUSH = 19, 4


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.start()
    made.until_data()
    declare(made, "active")
    return made


def declare(host: Host, state: str) -> None:
    declared_file.write(declared_file.path_of(host.state), "host", Declared((replace(host.declaration, state=state),)))


def stop(host: Host) -> bool:
    """Stop while a publisher delivers what comes until then, as of the verifier; tell whether the stop was clean."""
    told: list[bool] = []
    stopping = threading.Thread(target=lambda: told.append(host.served.stop(time.monotonic() + 10)))
    stopping.start()
    while stopping.is_alive():
        host.deliver()
        stopping.join(0.001)
    return told[0]


def left(host: Host) -> set[str]:
    return {path.name for path in host.rings.iterdir()} if host.rings.exists() else set()


def test_after_a_clean_stop_nothing_is_left_and_nothing_is_owed(host: Host) -> None:
    for name in ("publisher.bell", "v.digests"):
        (host.rings / name).touch()
    assert stop(host)
    assert give_back(host.rings, host.state, stopped=True) == ["v"]
    assert not host.rings.exists()
    host.rings.mkdir()
    host.lose_memory()  # which makes a new pool
    served = host.start()
    assert owed(served) == ("DATA", 0) and not marks(served, GAP_BEGIN)
    assert served.ring.words[layout.W_EPOCH] == 2


def test_a_source_touched_meanwhile_is_copied_all_the_same(host: Host) -> None:
    assert stop(host)
    give_back(host.rings, host.state, stopped=True)
    host.rings.mkdir()
    host.lose_memory()
    touch(host)
    assert owed(host.start()) == ("RESYNC", SIZE)


def test_the_ring_is_kept_where_the_next_start_is_to_serve_without_kafka(host: Host) -> None:
    assert stop(host)
    before = left(host)
    assert give_back(host.rings, host.state, stopped=False) == []
    assert left(host) == before
    served = host.start()
    assert served.ring.words[layout.W_EPOCH] == 1


def test_what_kafka_does_not_have_is_kept(host: Host) -> None:
    host.served.volume.marks.append(FLUSH)
    host.served.stop(0.0)
    assert give_back(host.rings, host.state, stopped=True) == []
    assert {"pool", "v.ring"} <= left(host)


def test_after_a_kill_everything_is_kept(host: Host) -> None:
    host.kill()
    assert give_back(host.rings, host.state, stopped=True) == []
    assert {"pool", "v.ring"} <= left(host)


def test_a_marker_of_another_stop_proves_nothing(host: Host) -> None:
    assert stop(host)
    marker = (host.state / "agent" / "v.activity").read_bytes()[4096:8192]
    host.start()
    host.served.volume.marks.append(FLUSH)
    assert stop(host)
    with (host.state / "agent" / "v.activity").open("r+b") as file:
        file.seek(4096)
        file.write(marker)
    assert give_back(host.rings, host.state, stopped=True) == []


@pytest.mark.parametrize("word", [layout.W_FENCED, layout.W_LOST, layout.W_GAP_OPEN])
def test_what_the_ring_alone_knows_is_kept(host: Host, word: int) -> None:
    assert stop(host)
    host.served.ring.words[word] = 1
    assert give_back(host.rings, host.state, stopped=True) == []
    assert "v.ring" in left(host)


def test_a_debt_keeps_it(host: Host) -> None:
    assert stop(host)
    host.served.ring.owe(0, 65536)
    assert give_back(host.rings, host.state, stopped=True) == []


@pytest.mark.parametrize("stopped", [True, False])
def test_the_ring_of_a_removed_volume_is_nobodys(host: Host, stopped: bool) -> None:
    host.served.volume.marks.append(FLUSH)
    host.kill()
    declare(host, "removed")
    assert give_back(host.rings, host.state, stopped=stopped) == ["v"]
    assert not host.rings.exists()


def test_a_ring_of_which_nothing_is_known_is_kept(host: Host) -> None:
    assert stop(host)
    (host.state / "agent" / "v.activity").unlink()
    declared_file.path_of(host.state).unlink()
    assert give_back(host.rings, host.state, stopped=True) == []
    (host.rings / "v.ring").write_bytes(b"torn")
    assert give_back(host.rings, host.state, stopped=True) == []


def test_nothing_is_touched_while_the_agent_lives(host: Host) -> None:
    assert stop(host)
    lock = os.open(host.state / "agent" / "publisher.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert give_back(host.rings, host.state, stopped=True) == []
    os.close(lock)
    assert give_back(host.rings, host.state, stopped=True) == ["v"]


def test_no_folder_is_nothing_to_do(tmp_path: Path) -> None:
    assert give_back(tmp_path / "absent", tmp_path, stopped=True) == []
