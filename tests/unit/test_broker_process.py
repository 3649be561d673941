"""Finding, ending and asking a broker, with processes and servers that a test makes: no Kafka is needed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostoffload.broker import process
from hostoffload.broker.probe import ping

# A process that looks like the broker: python under the name java. It says when its signal handler stands.
OBEDIENT = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"


def impostor(folder: Path, program: str, *arguments: str) -> subprocess.Popen[bytes]:
    java = folder / "java"
    if not java.exists():
        java.symlink_to(sys.executable)
    child = subprocess.Popen([str(java), "-c", program, *arguments], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


@pytest.fixture
def properties(tmp_path: Path) -> Path:
    path = tmp_path / "server.properties"
    path.write_text("")
    return path


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for child in made:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_only_the_process_of_this_folder_is_found(tmp_path: Path, properties: Path, children: list) -> None:
    other = tmp_path / "other.properties"
    other.write_text("")
    children.append(impostor(tmp_path, OBEDIENT, process.MAIN_CLASS, str(other)))
    children.append(impostor(tmp_path, OBEDIENT, "kafka.tools.StorageTool", str(properties)))
    assert process.find(properties) is None
    children.append(impostor(tmp_path, OBEDIENT, process.MAIN_CLASS, str(properties)))
    assert process.find(properties) == children[-1].pid


def test_a_folder_that_was_replaced_is_not_the_same(tmp_path: Path, children: list) -> None:
    """The path alone is no identity: a process of another root may show the same arguments."""
    mine = tmp_path / "server.properties"
    children.append(impostor(tmp_path, OBEDIENT, process.MAIN_CLASS, str(mine)))
    assert process.find(mine) is None
    mine.write_text("")
    assert process.find(mine) == children[0].pid


def test_end_is_gentle_first(tmp_path: Path, properties: Path, children: list) -> None:
    children.append(impostor(tmp_path, OBEDIENT, process.MAIN_CLASS, str(properties)))
    assert process.end(properties, 20)
    assert children[0].wait() == 0
    assert process.find(properties) is None


def test_end_kills_who_does_not_listen(tmp_path: Path, properties: Path, children: list) -> None:
    children.append(impostor(tmp_path, STUBBORN, process.MAIN_CLASS, str(properties)))
    assert not process.end(properties, 0.1)
    assert children[0].wait() == -signal.SIGKILL


def test_end_of_nothing_is_done_already(properties: Path) -> None:
    assert process.end(properties, 0)


def test_spawn_leaves_the_callers_files_behind(tmp_path: Path) -> None:
    """A session of its own, and no descriptor of the caller, not even one made to be inherited."""
    held = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(held, True)
    try:
        script = 'ls -l /proc/self/fd; cut -d" " -f6 /proc/self/stat; echo $$; pwd'
        child = process.spawn(["sh", "-c", script], dict(os.environ), out=tmp_path / "out", folder=tmp_path)
        assert child.wait(20) == 0
    finally:
        os.close(held)
    *files, session, pid, folder = (tmp_path / "out").read_text().splitlines()
    assert session == pid == str(child.pid)
    assert folder == str(tmp_path)
    targets = {line.partition(" -> ")[2] for line in files if " -> " in line}
    assert {target for target in targets if not target.startswith("/proc/")} == {"/dev/null", str(tmp_path / "out")}


def test_tail_gives_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert process.tail(tmp_path / "log", 2) == "line 9998\nline 9999"
    assert process.tail(tmp_path / "none") == ""


def serve(answer: bytes) -> tuple[socket.socket, str]:
    """Listen, and answer one request by these bytes, with its number where they say ????."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        try:
            connection = server.accept()[0]
        except OSError:  # closed before anybody asked
            return
        with connection:
            correlation = struct.unpack(">ihhih", connection.recv(64))[3]
            connection.sendall(answer.replace(b"????", struct.pack(">i", correlation)))

    threading.Thread(target=run, daemon=True).start()
    return server, f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "alive"),
    [(struct.pack(">i", 10) + b"????", True), (struct.pack(">i", 10) + b"\0\0\0\0", False), (b"HTTP/1.1 400", False), (b"", False)],
)
def test_ping_believes_only_an_answer_to_its_own_request(answer: bytes, alive: bool) -> None:
    server, address = serve(answer)
    with server:
        assert ping(address, 5) is alive


def test_ping_gives_up_on_a_server_that_accepts_and_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not ping(f"127.0.0.1:{server.getsockname()[1]}", 0.05)


def test_ping_takes_the_first_of_several_servers_that_answers() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    server, address = serve(struct.pack(">i", 10) + b"????")
    with server, silent:
        assert ping(f"127.0.0.1:{silent.getsockname()[1]}, {address}", 5)


@pytest.mark.parametrize("address", ["", "nothing", "host:", "127.0.0.1:99999", "127.0.0.1:1"])
def test_ping_of_nonsense_is_no(address: str) -> None:
    assert not ping(address, 0.5)
