"""The supervisor with real processes: killed, adopted, held back, stopped in order, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hostoffload import layout, local_state
from hostoffload.process import start_ticks

WAIT_S = 60.0

DRIVER = """
import json, os, sys
from pathlib import Path
from hostoffload import supervisor
from hostoffload.listeners import Listeners
from hostoffload.supervisor import ProcessSpec, Supervisor
state, wanted, log_bytes_max = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
supervisor.LOG_BYTES_MAX = log_bytes_max
def specs(told):
    for one in told:
        argv = [sys.executable, "-c", one.pop("code"), one["name"], str(state)]
        yield ProcessSpec(one["name"], environment=dict(os.environ), argv=lambda argv=argv: argv, **one)
def more():
    path = state / "more.json"
    return list(specs(json.loads(path.read_text()))) if path.exists() else []
listeners = Listeners(state / "run" / "nbd.sock")
sys.exit(Supervisor(state, "all", list(specs(wanted)), listeners, log_dir=state / "log", more=more).run())
"""

IDLE = "import signal; signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: signal.pause()"
BRIEF = "import sys, time, pathlib; open(pathlib.Path(sys.argv[2]) / 'starts', 'a').write(f'{time.monotonic()}\\n')"
# Tells in the file `ended` when it is asked to end.
ORDERLY = """
import pathlib, signal, sys
def end(*_):
    open(pathlib.Path(sys.argv[2]) / "ended", "a").write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True: signal.pause()
"""
# Answers each client with its pid, on the sockets that were handed to it.
SERVER = """
import os, socket
assert int(os.environ["LISTEN_PID"]) == os.getpid() and os.environ["LISTEN_FDS"] == "1", os.environ
listener = socket.socket(fileno=3)
while True:
    client, _ = listener.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
"""


class Running:
    """A supervisor in a process of its own, and what its state folder says."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *specs: dict[str, Any], log_bytes_max: int = 1 << 20, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with (self.state_dir / "log" / "supervisor.log").open("ab") as log:
            arguments = [sys.executable, "-c", DRIVER, str(self.state_dir), json.dumps(specs), str(log_bytes_max)]
            process = subprocess.Popen(arguments, stderr=log, pass_fds=pass_fds)
        self.started.append(process)
        self.wait(lambda: (found := local_state.supervisor(self.state_dir)) is not None and found.pid == process.pid)
        return process

    def processes(self) -> dict[str, local_state.Supervised]:
        found = local_state.supervisor(self.state_dir)
        return {one.name: one for one in found.processes} if found is not None else {}

    def pid(self, name: str) -> int:
        """Return the pid of a process once it runs."""
        return self.restarted(name, 0)

    def restarted(self, name: str, before: int) -> int:
        """Return the pid of the process that took the place of `before`."""
        found: list[int] = []

        def seen() -> bool:
            one = self.processes().get(name)
            if one is not None and one.pid not in (None, before):
                found.append(one.pid)
            return bool(found)

        self.wait(seen)
        return found[0]

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < until, (self.state_dir / "log" / "supervisor.log").read_text()
            time.sleep(0.005)

    def log(self, name: str) -> str:
        return (self.state_dir / "log" / f"{name}.log").read_text()

    def clean_up(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for path in (self.state_dir / "run").glob("*.json"):
            told = json.loads(path.read_text())
            if start_ticks(told["pid"]) == told["start_ticks"]:
                os.kill(told["pid"], signal.SIGKILL)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    layout.make(tmp_path / "state")
    one = Running(tmp_path / "state")
    yield one
    one.clean_up()


def alive(pid: int) -> bool:
    return start_ticks(pid) is not None


def ask(path: Path) -> int:
    """Connect, as a client does, and return the pid of the server that answers."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(str(path))
        return int(client.recv(64))


def spec(name: str, code: str, **rest: Any) -> dict[str, Any]:
    return {"name": name, "code": code, **rest}


def test_a_killed_process_is_started_again_and_counted(running: Running) -> None:
    running.start(spec("one", IDLE), spec("two", IDLE))
    before, other = running.pid("one"), running.pid("two")
    os.kill(before, signal.SIGKILL)
    after = running.restarted("one", before)
    assert alive(after) and not alive(before)
    assert running.pid("two") == other
    assert (running.processes()["one"].restarts, running.processes()["one"].exit_code) == (1, -signal.SIGKILL)
    assert running.processes()["two"].restarts == 0


def test_a_process_stands_back_from_those_of_other_sessions_too(running: Running) -> None:
    """A nice value alone counts within a session, and each of the supervisor's processes has one of its own."""
    running.start(spec("first", IDLE), spec("behind", IDLE, niceness=10))
    first, behind = running.pid("first"), running.pid("behind")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    running.wait(lambda: os.getpriority(os.PRIO_PROCESS, behind) == min(19, own + 10))
    assert os.getpriority(os.PRIO_PROCESS, first) == own
    group = Path(f"/proc/{behind}/autogroup")
    if group.exists():  # a kernel without it has nothing to say
        running.wait(lambda: group.read_text().split()[-1] == "10")
        assert Path(f"/proc/{first}/autogroup").read_text().split()[-1] == "0"


def test_the_pause_before_a_restart_doubles(running: Running) -> None:
    running.start(spec("brief", BRIEF))
    starts = running.state_dir / "starts"
    running.wait(lambda: starts.exists() and starts.read_text().count("\n") >= 4)
    times = [float(line) for line in starts.read_text().split()]
    pauses = [later - earlier for earlier, later in pairwise(times[:4])]
    assert pauses[0] >= 0.2 and pauses[1] >= 0.4 and pauses[2] >= 0.8, pauses


def test_what_waits_for_its_restart_starts_at_once_when_asked(running: Running) -> None:
    supervisor = running.start(spec("brief", BRIEF))
    starts = running.state_dir / "starts"
    running.wait(lambda: starts.exists() and starts.read_text().count("\n") >= 5)  # the next one comes 3.2 s later
    running.wait(lambda: running.processes()["brief"].pid is None)
    asked = time.monotonic()
    supervisor.send_signal(signal.SIGUSR1)
    running.wait(lambda: starts.read_text().count("\n") >= 6)
    assert float(starts.read_text().split()[5]) - asked < 2.8


def test_a_process_that_can_not_be_executed_is_told_and_tried_again(running: Running) -> None:
    driver = DRIVER.replace('sys.executable, "-c", one.pop("code")', 'one.pop("code")')
    with (running.state_dir / "log" / "supervisor.log").open("ab") as log:
        wanted = json.dumps([spec("absent", "/nowhere/program"), spec("one", "/bin/cat")])
        running.started.append(subprocess.Popen([sys.executable, "-c", driver, str(running.state_dir), wanted, "9999"], stderr=log))
    running.wait(lambda: "absent" in running.processes() and running.processes()["absent"].restarts >= 2)
    assert running.processes()["absent"].exit_code == 127
    assert "/nowhere/program can't be started" in running.log("absent")


def test_clients_wait_in_the_backlog_while_the_server_is_away(running: Running) -> None:
    running.start(spec("server", SERVER, listens=True))
    path = running.state_dir / "run" / "nbd.sock"
    before = running.pid("server")
    assert ask(path) == before
    held = running.state_dir / "run" / "server.held"
    held.touch()
    os.kill(before, signal.SIGKILL)
    running.wait(lambda: running.processes()["server"].pid is None)
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(ask(path))) for _ in range(4)]
    for client in clients:
        client.start()
    assert answers == []  # nobody serves, nobody was refused
    held.unlink()
    for client in clients:
        client.join(WAIT_S)
    assert answers == [running.pid("server")] * 4


def test_the_socket_is_its_owners_alone(running: Running) -> None:
    running.start(spec("server", SERVER, listens=True))
    ask(running.state_dir / "run" / "nbd.sock")
    assert (running.state_dir / "run" / "nbd.sock").stat().st_mode & 0o777 == 0o600
    assert (running.state_dir / "run").stat().st_mode & 0o777 == 0o700


def test_children_get_nothing_but_their_log_and_their_sockets(running: Running) -> None:
    leak = os.open("/dev/null", os.O_RDONLY)
    try:
        running.start(spec("server", SERVER, listens=True), spec("one", IDLE), pass_fds=(leak,))
        ask(running.state_dir / "run" / "nbd.sock")
        for name, wanted in (("server", {"0", "1", "2", "3"}), ("one", {"0", "1", "2"})):
            pid = running.pid(name)
            running.wait(lambda pid=pid, wanted=wanted: set(os.listdir(f"/proc/{pid}/fd")) == wanted)
            assert os.getsid(pid) == pid
            assert os.readlink(f"/proc/{pid}/fd/2") == str(running.state_dir / "log" / f"{name}.log")
    finally:
        os.close(leak)


def test_a_stop_goes_by_rank_and_leaves_nothing(running: Running) -> None:
    supervisor = running.start(
        spec("last", ORDERLY, rank=2), spec("first", ORDERLY, rank=0), spec("middle", ORDERLY, rank=1), spec("server", SERVER, listens=True)
    )
    ask(running.state_dir / "run" / "nbd.sock")
    pids = [running.pid(name) for name in ("last", "first", "middle", "server")]
    for pid in pids[:3]:  # SIGTERM is caught by now
        running.wait(lambda pid=pid: _catches_sigterm(pid))
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(WAIT_S) == 0
    assert (running.state_dir / "ended").read_text().split() == ["first", "middle", "last"]
    assert not any(alive(pid) for pid in pids)
    assert [path.name for path in (running.state_dir / "run").iterdir()] == []
    assert local_state.supervisor(running.state_dir) is None


def test_one_that_does_not_end_is_killed_after_its_time(running: Running) -> None:
    supervisor = running.start(spec("stubborn", STUBBORN, stop_s=0.3))
    pid = running.pid("stubborn")
    running.wait(lambda: _ignores_sigterm(pid))
    began = time.monotonic()
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(WAIT_S) == 0
    assert time.monotonic() - began >= 0.3
    assert not alive(pid)
    assert "process_killed" in running.log("supervisor")


def test_a_new_supervisor_goes_on_with_what_a_killed_one_left(running: Running) -> None:
    first = running.start(spec("server", SERVER, listens=True), spec("one", IDLE))
    path = running.state_dir / "run" / "nbd.sock"
    server, one = running.pid("server"), running.pid("one")
    os.kill(one, signal.SIGKILL)
    one = running.restarted("one", one)
    first.kill()
    first.wait()
    assert alive(server) and ask(path) == server  # the services go on
    second = running.start(spec("server", SERVER, listens=True), spec("one", IDLE))
    assert (running.pid("server"), running.pid("one")) == (server, one)
    assert running.processes()["one"].restarts == 1
    assert ask(path) == server

    os.kill(server, signal.SIGKILL)  # its sockets go with it: the second supervisor binds anew
    after = running.restarted("server", server)
    running.wait(lambda: _answers(path, after))
    second.terminate()
    assert second.wait(WAIT_S) == 0
    assert not alive(one) and not alive(after)


def test_one_that_died_with_its_supervisor_is_started_by_the_next(running: Running) -> None:
    first = running.start(spec("one", IDLE), spec("two", IDLE))
    one, two = running.pid("one"), running.pid("two")
    first.kill()
    first.wait()
    os.kill(one, signal.SIGKILL)
    running.start(spec("one", IDLE), spec("two", IDLE))
    assert running.pid("two") == two
    assert running.restarted("one", one) != one


def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(running: Running) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", IDLE])
    try:
        first = running.start(spec("one", IDLE))
        one = running.pid("one")
        path = running.state_dir / "run" / "one.json"
        running.wait(path.exists)
        first.kill()
        first.wait()
        os.kill(one, signal.SIGKILL)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": stranger.pid}))
        second = running.start(spec("one", IDLE))
        assert running.pid("one") not in (one, stranger.pid)
        second.terminate()
        second.wait(WAIT_S)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_held_process_stays_away_until_it_is_let_go(running: Running) -> None:
    running.start(spec("one", IDLE), spec("brief", BRIEF))
    held = running.state_dir / "run" / "one.held"
    held.touch()
    before = running.pid("one")
    os.kill(before, signal.SIGKILL)
    starts = running.state_dir / "starts"
    count = starts.read_text().count("\n") if starts.exists() else 0
    running.wait(lambda: starts.exists() and starts.read_text().count("\n") >= count + 3)  # others were started three times meanwhile
    assert running.processes()["one"].pid is None
    held.unlink()
    assert running.restarted("one", before) != before


def test_a_log_is_bounded(running: Running) -> None:
    code = "import time\nwhile True:\n    print('x' * 999, flush=True)\n    time.sleep(0.0005)"
    running.start(spec("chatty", code), log_bytes_max=1 << 16)
    running.wait(lambda: (running.state_dir / "log" / "chatty.log.1").exists())
    kept = (running.state_dir / "log" / "chatty.log.1").stat().st_size
    assert 1 << 16 < kept < 8 << 20
    running.wait(lambda: (running.state_dir / "log" / "chatty.log").stat().st_size > 0)  # it goes on in place


def _answers(path: Path, pid: int) -> bool:
    try:
        return ask(path) == pid
    except (OSError, ValueError):
        return False


def _catches_sigterm(pid: int) -> bool:
    return _signal_mask(pid, "SigCgt") & (1 << (signal.SIGTERM - 1)) != 0


def _ignores_sigterm(pid: int) -> bool:
    return _signal_mask(pid, "SigIgn") & (1 << (signal.SIGTERM - 1)) != 0


def _signal_mask(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)), 16)


def test_what_comes_and_goes_beside_the_list_is_run_and_ended(running: Running) -> None:
    more = running.state_dir / "more.json"

    def want(*specs: dict[str, Any]) -> None:
        new = more.with_suffix(".new")
        new.write_text(json.dumps(specs))
        new.replace(more)

    process = running.start(spec("one", IDLE))
    one = running.pid("one")
    want(spec("two", ORDERLY), spec("three", STUBBORN, stop_s=0.2))
    running.wait(lambda: {"two", "three"} <= set(running.processes()) and all(each.pid for each in running.processes().values()))
    two, three = running.pid("two"), running.pid("three")
    os.kill(two, signal.SIGKILL)
    running.wait(lambda: running.processes()["two"].pid not in (None, two))
    want()
    running.wait(lambda: set(running.processes()) == {"one"})
    assert start_ticks(three) is None, "one that does not end is ended by force"
    assert (running.state_dir / "ended").read_text() == "two\n"
    assert not (running.state_dir / "run" / "two.json").exists()
    assert running.pid("one") == one
    process.terminate()
    process.wait(WAIT_S)
