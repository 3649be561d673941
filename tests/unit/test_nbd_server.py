"""The server around its connections: names, limits, coming and going, stopping; clients that break off or talk nonsense."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

import nbd.connection as connection_module
import nbd.notices as notices
from nbd import wire
from nbd.client import Client, list_exports
from nbd.errors import ProtocolError, RefusedError
from nbd.exports import ExportTable, resolve
from nbd.filedevice import FileDevice
from nbd.listen import listen_tcp, listen_unix
from nbd.server import REFUSED_MAX, Server
from nbd.uri import format_uri

SIZE_BYTES = 1 << 20


def until(condition: Callable[[], bool]) -> None:
    """Wait for something another thread does; fails after a while."""
    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline, "it did not happen"
        sleep(0.001)


@pytest.fixture(autouse=True)
def forget_notices() -> None:
    """Each test begins with its own share of log lines."""
    notices._seen.clear()


class Site:
    """A server over files in a folder."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.folder = folder
        self.table = ExportTable()
        self.path = folder / "sock"
        self.listeners = [listen_unix(self.path), listen_tcp("127.0.0.1", 0)]
        self.server = Server(self.table, self.listeners, **options)
        self.devices: list[FileDevice] = []
        self.server.start()

    def add(self, name: str, *, read_only: bool = False) -> FileDevice:
        path = self.folder / f"image-{len(self.devices)}"
        path.write_bytes(bytes(SIZE_BYTES))
        device = FileDevice(path, read_only=read_only)
        self.devices.append(device)
        self.table.add(name, device)
        return device

    def uri(self, name: str = "") -> str:
        return format_uri(name, self.path)

    def connect(self) -> socket.socket:
        """Return a raw connection, greeting read, flags sent."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(self.path))
        assert sock.recv(18, socket.MSG_WAITALL) == b"NBDMAGICIHAVEOPT\0\3"
        sock.sendall(b"\0\0\0\3")
        return sock

    def end(self) -> None:
        assert self.server.stop()
        assert self.server.connections == 0
        for listener in self.listeners:
            listener.close()
        for device in self.devices:
            device.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.end()


def test_serves_exports_by_name(site: Site) -> None:
    site.add("a")
    site.add("b", read_only=True)
    assert list_exports(site.uri()) == ["a", "b"]
    with Client(site.uri("a")) as client:
        client.write(0, b"in a")
        assert client.size_bytes == SIZE_BYTES
        assert not client.read_only
    with Client(site.uri("b")) as client:
        assert client.read(0, 4) == bytes(4)
        assert client.read_only
        with pytest.raises(OSError, match="not permitted"):
            client.write(0, b"x")
    with pytest.raises(RefusedError, match="no such export"):
        Client(site.uri("c"))


def test_the_only_export_is_the_default(site: Site) -> None:
    site.add("only")
    with Client(site.uri()) as client:
        assert client.size_bytes == SIZE_BYTES
    site.add("second")
    with pytest.raises(RefusedError, match="no such export"):
        Client(site.uri())
    assert resolve(site.table, "second") == ("second", site.devices[1])


def test_an_empty_server_lists_nothing(site: Site) -> None:
    assert list_exports(site.uri()) == []
    with pytest.raises(RefusedError):
        Client(site.uri())


def test_serves_tcp(site: Site) -> None:
    site.add("vol")
    with Client(format_uri("vol", site.listeners[1].getsockname())) as client:
        client.write(5, b"over tcp", fua=True)
        assert client.read(5, 8) == b"over tcp"


def test_a_client_sees_all_it_may_do(site: Site) -> None:
    site.add("vol")
    with Client(site.uri()) as client, Client(site.uri(), structured=False) as plain:
        data = os.urandom(300_000)
        client.write(100_000, data)
        assert plain.read(100_000, len(data)) == data
        client.zero(100_000, 50_000)
        client.zero(150_000, 50_000, punch=False, fast=True)
        client.trim(200_000, 100_000, fua=True)
        client.cache(0, 4096)
        plain.flush()
        assert client.read(100_000, 100_000) == bytes(100_000)
        assert client.read(300_000, 100_000) == data[200_000:]
        assert sum(length for length, _ in client.block_status(0, SIZE_BYTES)) == SIZE_BYTES
        assert len(client.block_status(0, SIZE_BYTES, one=True)) == 1
        with pytest.raises(OSError, match="block status"):
            plain.block_status(0, 4096)
        for beyond, code in ((lambda: client.read(SIZE_BYTES, 1), errno.EINVAL), (lambda: client.write(SIZE_BYTES, b"x"), errno.ENOSPC)):
            with pytest.raises(OSError, match=r".") as caught:
                beyond()
            assert caught.value.errno == code


def test_a_client_keeps_many_writes_in_flight(site: Site) -> None:
    site.add("vol")
    with Client(site.uri()) as client:
        writes = [(n * 1024, bytes([n % 251]) * 1024) for n in range(1000)]
        assert client.write_all(writes) == 1_024_000
        assert client.read(0, 1_024_000) == b"".join(data for _, data in writes)
        with pytest.raises(OSError, match="space"):
            client.write_all([(0, b"x"), (SIZE_BYTES, b"x"), (1, b"y")])
        assert client.read(0, 1) == b"x"


def test_several_connections_share_a_device(site: Site) -> None:
    site.add("vol")
    clients = [Client(site.uri()) for _ in range(8)]
    assert site.server.connections == 8
    for number, client in enumerate(clients):
        client.write(number * 512, bytes([number + 1]) * 512)
    clients[0].flush()
    assert clients[7].read(0, 4096) == b"".join(bytes([n + 1]) * 512 for n in range(8))
    for client in clients:
        client.close()
        client.close()
    until(lambda: site.server.connections == 0)


def test_refuses_more_connections_than_allowed(tmp_path: Path) -> None:
    site = Site(tmp_path, connections_max=2)
    site.add("vol")
    clients = [Client(site.uri()) for _ in range(2)]
    with pytest.raises(RefusedError, match="too many connections"):
        Client(site.uri())
    until(lambda: site.server.connections == 2)
    crowd = [site.connect() for _ in range(REFUSED_MAX)]
    with pytest.raises((ProtocolError, ConnectionError)):
        Client(site.uri())
    for sock in crowd:
        sock.close()
    until(lambda: site.server.connections == 2)
    clients.pop().close()
    until(lambda: site.server.connections == 1)
    with Client(site.uri()) as client:
        assert client.read(0, 1) == b"\0"
    clients.pop().close()
    site.end()


def test_a_removed_export_loses_its_connections(site: Site) -> None:
    site.add("stays")
    site.add("goes")
    stays, goes = Client(site.uri("stays")), Client(site.uri("goes"))
    assert site.table.remove("goes") is site.devices[1]
    assert site.table.remove("goes") is None
    assert site.server.disconnect("goes")
    with pytest.raises(ConnectionError):
        goes.read(0, 1)
    goes.close()
    assert stays.read(0, 1) == b"\0"
    stays.close()
    with pytest.raises(RefusedError):
        Client(site.uri("goes"))


def test_a_name_is_given_once(site: Site) -> None:
    site.add("vol")
    with pytest.raises(ValueError, match="vol"):
        site.table.add("vol", site.devices[0])


def test_a_device_that_can_t_be_opened_is_refused(site: Site) -> None:
    device = site.add("vol")

    def busy() -> None:
        raise OSError(errno.EBUSY, "resynchronizing")

    device.open_session = busy  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="resynchronizing"):
        Client(site.uri())


def test_new_connections_are_told_the_new_size(site: Site) -> None:
    device = site.add("vol")
    with Client(site.uri()) as old:
        os.truncate(device.file.path, 2 * SIZE_BYTES)
        assert device.refresh() == 2 * SIZE_BYTES
        with Client(site.uri()) as new:
            assert new.size_bytes == 2 * SIZE_BYTES
            new.write(2 * SIZE_BYTES - 1, b"x")
        assert old.read(2 * SIZE_BYTES - 1, 1) == b"x"


def test_stop_ends_idle_clients_and_half_sent_requests(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add("vol")
    idle, half, asking = Client(site.uri()), Client(site.uri()), site.connect()
    half._sock.sendall(wire.pack_request(wire.CMD_WRITE, 1, 0, 1000) + b"x" * 500)
    site.end()
    with pytest.raises(ConnectionError):
        idle.read(0, 1)
    assert asking.recv(1) == b""
    assert not any(Path(site.devices[0].file.path).read_bytes())
    for each in (idle, half, asking):
        each.close()


def test_stop_does_not_wait_for_a_device_that_hangs(site: Site) -> None:
    device = site.add("vol")
    gate, entered, real = threading.Event(), threading.Event(), device.open_session

    def open_session() -> object:
        session = real()
        session.read_cached = lambda *_: False
        session.read = lambda *_: (entered.set(), gate.wait(20))
        return session

    device.open_session = open_session  # type: ignore[method-assign]
    client = Client(site.uri())
    client._send(wire.CMD_READ, 0, 1)
    assert entered.wait(20)
    assert not site.server.disconnect("vol", 0.05)
    gate.set()
    until(lambda: site.server.connections == 0)
    client._drop()


def test_stop_does_not_wait_for_a_client_that_reads_nothing(site: Site) -> None:
    site.add("vol")
    client = Client(site.uri())
    requests = (wire.pack_request(wire.CMD_READ, cookie, 0, SIZE_BYTES) for cookie in range(100))
    client._sock.sendall(b"".join(requests))  # at once: each send costs the socket's buffer far more than its bytes
    assert site.server.disconnect("vol", 1.0)
    client._drop()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"x",
        bytes(1000),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 4,
        b"\0\0\0\3" + b"junk" * 10,
        b"\0\0\0\3IHAVEOPT\0\0\0\7\xff\xff\xff\xff",
        b"\0\0\0\0IHAVEOPT" + struct.pack(">II", wire.OPT_LIST, 0),
        b"\0\0\0\3IHAVEOPT" + struct.pack(">II", wire.OPT_EXPORT_NAME, 3) + b"???",
    ],
)
def test_survives_nonsense(site: Site, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nbd")
    site.add("vol")
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(site.path))
    sock.sendall(said)
    sock.shutdown(socket.SHUT_WR)
    sock.settimeout(20)
    try:
        while sock.recv(1000):
            pass
    except ConnectionResetError:
        pass
    sock.close()
    until(lambda: site.server.connections == 0)
    assert "Traceback" not in caplog.text
    assert len([record for record in caplog.records if record.message.startswith("connection_failed")]) == 1
    with Client(site.uri()) as client:
        assert client.read(0, 1) == b"\0"


def test_one_who_only_asks_is_no_failure(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.add("vol")
    for _ in range(20):
        list_exports(site.uri())
    until(lambda: site.server.connections == 0)
    assert not caplog.records


def test_gives_up_on_a_slow_handshake(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_S_MAX", 0.05)
    sock = site.connect()
    assert sock.recv(1) == b""
    sock.close()


def test_a_crash_of_a_device_ends_one_connection(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    device, real = site.add("vol"), FileDevice.open_session

    def open_session() -> object:
        session = real(device)
        session.write = None
        return session

    device.open_session = open_session  # type: ignore[method-assign]
    with Client(site.uri()) as good, Client(site.uri()) as bad:
        with pytest.raises(ConnectionError):
            bad.write(0, b"x")
        assert good.read(0, 1) == b"\0"
    until(lambda: "connection_crashed" in caplog.text)  # the client hears of it first


def test_a_socket_belongs_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    first = listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)
    first.close()
    listen_unix(path).close()


def test_a_file_is_no_dead_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)
    assert path.read_text() == "data"
