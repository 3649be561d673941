"""The form of a log line: as text, and as JSON that a machine can rely on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from stream.config import LogConfig
from stream.log import configure, event
from stream.position import Position

_log = logging.getLogger("tests.log")


@pytest.fixture(autouse=True)
def kept_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def line(capsys: pytest.CaptureFixture[str]) -> dict:
    (text,) = capsys.readouterr().err.splitlines()
    return json.loads(text)


def test_fields_keep_their_names_and_numbers_stay_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"), "cx")
    event(_log, logging.WARNING, "segment_stored", volume="db", bytes=12, lag_ms=0.5, clean=True, position=Position(1, 2), hint=None)
    told = line(capsys)
    assert isinstance(told.pop("at"), float)
    position = "00000001-0000000000000002"
    assert told == {
        "level": "warning", "service": "cx", "event": "segment_stored",
        "volume": "db", "bytes": 12, "lag_ms": 0.5, "clean": True, "position": position,
    }  # fmt: skip


def test_a_field_does_not_hide_who_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"), "supervisor")
    event(_log, logging.INFO, "process_started", process="cx", service="other", at=3)
    told = line(capsys)
    assert (told["service"], told["process"], told["service_"], told["at_"]) == ("supervisor", "cx", "other", 3)


def test_a_bug_is_one_line_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"), "cx")
    try:
        raise ValueError("planted")
    except ValueError:
        _log.error("crashed", exc_info=sys.exception())
    assert "ValueError: planted" in line(capsys)["trace"]


def test_as_text_it_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="text", level="warning"), "cx")
    event(_log, logging.INFO, "not_written")
    event(_log, logging.WARNING, "written", volume="db")
    (text,) = capsys.readouterr().err.splitlines()
    assert text.endswith(" warning cx written volume=db")
