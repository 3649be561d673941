"""The intake's room: bounded for all volumes together, guaranteed to each, in order, given back."""

from __future__ import annotations

import asyncio

from cx_consumers.intake import TAKE_BYTES_MAX, Acknowledgements, Arrival, Inbox, Intake

MAX = 1000


def arrival(kafka_offset: int, size: int = 100) -> Arrival:
    return Arrival(kafka_offset, bytes(size), lambda: None)


def opened(intake: Intake, volume: str) -> Inbox:
    inbox = intake.new_inbox(volume)
    inbox.open()
    return inbox


async def filled(intake: Intake, volume: str, size: int = 100) -> int:
    """Put until it would have to wait; return how many were taken."""
    count = 0
    while True:
        try:
            await asyncio.wait_for(intake.put(volume, arrival(count, size)), 0.01)
        except TimeoutError:
            return count
        count += 1


def test_order_is_kept_and_room_is_given_back() -> None:
    async def check() -> None:
        intake = Intake(MAX, asyncio.get_running_loop())
        inbox = opened(intake, "v")
        for number in range(10):
            await intake.put("v", arrival(number))
        waiting = asyncio.ensure_future(intake.put("v", arrival(10)))
        await asyncio.sleep(0)
        assert not waiting.done()
        taken = inbox.take(0)
        assert [one.kafka_offset for one in taken] == list(range(10))
        await asyncio.sleep(0)
        assert not waiting.done(), "what was taken is still held"
        inbox.give_back(1000)
        await asyncio.wait_for(waiting, 1)
        assert [one.kafka_offset for one in inbox.take(0)] == [10]

    asyncio.run(check())


def test_one_volume_may_use_all_and_several_share() -> None:
    async def check() -> None:
        alone = Intake(MAX, asyncio.get_running_loop())
        opened(alone, "v")
        assert await filled(alone, "v") == 10
        intake = Intake(MAX, asyncio.get_running_loop())
        stuck, other = opened(intake, "stuck"), opened(intake, "other")
        assert await filled(intake, "stuck") == 7  # its share of 250, and the 500 that all may use
        assert await filled(intake, "other") == 3
        assert stuck.held_bytes + other.held_bytes <= MAX

    asyncio.run(check())


def test_a_message_larger_than_the_share_passes_alone() -> None:
    async def check() -> None:
        intake = Intake(MAX, asyncio.get_running_loop())
        opened(intake, "a")
        inbox = opened(intake, "b")
        assert await filled(intake, "b", size=5 * MAX) == 1
        assert len(inbox.take(0)) == 1

    asyncio.run(check())


def test_nobody_takes_what_no_worker_opened() -> None:
    async def check() -> None:
        intake = Intake(MAX, asyncio.get_running_loop())
        assert await filled(intake, "v") == 0
        inbox = intake.new_inbox("v")
        waiting = asyncio.ensure_future(intake.put("v", arrival(0)))
        await asyncio.sleep(0)
        assert not waiting.done()
        inbox.open()
        await asyncio.wait_for(waiting, 1)
        replaced = intake.new_inbox("v")
        assert (inbox.held_bytes, inbox.offer(arrival(1))) == (0, False)
        replaced.open()
        assert replaced.offer(arrival(1))
        intake.forget("v")
        assert replaced.held_bytes == 0

    asyncio.run(check())


def test_take_stops_at_its_limit_of_bytes() -> None:
    async def check() -> None:
        intake = Intake(8 * TAKE_BYTES_MAX, asyncio.get_running_loop())
        inbox = opened(intake, "v")
        for number in range(4):
            await intake.put("v", arrival(number, TAKE_BYTES_MAX // 2))
        assert [one.kafka_offset for one in inbox.take(0)] == [0, 1]
        assert [one.kafka_offset for one in inbox.take(0)] == [2, 3]
        assert inbox.take(0) == []

    asyncio.run(check())


def test_acknowledgements_come_in_order_in_the_loop() -> None:
    async def check() -> None:
        done: list[int] = []
        acknowledgements = Acknowledgements(asyncio.get_running_loop())
        await asyncio.to_thread(acknowledgements.add, [lambda: done.append(1), lambda: done.append(2)])
        await asyncio.to_thread(acknowledgements.add, [lambda: done.append(3)])
        await asyncio.sleep(0)
        assert done == [1, 2, 3]

    asyncio.run(check())
