"""Where the NBD server listens: the config's address, and sockets that systemd hands over."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from hostoffload.listeners import Listeners, answers, given_fds, parse_listen
from stream.errors import ConfigError, RetryError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", None), ("127.0.0.1:10809", ("127.0.0.1", 10809)), ("[::1]:1", ("::1", 1)), ("host.example:65535", ("host.example", 65535))],
)
def test_an_address_is_parsed(text: str, wanted: tuple[str, int] | None) -> None:
    assert parse_listen(text) == wanted


@pytest.mark.parametrize("text", ["host", ":10809", "host:", "host:0", "host:65536", "host:x", "host:-1", "host:²"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.listen"):
        parse_listen(text)


def test_descriptors_count_only_if_they_were_meant_for_this_process() -> None:
    mine = str(os.getpid())
    assert given_fds({"LISTEN_PID": mine, "LISTEN_FDS": "2"}) == (3, 4)
    assert given_fds({"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "2"}) == ()
    assert given_fds({"LISTEN_FDS": "2"}) == ()
    assert given_fds({"LISTEN_PID": mine, "LISTEN_FDS": "many"}) == ()
    assert given_fds({}) == ()


def test_a_descriptor_that_is_no_socket_is_named(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(ConfigError, match=f"descriptor {file.fileno()}, which is no socket"):
        Listeners(tmp_path / "nbd.sock", given=(file.fileno(),)).sockets()


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first = Listeners(path)
    assert [name for name, _ in first.sockets()] == ["nbd"]
    with pytest.raises(RetryError, match=str(path)):
        Listeners(path).sockets()
    first.close()
    assert not path.exists()


def test_a_taken_port_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RetryError, match=f"127.0.0.1:{port}"):
            Listeners(tmp_path / "nbd.sock", ("127.0.0.1", port)).sockets()
    listeners = Listeners(tmp_path / "nbd.sock", ("127.0.0.1", port))  # the unix socket of the failed try is in nobody's way
    assert [name for name, _ in listeners.sockets()] == ["nbd", "nbd-tcp"]
    listeners.close()


def test_silence_and_other_protocols_are_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    assert not answers(path, 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert not answers(path, 0.05)
