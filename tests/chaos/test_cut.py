"""Cuts on two real sockets: a reset breaks the connection, a drop loses nothing in the end and lets nobody in until it heals."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chaos import cut

ECHO = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
def serve(one):
    while data := one.recv(100):
        one.sendall(data)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def echo() -> Iterator[tuple[int, int]]:
    with subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield child.pid, int(child.stdout.readline())
        child.kill()


def test_reset_breaks_the_connection_and_the_listener_goes_on(echo: tuple[int, int]) -> None:
    pid, port = echo
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"a")
        assert client.recv(10) == b"a"
        assert cut.reset(pid, port) == 1
        assert client.recv(10) == b""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"b")
        assert client.recv(10) == b"b"


def test_drop_is_silent_until_it_heals(echo: tuple[int, int]) -> None:
    pid, port = echo
    with socket.create_connection(("127.0.0.1", port), 5) as client, socket.socket() as other:
        client.sendall(b"a")
        assert client.recv(10) == b"a"
        dropped = cut.Drop(pid, port)
        assert len(dropped) == 2
        client.settimeout(0.3)
        other.settimeout(0.3)
        client.sendall(b"b")
        with pytest.raises(TimeoutError):
            client.recv(10)
        with pytest.raises(TimeoutError):
            other.connect(("127.0.0.1", port))
        dropped.heal()
        client.settimeout(10)
        assert client.recv(10) == b"b"
