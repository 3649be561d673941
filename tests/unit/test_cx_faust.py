"""Faust when Kafka goes away from it: an error of ours that says what to do, and no traceback in the log."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError

from cx_consumers.app import FaustIntake, _ConsumerThread
from cx_consumers.intake import Intake
from stream.config import KafkaConfig
from stream.errors import RetryError


def test_faust_that_finds_no_kafka_asks_to_be_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]

    async def start() -> None:
        intake = Intake(1 << 20, asyncio.get_running_loop())
        faust = FaustIntake(KafkaConfig(bootstrap=f"127.0.0.1:{port}"), tmp_path, "w", intake, lambda _: None)
        try:
            await faust.start(frozenset({"v"}))
        finally:
            await faust.stop()

    with pytest.raises(RetryError) as caught:
        asyncio.run(start())
    assert caught.value.hint
    assert "Traceback" not in capfd.readouterr().err


def test_a_consumer_thread_that_ends_says_so_in_one_line(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    thread = _ConsumerThread.__new__(_ConsumerThread)
    with caplog.at_level(logging.WARNING, logger="cx_consumers.app"):
        try:
            raise KafkaConnectionError("nobody there")
        except KafkaConnectionError as error:
            thread.on_crash("{0!r} crashed: {1!r}", "thread", error)
    (record,) = caplog.records
    assert record.getMessage() == "consumer_ended" and "nobody there" in record.fields["error"]
    assert capfd.readouterr().err == ""
