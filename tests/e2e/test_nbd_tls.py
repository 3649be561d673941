"""The agent over TCP with TLS, for real clients: those with a certificate read and write, the others get nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd.client import Client
from nbd.errors import RefusedError
from tests.certificates import Authority
from tests.e2e.system import System, first_difference, make_source, running, wait_until
from tests.tools import need

pytestmark = pytest.mark.slow

SIZE = 32 << 20
SENTENCE = "TLS is required here"


class Secured:
    """A running system whose agent listens at TCP with TLS, one volume, and folders of papers as libnbd and QEMU want them."""

    def __init__(self, system: System, authority: Authority, folder: Path) -> None:
        self.system = system
        self.source = make_source(folder / "source.img", SIZE)
        self.uri = system.add("v", self.source)
        self.papers = _papers(folder / "papers", authority, authority)
        self.foreign = _papers(folder / "foreign", authority, Authority(folder / "other", "other"))
        self.none = folder / "none"
        self.none.mkdir()
        (self.none / "ca-cert.pem").write_bytes(authority.ca.read_bytes())

    def uri_with(self, papers: Path) -> str:
        return f"{self.uri}?tls-certificates={papers}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("nbds")
    authority = Authority(folder)
    certificate, key = authority.sign("agent", ("127.0.0.1", "localhost"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "HOSTOFFLOAD_AGENT_LISTEN": f"127.0.0.1:{port}",
        "HOSTOFFLOAD_AGENT_TLS_CERTIFICATE": str(certificate),
        "HOSTOFFLOAD_AGENT_TLS_KEY": str(key),
        "HOSTOFFLOAD_AGENT_TLS_CLIENT_CA": str(authority.ca),
    }
    with running(folder / "system", environment=environment) as system:
        yield Secured(system, authority, folder)


def test_the_uri_tells_of_tls(secured: Secured) -> None:
    assert secured.uri.startswith("nbds://127.0.0.1:")
    assert secured.system.status("v")["uri"] == secured.uri


def test_libnbd_and_fio_read_and_write_what_reaches_the_replica(secured: Secured, tmp_path: Path) -> None:
    need("nbdcopy", "nbdinfo", "nbdkit", "fio")
    uri = secured.uri_with(secured.papers)
    assert f"export-size: {SIZE}" in _run("nbdinfo", uri).stdout
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    _run("nbdcopy", "--connections=4", str(image), uri)
    assert first_difference(image, secured.source) is None
    _run("nbdcopy", "--connections=4", uri, str(tmp_path / "back"))
    assert first_difference(image, tmp_path / "back") is None
    job = "fio --name=x --ioengine=nbd --uri=$uri --rw=randrw --bsrange=512-256k --iodepth=32 --verify=crc32c --verify_fatal=1"
    job += f" --verify_state_save=0 --fsync=16 --randseed=3 --size={SIZE}"
    # nbdkit stands in front of fio, which lets no URI name certificates.
    _run("nbdkit", "-U", "-", "nbd", f"uri={secured.uri}", "tls=require", f"tls-certificates={secured.papers}", "--run", job)
    secured.system.check_equal("v", secured.source)


def test_qemu_reads_and_writes(secured: Secured, tmp_path: Path) -> None:
    need("qemu-io")
    port = secured.uri.rpartition(":")[2].partition("/")[0]
    papers = f"tls-creds-x509,id=papers,endpoint=client,dir={secured.papers}"
    image = f"driver=nbd,host=127.0.0.1,port={port},export=v,tls-creds=papers"
    does = ["-c", "write -P 7 1M 3M", "-c", "flush", "-c", "read -P 7 1M 3M"]
    told = _run("qemu-io", "--object", papers, "--image-opts", image, *does).stdout
    assert "wrote 3145728" in told and "read 3145728" in told and "verification failed" not in told
    assert secured.source.read_bytes()[1 << 20 : 4 << 20] == b"\7" * (3 << 20)


@pytest.mark.parametrize("papers", ["foreign", "none"])
def test_a_client_without_a_good_certificate_gets_nothing(secured: Secured, papers: str) -> None:
    need("nbdinfo")
    done = subprocess.run(["nbdinfo", secured.uri_with(getattr(secured, papers))], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and str(SIZE) not in done.stdout
    log = secured.system.state / "log" / "capture.log"
    # In TLS 1.3 the client is done before the server looks at its certificate: the line may come after the client's end.
    wait_until(lambda: "no TLS with this client" in log.read_text(), "the refusal in the agent's log", 60)


def test_a_plain_client_is_told_that_tls_is_required(secured: Secured) -> None:
    with pytest.raises(RefusedError, match=SENTENCE):
        Client(secured.uri.replace("nbds://", "nbd://"))


def test_the_unix_socket_is_the_owners_and_plain(secured: Secured) -> None:
    (path,) = [path for path in (secured.system.state / "run").rglob("*") if path.is_socket() and "nbd" in path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    with Client(f"nbd+unix:///v?socket={path}") as client:
        assert client.size_bytes == SIZE


def _papers(folder: Path, trusted: Authority, signer: Authority) -> Path:
    folder.mkdir()
    certificate, key = signer.sign("client")
    for name, path in (("ca-cert.pem", trusted.ca), ("client-cert.pem", certificate), ("client-key.pem", key)):
        (folder / name).write_bytes(path.read_bytes())
    return folder


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}\n{done.stderr}"
    return done
