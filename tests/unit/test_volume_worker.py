"""An order worker whose journal refuses: parked as long as nothing can change, looked at again when an operator may have put it right."""

from __future__ import annotations

import pytest

from cx_consumers import volume_worker
from cx_consumers.ordering import StoppedError
from cx_consumers.volume_worker import VolumeWorker
from stream.errors import ConfigError, HostoffloadError, TooLargeError


@pytest.mark.parametrize("kind", [ConfigError, TooLargeError])
def test_what_an_operator_can_put_right_is_tried_again(monkeypatch: pytest.MonkeyPatch, kind: type[HostoffloadError]) -> None:
    """Design rule 23: a journal whose message limit was lowered goes on when it is raised."""
    ends: list[Exception] = [kind("planted"), kind("planted"), StoppedError()]

    class FakeOrdering:
        def __init__(self, *_: object) -> None:
            """Nothing is read."""

        def hold(self) -> None:
            raise ends.pop(0)

    monkeypatch.setattr(volume_worker, "Ordering", FakeOrdering)
    monkeypatch.setattr(volume_worker, "CONFIG_RETRY_S", 0.0)
    crashes: list[BaseException] = []
    worker = VolumeWorker("v", "none", None, None, crashes.append)
    worker.start()
    assert worker.join(30)
    assert (ends, crashes) == ([], [])
