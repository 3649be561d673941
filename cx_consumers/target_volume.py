"""One volume's thread at the target: sessions one after the other, and what an error means for the next one.

RetryError and ResyncError: back off and begin again from the checkpoint. ConfigError: parked, looked at again every `CONFIG_RETRY_S`,
since the operator may have set it right. IntegrityError, FencedError: parked for good; the other volumes go on (design rule 22).
Anything else is our bug: the process ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from cx_consumers.target_facts import Board, VolumeFacts
from cx_consumers.target_session import Session
from cx_consumers.target_task import Surroundings, Task
from stream.errors import ConfigError, HostoffloadError, ResyncError, RetryError
from stream.log import Repeats

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0
CONFIG_RETRY_S = 5.0
_logger = logging.getLogger(__name__)


class VolumeTarget:
    """Keep one replica in a thread of its own, from the construction until `stop`."""

    def __init__(
        self, task: Task, surround: Callable[[Task, threading.Event, Callable], Surroundings], board: Board, on_bug: Callable[[], None]
    ) -> None:
        self.task = task
        self._board = board
        self._on_bug = on_bug
        self._stopped = threading.Event()
        self._facts = VolumeFacts(path=task.path, delay_s=task.delay_s)
        self._repeats = Repeats()
        self._around = surround(task, self._stopped, self._publish)
        self._thread = threading.Thread(target=self._run, name=f"target-{task.volume}", daemon=True)
        self._publish(self._facts)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the thread end after what it is doing; returns at once."""
        self._stopped.set()

    def stop(self, timeout_s: float | None = None) -> bool:
        """End the thread cleanly; tell whether it ended in time."""
        self._stopped.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def facts(self) -> VolumeFacts:
        return self._facts

    def _publish(self, facts: VolumeFacts) -> None:
        self._facts = facts
        self._board.publish(self.task.volume, facts)

    def _run(self) -> None:
        backoff_s = BACKOFF_S_MIN
        while not self._stopped.is_set():
            began = self._facts.position
            session = Session(self.task, self._around, self._facts)
            try:
                session.run()
            except HostoffloadError as error:
                if self._facts.position > began:
                    backoff_s = BACKOFF_S_MIN
                pause_s = self._pause(error, backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_S_MAX)
                self._stopped.wait(pause_s)
            except Exception:
                _logger.exception("target_failed")
                self._on_bug()
                return

    def _pause(self, error: HostoffloadError, backoff_s: float) -> float | None:
        """Tell the error; return how long to wait, None for good."""
        if isinstance(error, RetryError | ResyncError):
            state, level, pause_s = "retrying", logging.WARNING, backoff_s
        elif isinstance(error, ConfigError):
            state, level, pause_s = "parked", logging.ERROR, CONFIG_RETRY_S
        else:
            state, level, pause_s = "parked", logging.ERROR, None
        self._publish(replace(self._facts, state=state, held=False, verify_percent=None, error=error.sentence, hint=error.hint or None))
        facts = {key: value for key, value in error.facts.items() if key != "volume"}
        self._repeats.event(_logger, level, "target_stops", volume=self.task.volume, error=error.sentence, hint=error.hint, **facts)
        return pause_s
