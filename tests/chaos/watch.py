"""The product as `hostoffload status --watch --json` tells it, twice a second: which process has which pid, and how each volume is.

What capture owes, and what it has copied, comes from its own last report: both must be of one moment. One thread reads; everybody else
asks for the newest sample or, in the end, for all of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGAIN_S = 0.5
FACTS = ("mode", "mode_reason", "captured_bytes", "gaps", "buffer_used_bytes", "backlog_bytes", "rpo_ms")
REPORTED = ("resync_bytes", "owed_bytes")


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of the status: `at` in seconds since 1970, pids by kind (None: it does not run), facts by volume.

    `reporter` is the pid of the capture process whose last report tells `resync_bytes` and `owed_bytes`; it may be dead by now.
    """

    at: float
    pids: Mapping[str, int | None]
    volumes: Mapping[str, Mapping[str, Any]]
    reporter: int | None = None

    @classmethod
    def parse(cls, told: Mapping[str, Any], at: float, report: Mapping[str, Any]) -> Sample:
        volumes = {}
        for one in told["volumes"]:
            facts = {key: one[key] for key in FACTS} | {key: one["position"][key] for key in ("captured", "applied")}
            reported = report.get("volumes", {}).get(one["volume"], {})
            volumes[one["volume"]] = facts | {key: reported.get(key) for key in REPORTED}
        return cls(at, {one["kind"]: one["pid"] for one in told["processes"]}, volumes, report.get("pid"))


class Watch:
    """Read the status until closed; `samples` grows."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Begin. `environment` names the state folder by HOSTOFFLOAD_STATE; the command's own words go to `log`."""
        self._reports = Path(environment["HOSTOFFLOAD_STATE"]) / "status"
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self._environment, self._log = environment, log
        self._closed = threading.Event()
        self._child = self._start()
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
        self._thread.start()

    def newest(self) -> Sample:
        """Return the last sample, the first one when it is there."""
        deadline_s = time.monotonic() + 30
        while not self.samples:
            assert time.monotonic() < deadline_s, f"`hostoffload status --watch` tells nothing: {self._log}"
            time.sleep(0.05)
        return self.samples[-1]

    def close(self) -> None:
        self._closed.set()
        self._child.terminate()
        self._child.wait()
        self._thread.join()

    def _report(self) -> dict[str, Any]:
        """Return capture's last report; empty if there is none."""
        for path in self._reports.glob("capture-*.json"):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_bytes())
        return {}

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hostoffload", "status", "--watch", "--json"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _read(self) -> None:
        while not self._closed.is_set():
            assert self._child.stdout is not None
            for line in self._child.stdout:
                if line.endswith("\n"):
                    self.samples.append(Sample.parse(json.loads(line), time.time(), self._report()))
            code = self._child.wait()
            if not self._closed.wait(AGAIN_S):
                self.failures.append(f"`hostoffload status --watch` ended with {code}: {self._log}")
                self._child = self._start()
