"""The keeper: a process of its own that shows a volume to checks and runs them, and that cleans up whatever becomes of the drill.

Started by `recovery.keeper_line` as `python -m recovery.keeper FOLDER`; it asks for orders by JSON lines on stdin and answers on stdout.
When stdin ends, because the drill is over, was interrupted or was killed, it ends what runs, unmounts, detaches, removes its folder and
goes. It has a session of its own, so that Ctrl-C reaches the drill alone; it ignores every signal that asks it to end, because it ends by
itself. Standard library only: it starts in some 50 ms.

| order | answer |
|---|---|
| `{"do": "show", "uri"}` | `{}`: the volume of the orders that follow; what was shown before is cleared |
| `{"do": "device"}`, `{"do": "mount"}` | `{"place"}`, or `{"error"}` |
| `{"do": "unmount"}` | `{}`, or `{"error"}` |
| `{"do": "check", "line", "timeout_s", "environment"}` | how it ended, the fields of `CheckRun` |
| `{"do": "clear"}` | `{"problems"}` |
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recovery.check_run import become_subreaper, end_descendants, run_check
from recovery.stage import Stage, StageError

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


class Keeper:
    """Carries out orders; one thread."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._stage: Stage | None = None
        self._input = sys.stdin.buffer.raw
        self._waiting = b""

    def run(self) -> None:
        """Serve until nobody gives orders any more, then leave nothing behind."""
        try:
            while (line := self._next_line()) is not None:
                answer = json.dumps(self._carry_out(json.loads(line))) + "\n"
                with contextlib.suppress(BrokenPipeError):
                    sys.stdout.write(answer)
                    sys.stdout.flush()
        finally:
            for problem in self._clear():
                print(f"drill: {problem}", file=sys.stderr, flush=True)
            self._new_stage("").remove_folder()

    def _carry_out(self, order: dict[str, Any]) -> dict[str, Any]:
        do = order["do"]
        if do == "show":
            problems = self._clear()
            self._stage = self._new_stage(order["uri"])
            return {"problems": problems}
        if do == "clear":
            return {"problems": self._clear()}
        stage = self._stage
        assert stage is not None, "nothing is shown"
        if do == "check":
            environment = self._environment | order["environment"]
            done = run_check(order["line"], environment, order["timeout_s"], spared=lambda: stage.processes, abandoned=self._abandoned)
            return asdict(done)
        try:
            if do == "unmount":
                stage.unmount(self._end_users)
                return {}
            return {"place": stage.device() if do == "device" else stage.mount()}
        except (StageError, OSError) as error:
            return {"error": str(error)}

    def _new_stage(self, uri: str) -> Stage:
        return Stage(self._folder, uri, self._environment, is_root=os.geteuid() == 0)

    def _clear(self) -> list[str]:
        stage, self._stage = self._stage, None
        self._end_users(stage)
        return [] if stage is None else stage.clear(lambda: self._end_users(stage))

    def _end_users(self, stage: Stage | None = None) -> int:
        shown = stage or self._stage
        return end_descendants(set() if shown is None else shown.processes)

    def _next_line(self) -> bytes | None:
        """Return the next order, None when there is nobody to give one."""
        while b"\n" not in self._waiting:
            data = self._input.read(1 << 16)
            if not data:
                return None
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line

    def _abandoned(self) -> bool:
        """Tell whether the drill has gone. It says nothing while a check runs, so what is readable is the end."""
        poll = select.poll()
        poll.register(self._input, select.POLLIN)
        return bool(poll.poll(0))


def main() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    become_subreaper()
    Keeper(Path(sys.argv[1]), dict(os.environ)).run()


if __name__ == "__main__":
    main()
