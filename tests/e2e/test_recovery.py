"""Recovery as a user does it: a filesystem under load at every flush, a table that somebody dropped, a topic replayed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nbd.client import Client
from tests.e2e.mounted import Mounted, run
from tests.e2e.system import System, first_difference, make_source, running
from tests.tools import need

pytestmark = pytest.mark.slow
POSTGRES = Path("/usr/lib/postgresql/15/bin")
ROUNDS = 12
DOCS = Path(__file__).parents[2] / "docs" / "recovery.md"
MIB = 1 << 20


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("recovery")) as one:
        yield one


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may pass through."""
    path = Path(tempfile.mkdtemp(prefix="recovery-"))
    path.chmod(0o755)
    yield path
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]
    shutil.rmtree(path)


def iso(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}Z"


def test_a_filesystem_under_load_is_clean_at_every_flush(system: System, folder: Path) -> None:
    """A file that was fsynced before a flush exists at it and after it; renames and deletions around it may be there or not."""
    need("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", root=True)
    source = make_source(system.folder / "flushes.img", 128 * MIB)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(source))
    uri = system.add("flushes", source)
    system.wait_in_sync("flushes")
    log = folder / "log"
    with Mounted(folder, uri) as mount:
        began_ns = time.time_ns()
        entries = list(_work(mount))
        ended_ns = time.time_ns()
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    check = f"{sys.executable} {Path(__file__).with_name('kept_files.py')} {{mount}} {log}"
    told = json.loads(
        system.run(
            *("drill", "flushes", "--every-flush", "--from", iso(began_ns), "--to", iso(ended_ns)),
            *("--check", "fsck", "--check", check, "--json", "--html", system.folder / "flushes.html"),
        )
    )
    assert told["good"] == len(told["points"]) >= ROUNDS * 2, told
    said = told["points"][-1]["checks"][1]["said"]
    assert said.startswith(f"{ROUNDS - 1} files"), f"the check looked at all but the last, whose flush is this one: {said}"


def test_one_gib_is_mounted_at_a_point_within_three_seconds(system: System, folder: Path) -> None:
    need("nbdfuse", "losetup", "mkfs.ext4", root=True)
    files = folder / "files"
    files.mkdir()
    for number in range(100):
        (files / f"{number}").write_bytes(random.Random(number).randbytes(MIB))
    source = make_source(system.folder / "gib.img", 1024 * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", str(files), str(source))
    system.add("gib", source)
    system.check_equal("gib", source, captured=False)
    told = json.loads(system.run("drill", "gib", "--at", "latest", "--check", "mount", "--check", "test -s {mount}/99", "--json"))
    print(f"rto {told['rto_s']} s, mounted after {told['points'][0]['mounted_s']} s")
    assert told["passed"] and told["rto_s"] < 3


def _work(mount: Path) -> Iterator[dict]:
    """Create, rename, delete and fsync files; tell what was promised to stay."""
    rng = random.Random(5)
    for number in range(ROUNDS):
        place = mount / f"folder-{number % 3}"
        place.mkdir(exist_ok=True)
        for index in range(20):
            (place / f"loose-{number}-{index}").write_bytes(rng.randbytes(rng.randrange(20_000)))
        new, name = place / f"new-{number}", place / f"kept-{number}"
        body = rng.randbytes(rng.randrange(1, 100_000))
        with new.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        new.rename(name)
        for folder in (place, mount):
            fd = os.open(folder, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        synced_ns = time.time_ns()
        yield {"name": str(name.relative_to(mount)), "digest": hashlib.sha256(body).hexdigest(), "synced_ns": synced_ns}
        for index in range(0, 20, 3):
            (place / f"loose-{number}-{index}").unlink()
        (place / f"loose-{number}-1").rename(mount / f"moved-{number}")


class Database:
    """A PostgreSQL on a mounted volume, run by its own user."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data, self.sockets = data, sockets
        sockets.mkdir()
        shutil.chown(sockets, "postgres", "postgres")

    def make(self) -> None:
        self.data.mkdir(mode=0o700)
        shutil.chown(self.data, "postgres", "postgres")
        self._run(POSTGRES / "initdb", "-D", self.data, "-A", "trust", "--no-instructions")

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.sockets}"
        self._run(POSTGRES / "pg_ctl", "-D", self.data, "-w", "-l", self.sockets / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run(POSTGRES / "pg_ctl", "-D", self.data, "-m", "fast", "stop")

    def ask(self, query: str) -> str:
        return self._run("psql", "-h", self.sockets, "-d", "postgres", "-Atc", query).strip()

    def bench(self, *options: object) -> list[str]:
        return ["runuser", "-u", "postgres", "--", "pgbench", "-h", str(self.sockets), *map(str, options), "postgres"]

    def _run(self, *command: object) -> str:
        return run("runuser", "-u", "postgres", "--", *map(str, command))


def docs_script(name: str) -> str:
    """Return a script as docs/recovery.md has it."""
    found = re.search(rf"cat > \S*/{name} <<'END'\n(.*?)\nEND\n", DOCS.read_text(), re.DOTALL)
    assert found, name
    return found.group(1) + "\n"


def test_a_dropped_table_is_found_and_back(system: System, folder: Path) -> None:
    need("nbdfuse", "losetup", "mkfs.ext4", "runuser", "psql", "pgbench", root=True)
    need(str(POSTGRES / "postgres"))
    source = make_source(system.folder / "db.img", 512 * MIB)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(source))
    uri = system.add("db", source)
    system.wait_in_sync("db")
    check = folder / "has-orders"
    check.write_text(docs_script("has-orders"))
    check.chmod(0o755)
    line = f"{check} {{mount}}"
    (folder / "past").mkdir()
    with Mounted(folder, uri) as mount:
        mount.chmod(0o755)
        database = Database(mount / "pgdata", folder / "run")
        database.make()
        database.start()
        try:
            before, dropped_ns = _lose_orders(system, database)
            told = json.loads(system.run("drill", "db", "--at", "before-the-drop", "--check", line, "--check", "fsck", "--json"))
            assert told["points"][0]["position"] == before["position"]
            assert told["passed"] and "1000" in told["points"][0]["checks"][0]["said"]
            system.run("drill", "db", "--at", iso(dropped_ns), "--check", line, code=1)
            good = _last_good(system, line, before["position"], dropped_ns)
            past = system.run("export", "db", "--at", good, "--writable", "--detach").splitlines()[-1]
            with Mounted(folder / "past", past) as then:
                _bring_back(Database(then / "pgdata", folder / "run-past"), database)
            system.run("export", "stop", "--all")
            assert database.ask("select count(*), sum(id) from orders") == "1000|500500"
        finally:
            database.stop()


def _lose_orders(system: System, database: Database) -> tuple[dict, int]:
    """Drop a table under load; return a bookmark taken before that, and a time after."""
    run(*database.bench("-i", "-q", "-s", "2"))
    load = subprocess.Popen(database.bench("-T", "60", "-c", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        database.ask("create table orders as select generate_series(1, 1000) as id")
        before = json.loads(system.run("bookmark", "db", "before-the-drop", "--json"))
        time.sleep(2)
        database.ask("drop table orders")
        dropped_ns = time.time_ns()
        time.sleep(2)
        return before, dropped_ns
    finally:
        load.terminate()
        load.wait(30)


def _last_good(system: System, line: str, before: str, dropped_ns: int) -> str:
    """Let the drill find the last point that has the table: the one before the drop was durable."""
    report = system.folder / "bisect.html"
    found = json.loads(system.run("drill", "db", "--bisect", "--from", before, "--check", line, "--json", "--html", report))
    assert found["last_good"] and found["first_bad"] and found["exact"]
    assert before <= found["last_good"]["position"] < found["first_bad"]["position"]
    assert found["last_good"]["time"] <= found["first_bad"]["time"] <= iso(dropped_ns)
    print(f"bisected {len(found['points'])} points in {found['seconds']} s, rto {found['rto_s']} s")
    return found["last_good"]["position"]


def _bring_back(past: Database, database: Database) -> None:
    """Start the database of the past beside the one in use, and copy the table over."""
    (past.data / "postmaster.pid").unlink(missing_ok=True)  # it names the server in use
    past.start()
    try:
        dump = subprocess.run(["runuser", "-u", "postgres", "--", "pg_dump", "-h", str(past.sockets), "-t", "orders", "postgres"],
                              capture_output=True, check=True, timeout=60)  # fmt: skip
        fill = ["runuser", "-u", "postgres", "--", "psql", "-q", "-h", str(database.sockets), "-d", "postgres", "-v", "ON_ERROR_STOP=1"]
        subprocess.run(fill, input=dump.stdout, capture_output=True, check=True, timeout=60)
    finally:
        past.stop()


@pytest.mark.parametrize("topic", ["writes", "journal"])
def test_a_replayed_topic_is_the_restored_volume(system: System, topic: str) -> None:
    name = f"replay-{topic}"
    source = make_source(system.folder / f"{name}.img", 64 * MIB, used_bytes=8 * MIB)
    uri = system.add(name, source)
    rng = random.Random(3)
    system.wait_in_sync(name)
    positions = []
    with Client(uri) as client:
        for _ in range(4):
            client.write_all([(rng.randrange(60 * MIB), rng.randbytes(rng.randrange(1, 100_000))) for _ in range(40)])
            client.write(1 * MIB, rng.randbytes(2 * MIB))
            client.zero(rng.randrange(32 * MIB), 3 * MIB)
            client.flush()
            positions.append(system.wait_in_sync(name)["position"]["applied"])
    restored, replayed = system.folder / f"{name}.restored", system.folder / f"{name}.replayed"
    for position in positions[1:3]:
        system.run("restore", name, "--at", position, "--to", restored, "--force")
        told = json.loads(system.run("replay", name, "--to", position, "--into", replayed, "--topic", topic, "--json"))
        assert told["compared"] == "equal" and told["records"] > 0
        assert first_difference(restored, replayed) is None
        replayed.unlink()
    system.run("restore", name, "--at", positions[0], "--to", restored, "--force")
    told = json.loads(system.run("replay", name, "--from", positions[0], "--into", restored, "--topic", topic, "--speed", "4x", "--json"))
    assert told["compared"] == "equal" and told["applied_s"] >= told["captured_s"] / 4 - 0.1
    with restored.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"meddled with" * 100)
    system.run("replay", name, "--from", told["to"], "--to", told["to"], "--into", restored, "--topic", topic, code=1)
    whole = system.run("replay", name, "--into", replayed, "--topic", topic)
    assert whole.endswith("equal") and first_difference(source, replayed) is None


def test_a_volume_is_restored_in_place(system: System) -> None:
    """Refused while the volume is served; afterwards the volume is what it was, in sync, and what came later is history still."""
    source = make_source(system.folder / "place.img", 64 * MIB, used_bytes=8 * MIB)
    uri = system.add("place", source)
    system.wait_in_sync("place")
    rng = random.Random(9)
    kept, later = system.folder / "place.kept", system.folder / "place.later"
    positions = []
    for copy in (kept, later):
        with Client(uri) as client:
            client.write_all([(rng.randrange(60) * MIB, rng.randbytes(100_000)) for _ in range(30)])
            client.flush()
        positions.append(system.wait_in_sync("place")["position"]["applied"])
        shutil.copyfile(source, copy)
    good, last = positions
    system.run("restore", "place", "--at", good, "--to", source, "--force", code=3)
    assert first_difference(source, later) is None
    system.run("volume", "pause", "place")
    system.run("restore", "place", "--at", good, "--to", source, "--force")
    system.run("volume", "resume", "place")
    system.wait_in_sync("place")
    assert first_difference(source, kept) is None and first_difference(system.replica(source), kept) is None
    system.run("restore", "place", "--at", last, "--to", system.folder / "again.img")
    assert first_difference(system.folder / "again.img", later) is None
