"""The story, step by step, each through the command line as a user would type it.

Makes a real ext4 filesystem with real files, protects it, writes to it while protected, shows mode, RPO lag and progress live, then proves
the replica byte-equal and fsck-clean. It cleans up after itself, whatever happens. Raises one of ours when anything is not so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hostoffload.demo import filesystem
from hostoffload.demo.workload import ClientWorkload, MountedWorkload, can_mount
from stream.errors import ConfigError, HostoffloadError, IntegrityError, RetryError

VOLUME_BYTES = 512 << 20
FIRST_FILES = 600
WRITE_S = 12.0
REFRESH_S = 0.25
COMMAND_S_MAX = 300
SYNC_S_MAX = 120
VOLUME = "demo"
SCRATCH_BYTES_MIN = 3 << 30


def tell(bootstrap: str | None, broker: str | None, *, keep: bool) -> dict[str, object]:
    """Play the whole story; return its facts. Raises HostoffloadError when the system does not do what it promises."""
    programs = filesystem.find_programs()
    folder = Path(tempfile.mkdtemp(prefix="hostoffload-demo-"))
    if shutil.disk_usage(folder).free < SCRATCH_BYTES_MIN:
        folder.rmdir()
        raise ConfigError(f"The demo needs {SCRATCH_BYTES_MIN >> 30} GiB below {folder.parent}", hint="Name another place by TMPDIR.")
    story = _Story(folder, programs, bootstrap, broker)
    try:
        return story.play()
    finally:
        story.clean_up(keep=keep)


class _Story:
    def __init__(self, folder: Path, programs: dict[str, str], bootstrap: str | None, broker: str | None) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._folder, self._programs = folder, programs
        self._bootstrap, self._broker = bootstrap, broker
        self._state = folder / "state"
        self._source, self._replica = folder / "source.img", folder / "replica.img"
        self._began_s = time.monotonic()
        self._up = False

    def play(self) -> dict[str, object]:
        """Tell it, step by step."""
        self._step("make an ext4 filesystem with real files")
        count = filesystem.make_files(self._folder / "files", FIRST_FILES, filesystem.SEED)
        filesystem.make_filesystem(self._programs, self._source, VOLUME_BYTES, self._folder / "files")
        self._note(f"{VOLUME_BYTES >> 20} MiB volume, {FIRST_FILES} files, {count >> 20} MiB")
        self._step("hostoffload up: a real Kafka, agent, CX, target")
        self._up = True
        options = [f"--bootstrap={self._bootstrap}"] if self._bootstrap else []
        options += [f"--broker={self._broker}"] if self._broker else []
        self._run("up", *options, shown=True)
        self._step("hostoffload volume add: protect it; the first copy begins")
        uri = self._run("volume", "add", VOLUME, "--source", str(self._source), "--replica", str(self._replica)).splitlines()[-1]
        self._note(uri)
        why_not = can_mount()
        self._step("write while it is protected: " + ("mounted ext4" if why_not is None else f"own NBD client ({why_not})"))
        rounds = self._write(uri, why_not is None)
        self._step("hostoffload wait --in-sync")
        self._run("wait", VOLUME, "--in-sync", "--timeout", str(SYNC_S_MAX))
        status = self._status()
        if not status["captured_bytes"]:
            raise IntegrityError("Nothing was captured: the demo wrote past the agent", volume=VOLUME)
        self._run("volume", "remove", VOLUME)
        self._run("down")
        self._up = False
        return self._prove(rounds, status)

    def clean_up(self, *, keep: bool) -> None:
        """Stop what runs, remove what was made; never hide the error that led here."""
        if self._up:
            with contextlib.suppress(HostoffloadError):
                self._run("down")
        if keep:
            self._note(f"kept: {self._folder}")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, uri: str, mounted: bool) -> int:
        """Write for `WRITE_S` beside a live table; return the rounds."""
        workload = MountedWorkload(self._folder, uri) if mounted else ClientWorkload(self._folder, uri, self._programs, self._source)
        failed: list[BaseException] = []
        rounds = 0
        over = threading.Event()

        def write() -> None:
            nonlocal rounds
            try:
                while not over.is_set():
                    rounds += 1
                    workload.write(rounds)
            except BaseException as error:  # told on the main thread
                failed.append(error)

        try:
            workload.open()
            writer = threading.Thread(target=write)
            writer.start()
            try:
                self._watch(writer)
            finally:
                over.set()
                writer.join()
        finally:
            workload.close()
        if failed:
            raise failed[0]
        return rounds

    def _watch(self, writer: threading.Thread) -> None:
        ends_s = time.monotonic() + WRITE_S
        with Live(self._table(self._status()), console=self._console, refresh_per_second=8) as live:
            while time.monotonic() < ends_s and writer.is_alive():
                live.update(self._table(self._status()))
                time.sleep(REFRESH_S)

    def _prove(self, rounds: int, status: dict[str, object]) -> dict[str, object]:
        self._step("prove it: every byte of the replica against the source, then e2fsck")
        differs = filesystem.first_difference(self._source, self._replica)
        if differs is not None:
            raise IntegrityError("Source and replica differ", offset_bytes=differs, volume=VOLUME)
        filesystem.check_filesystem(self._programs, self._replica)
        facts = {
            "byte_equal": True,
            "fsck_clean": True,
            "sha256": filesystem.digest(self._replica),
            "rounds_written": rounds,
            "captured_bytes": status["captured_bytes"],
            "resync_bytes": status["resync_bytes"],
            "gaps": status["gaps"],
            "seconds": round(time.monotonic() - self._began_s, 1),
        }
        self._note(f"byte-equal and fsck-clean: {facts['sha256'][:16]}…  {rounds} rounds, {status['captured_bytes'] >> 20} MiB captured")
        return facts

    def _status(self) -> dict[str, object]:
        return json.loads(self._run("status", VOLUME, "--json"))["volumes"][0]

    def _table(self, status: dict[str, object]) -> Table:
        table = Table(box=None, pad_edge=False)
        percent, eta_s = status["sync_percent"], status["eta_s"]
        shown = {
            "mode": status["mode"],
            "first copy": "-" if percent is None else f"{percent:.0f} %" + (f", {eta_s:.0f} s left" if eta_s else ""),
            "captured": f"{(status['captured_bytes'] or 0) >> 20} MiB",
            "RPO lag (Kafka)": _ms(status["rpo_stream_ms"]),
            "RPO lag (replica)": _ms(status["rpo_ms"]),
            "buffer": f"{(status['buffer_used_bytes'] or 0) >> 20} of {(status['buffer_bytes_max'] or 0) >> 20} MiB",
        }
        for name in shown:
            table.add_column(name)
        table.add_row(*(str(value) for value in shown.values()))
        return table

    def _run(self, *arguments: str, shown: bool = False) -> str:
        """Run a command of the command line; return its answer. Raises RetryError with its own sentence when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "hostoffload", "--state", str(self._state), *arguments],
            stdout=subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        if done.returncode != 0:
            told = "" if shown else done.stderr.strip()[-500:]
            raise RetryError(f"hostoffload {arguments[0]} failed with exit code {done.returncode}: {told}", hint=f"See {self._state}/log.")
        return done.stdout.strip()

    def _step(self, text: str) -> None:
        self._console.print(f"[bold]{time.monotonic() - self._began_s:5.1f} s[/]  {text}")

    def _note(self, text: str) -> None:
        self._console.print(f"         {text}", soft_wrap=True)


def _ms(value: object) -> str:
    return "-" if value is None else f"{value:.0f} ms"
