"""The drill's line to its keeper: starts that process, gives it orders, and sees to it that it ends.

Used by `drill`. The keeper cleans up by itself when this process ends, however that happens. If the keeper is killed instead, what it had
set up is cleared from here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recovery.check_run import CheckRun
from recovery.checks import Need, search_path
from recovery.stage import Stage, StageError
from stream.errors import RetryError

END_S_MAX = 60.0
FOLDER_MODE = 0o711  # a check may run as another user, who has to pass through to the mount


class KeeperLine:
    """A keeper and the private folder that it works in; a context manager."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hostoffload-drill-"))
        self.folder.chmod(FOLDER_MODE)
        self._environment = dict(os.environ) | {"PATH": search_path(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._places: dict[Need, str] = {}
        self._waits = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recovery.keeper", str(self.folder)],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> KeeperLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, uri: str) -> None:
        """Make the volume at this URI the one that checks see. What was shown before is gone."""
        self._places = {Need.URI: uri}
        self._order({"do": "show", "uri": uri})

    def place(self, need: Need) -> str:
        """Return where a check finds the volume, setting it up if it is not there yet. Raises StageError with the program's own words."""
        if need not in self._places:
            answer = self._order({"do": need.value})
            if "error" in answer:
                raise StageError(answer["error"])
            self._places[need] = answer["place"]
        return self._places[need]

    @property
    def places(self) -> dict[Need, str]:
        """Return what is set up."""
        return dict(self._places)

    def unmount(self) -> None:
        """Unmount, so that a check may look at the device alone. Raises StageError."""
        if self._places.pop(Need.MOUNT, None) is not None:
            answer = self._order({"do": "unmount"})
            if "error" in answer:
                raise StageError(answer["error"])

    def check(self, line: str, timeout_s: float, environment: dict[str, str]) -> CheckRun:
        """Run a shell line; return when it and everything that it started have ended."""
        return CheckRun(**self._order({"do": "check", "line": line, "timeout_s": timeout_s, "environment": environment}))

    def clear(self) -> list[str]:
        """Take down everything that is shown; return what went wrong. After an interrupted order the keeper is ended for it."""
        self._places = {}
        if self._waits:
            self.close()
            return []
        return self._order({"do": "clear"})["problems"]

    def close(self) -> None:
        """End the keeper, and wait until nothing of it is left. May be called twice."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            killed = self._process.wait(END_S_MAX) < 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            killed = True
        if self._process.stdout is not None:
            self._process.stdout.close()
        if killed:
            self._clear_after_it()

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._waits:
            raise RetryError("The order before was interrupted", hint="Begin the drill again.")
        self._waits = True
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise RetryError("The process that runs the checks has ended", hint="Try again; something killed it.")
        self._waits = False
        return json.loads(answer)

    def _clear_after_it(self) -> None:
        """Undo what a killed keeper left: its processes have lost their parent, its mounts are still there."""
        stage = Stage(self.folder, "", self._environment, is_root=os.geteuid() == 0)
        for problem in stage.clear(lambda: 0):
            print(f"drill: {problem}", file=sys.stderr, flush=True)
        stage.remove_folder()
