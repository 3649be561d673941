"""One volume's worker: the thread that takes the volume, orders it until it is lost or stopped, and takes it again after an error.

The Faust app starts one when it is assigned the volume's partition and stops it when the partition is gone. Errors of the infrastructure
mean: back off, take the volume again, with a new fence. Wrong bytes park this volume alone, a wrong config or a topic that takes no message
of this size until it is right, which is looked at every `CONFIG_RETRY_S` (design rule 22).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from cx_consumers.intake import Inbox
from cx_consumers.ordering import Ordering, Progress, Shared, StoppedError
from stream.errors import ConfigError, FencedError, HostoffloadError, ResyncError, RetryError, TooLargeError
from stream.log import Repeats
from stream.position import ZERO, Position

BACKOFF_S = 0.05
BACKOFF_S_MAX = 2.0
CONFIG_RETRY_S = 5.0
_log = logging.getLogger(__name__)


class VolumeWorker:
    """Order one volume. Every method may be called from any thread."""

    def __init__(self, volume: str, codec: str, inbox: Inbox, shared: Shared, crashed: Callable[[BaseException], None]) -> None:
        self.volume = volume
        self._codec = codec
        self._inbox = inbox
        self._shared = shared
        self._crashed = crashed
        self._stop = threading.Event()
        self._progress = Progress()
        self._repeats = Repeats()
        self._parked = False
        self._thread = threading.Thread(target=self._run, name=f"order-{volume}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Have the worker finish what it has in hand and stop; return at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until the worker has stopped; tell whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def refused(self, position: Position) -> None:
        """Learn that the agent no longer holds a position it was asked for."""
        self._progress.refused = position

    def saw_topic(self, topic_id: str) -> None:
        """Learn which id the writes topic has now."""
        self._progress.topic_id = topic_id

    def facts(self) -> tuple[Position, dict[str, Any]]:
        """Return the newest position durable in the journal, and the facts beside it."""
        progress = self._progress
        durable, error = progress.durable, progress.error
        gaps = durable.open_gaps if durable is not None else ()
        return durable.position if durable is not None else ZERO, {
            "fenced_dropped": progress.fenced_dropped,
            "duplicates": progress.duplicates,
            "out_of_sequence": progress.out_of_sequence,
            "gaps": progress.gaps,
            "open_gaps": len(gaps),
            "open_gap": f"{gaps[0].position} {gaps[0].reason}" if gaps else None,
            "takeovers": progress.takeovers,
            "journaled_bytes": progress.journaled_bytes,
            "backlog_bytes": self._inbox.held_bytes,
            "parked": self._parked and error is not None,
            "error": str(error) if error is not None else None,
            "error_hint": (error.hint or None) if error is not None else None,
        }

    def _run(self) -> None:
        progress, backoff_s = self._progress, BACKOFF_S
        while not self._stop.is_set():
            before = progress.journaled_bytes
            try:
                Ordering(self.volume, self._codec, self._inbox, self._shared, progress, self._stop.is_set).hold()
            except (RetryError, ResyncError, FencedError) as error:  # what is gone is looked at by the next take-over; a fenced producer is
                self._parked = False  # done for, no more: who has the volume is decided in the journal
                backoff_s = BACKOFF_S if progress.journaled_bytes > before else min(backoff_s * 2, BACKOFF_S_MAX)
                progress.error = error
                self._repeats.event(_log, logging.WARNING, "order_retries", volume=self.volume, error=str(error), hint=error.hint or None)
                self._stop.wait(backoff_s)
            except HostoffloadError as error:
                progress.error, self._parked = error, True
                self._repeats.event(_log, logging.ERROR, "volume_parked", volume=self.volume, error=str(error), hint=error.hint or None)
                self._stop.wait(CONFIG_RETRY_S if isinstance(error, ConfigError | TooLargeError) else None)
            except StoppedError:
                return
            except BaseException as error:
                self._crashed(error)
                return
