"""Progress of a command that waits: a bar on a terminal; elsewhere a line now and then. On stderr, as all that is not the answer."""

from __future__ import annotations

import sys
import time

from hostoffload.context import Context

SAY_INTERVAL_S = 5.0


class Progress:
    """Shown from `with` on; it leaves nothing on a terminal when it ends."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._name = name
        self._bar = None
        self._task = None
        self._next_s = time.monotonic() + SAY_INTERVAL_S

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
            self._bar = Bars(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._name, total=100, told="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, told: str, percent: float | None) -> None:
        """Show what is going on and how far it is; call it as often as you look."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=percent or 0.0, told=told)
        elif time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + SAY_INTERVAL_S
            self._context.say(f"{self._name}: {told}")
