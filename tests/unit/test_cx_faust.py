"""Faust when Kafka goes away from it: an error of ours that says what to do, and no traceback in the log."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

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


class _TornAway:
    """A consumer that a rebalance took the partition from, as aiokafka answers then."""

    in_transaction = False

    def assignment(self) -> frozenset[object]:
        return frozenset()

    def highwater(self, partition: object) -> int:
        raise AssertionError("Partition is not assigned")


def test_a_partition_that_goes_while_its_messages_are_handed_out_does_not_end_the_worker() -> None:
    thread = _ConsumerThread.__new__(_ConsumerThread)
    thread.consumer = thread._consumer = _TornAway()
    assert thread.highwater(TP("ho.v.writes", 0)) == 0


_STUCK = """
import asyncio, sys, threading, time
from pathlib import Path
from cx_consumers import app
from stream.config import load
worker = app.Worker.__new__(app.Worker)
worker._failure = None
app.STOP_S_MAX = 0.2
worker._declared = worker._volumes = type("Nothing", (), {"stop": lambda *_: None})()
worker._asks = worker._volumes
worker._stopping = threading.Event()
worker._faust = None
threading.Thread(target=time.sleep, args=(600,)).start()
asyncio.run(worker._stop())
"""


def test_a_worker_whose_foreign_thread_never_ends_ends_all_the_same() -> None:
    told = subprocess.run([sys.executable, "-c", _STUCK], capture_output=True, timeout=30, check=False)
    assert told.returncode == 0, told.stderr
