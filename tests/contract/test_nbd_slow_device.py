"""A device that was seen to be slow gets a client's requests side by side; how slowness is told from a busy machine."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator

import pytest
from nbd_line import FLUSH, FUA, READ, SIZE_BYTES, WRITE, ZERO, Line, request
from nbd_memory_device import MemoryDevice

from nbd.apart import Crowd, Gauge


@pytest.fixture
def slow_line() -> Iterator[Line]:
    line = Line(MemoryDevice(SIZE_BYTES, concurrent=True))
    gauge = line.transmission._gauge
    gauge.slow, gauge._until = True, float("inf")
    yield line
    line.end()


def test_a_slow_device_sees_requests_side_by_side(slow_line: Line) -> None:
    barrier, write = threading.Barrier(16, timeout=20), slow_line.session.write

    def meet(*arguments: object) -> None:
        barrier.wait()
        write(*arguments)

    slow_line.session.write = meet
    slow_line.sock.sendall(b"".join(request(WRITE, n, n * 512, 512, 0, bytes([n + 1]) * 512) for n in range(16)))
    assert sorted(slow_line.reply() for _ in range(16)) == [(n, 0, b"") for n in range(16)]
    for n in range(16):
        assert slow_line.device.data[n * 512 : (n + 1) * 512] == bytes([n + 1]) * 512


def test_a_slow_device_loses_nothing(slow_line: Line) -> None:
    """More than a chunk in flight, with all kinds of requests; extents don't overlap, so order does not matter."""
    dice, model, stream, total = random.Random(5), bytearray(SIZE_BYTES), bytearray(), 0
    for n in range(400):
        offset, length = n * 70_000, dice.choice([1, 512, 4096, 4096, 30_000, 66_000])
        payload = dice.randbytes(length)
        model[offset : offset + length] = payload
        stream += request(WRITE, total, offset, length, FUA if dice.random() < 0.1 else 0, payload)
        stream += request(FLUSH, total + 1) + request(READ, total + 2, 30 << 20, 1000) + request(ZERO, total + 3, 33 << 20, 10)
        total += 4
    answered: list[tuple[int, int, bytes]] = []
    reader = threading.Thread(target=lambda: answered.extend(slow_line.reply() for _ in range(total)))
    reader.start()
    slow_line.sock.sendall(stream)
    reader.join(20)
    assert sorted(cookie for cookie, _, _ in answered) == list(range(total))
    assert not any(error for _, error, _ in answered)
    assert slow_line.device.data == model


def test_a_slow_device_s_failures_are_told(slow_line: Line) -> None:
    slow_line.device.failures = {"write": errno.ENOSPC, "read": errno.EIO}
    slow_line.sock.sendall(b"".join(request(WRITE, n, 0, 3, FUA, b"abc") + request(READ, n + 1, 0, 3) for n in range(0, 20, 2)))
    assert sorted(slow_line.reply()[:2] for _ in range(20)) == [(n, errno.EIO if n % 2 else errno.ENOSPC) for n in range(20)]


def test_replies_do_not_wait_for_a_long_batch(slow_line: Line) -> None:
    gauge, write, gate = slow_line.transmission._gauge, slow_line.session.write, threading.Event()
    gauge.slow, gauge.answer_every = False, 2

    def stop_at_the_fifth(offset: int, *rest: object) -> None:
        assert offset != 4 * 512 or gate.wait(20)
        write(offset, *rest)

    slow_line.session.write = stop_at_the_fifth
    slow_line.sock.sendall(b"".join(request(WRITE, n, n * 512, 512, 0, bytes(512)) for n in range(6)))
    assert [slow_line.reply() for _ in range(4)] == [(n, 0, b"") for n in range(4)]
    gate.set()
    assert [slow_line.reply() for _ in range(2)] == [(n, 0, b"") for n in range(4, 6)]


def test_a_fast_device_s_batch_is_answered_by_one_send() -> None:
    gauge = Gauge(Crowd())
    assert gauge.answer_every >= 64
    for n in range(50):
        feed(gauge, 0.000003, 0, n)
    assert gauge.answer_every >= 60
    for n in range(50):
        feed(gauge, 0.00005, 0, n)
    assert 1 <= gauge.answer_every <= 8


def feed(gauge: Gauge, each_s: float, waits: int, now: float) -> None:
    gauge.note(each_s * 32, 32, 32 * 4096, now, waits)


def test_slowness_is_noticed_and_forgotten() -> None:
    gauge = Gauge(Crowd())
    for n in range(100):
        feed(gauge, 0.00001, 0, n)
    assert not gauge.suspect
    feed(gauge, 0.001, 0, 200)
    assert gauge.suspect
    assert not gauge.slow
    feed(gauge, 0.001, 32, 201)
    assert gauge.slow
    assert not gauge.probe_due(201.09)
    assert gauge.probe_due(201.11)
    feed(gauge, 0.001, 32, 202)
    assert not gauge.probe_due(202.19), "held for longer each time"
    for n in range(10):
        feed(gauge, 0.00001, 0, 300 + n)
    assert not gauge.slow
    assert not gauge.suspect


def test_a_busy_machine_is_no_slow_device() -> None:
    gauge = Gauge(Crowd())
    for n in range(100):
        feed(gauge, 0.005, 3, n)
    assert gauge.suspect
    assert not gauge.slow


def test_long_writes_are_not_slow_for_their_length() -> None:
    gauge = Gauge(Crowd())
    for n in range(100):
        gauge.note(0.0008, 1, 1 << 20, n)
    assert not gauge.suspect
