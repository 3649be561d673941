"""Digests that the agent asks for: which requests are answered, when, and from which bytes (design rule 3)."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from cx_consumers import target as target_module
from cx_consumers.target import Target
from cx_consumers.target_digests import (
    ASK_BYTES_MAX,
    DIGEST_CHUNK_BYTES,
    PIECE_BYTES_MAX,
    UNREADABLE,
    WAITING_MAX,
    DigestAsk,
    DigestServer,
    Inbox,
    digest_ask,
)
from cx_consumers.target_facts import Board
from stream.config import Config, TargetConfig
from stream.control import Answer, Replica, Request, VolumeDeclaration
from stream.errors import ConfigError
from stream.position import Position
from stream.record import Kind
from tests.journal_maker import mark, write
from tests.target_script import Script, script
from tests.target_world import World, stamped

SIZE = 5 * DIGEST_CHUNK_BYTES + 100
GAP = Position(1, 50)


def _request(gap: Position | str, extents: str, *, page: int = 0, target: str = "target") -> Request:
    return Request(f"digest-v1-{gap}-{target}-{page}", "digest", "v1", {"target": target, "gap": str(gap), "extents": extents})


def _digests(held: bytes, *spans: tuple[int, int]) -> str:
    chunks = [held[at : min(at + DIGEST_CHUNK_BYTES, end)] for start, end in spans for at in range(start, end, DIGEST_CHUNK_BYTES)]
    return base64.b64encode(b"".join(xxhash.xxh3_128_digest(bytes(one)) for one in chunks)).decode()


# --- requests


def test_a_request_is_read() -> None:
    ask = digest_ask(_request(GAP, f"0-{2 * DIGEST_CHUNK_BYTES},{4 * DIGEST_CHUNK_BYTES}-{SIZE}"))
    assert (ask.volume, ask.gap, ask.spans) == ("v1", GAP, ((0, 2 * DIGEST_CHUNK_BYTES), (4 * DIGEST_CHUNK_BYTES, SIZE)))


@pytest.mark.parametrize(
    ("gap", "extents"),
    [
        ("", "0-65536"),
        ("1-50", "0-65536"),
        (GAP, ""),
        (GAP, "0-65536,"),
        (GAP, "1-65536"),
        (GAP, "0-65535,65536-131072"),
        (GAP, "65536-131072,0-65536"),
        (GAP, f"0-{ASK_BYTES_MAX + DIGEST_CHUNK_BYTES}"),
        (GAP, ",".join(f"{at}-{at + 65536}" for at in range(0, 131072 * 4097, 131072))),
    ],
)
def test_a_request_that_says_nonsense_is_refused(gap: Position | str, extents: str) -> None:
    with pytest.raises(ConfigError):
        digest_ask(_request(gap, extents))


# --- pieces


class _Disk:
    """A replica of made-up digests that counts what is read of it."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def digest(self, offset_bytes: int, length_bytes: int, *, from_disk: bool = False) -> bytes | None:
        self.read_bytes += length_bytes
        return offset_bytes.to_bytes(16, "big") if offset_bytes else None


def test_a_large_request_is_read_in_pieces_and_told_with_the_position_of_the_first() -> None:
    inbox, disk, told = Inbox(), _Disk(), []
    server = DigestServer(inbox, disk, told.append, "t1")
    length = 2 * PIECE_BYTES_MAX + DIGEST_CHUNK_BYTES
    inbox.put(DigestAsk("a", "v1", GAP, ((0, length),)))
    for turn in range(3):
        assert server.waits(Position(1, 60 + turn), None)
        server.serve(Position(1, 60 + turn), None)
        assert disk.read_bytes == min(length, (turn + 1) * PIECE_BYTES_MAX)
    (answer,) = told
    assert (answer.id, answer.done, answer.attributes["position"], answer.answered_by) == ("a", True, str(Position(1, 60)), "target/t1")
    digests = base64.b64decode(answer.attributes["digests"])
    assert len(digests) == 16 * length // DIGEST_CHUNK_BYTES
    assert digests[:16] == UNREADABLE
    assert digests[16:32] == DIGEST_CHUNK_BYTES.to_bytes(16, "big")
    assert not server.waits(Position(1, 70), None)


def test_a_request_that_is_given_up_is_read_no_further() -> None:
    inbox, disk, told = Inbox(), _Disk(), []
    server = DigestServer(inbox, disk, told.append, "t1")
    inbox.put(DigestAsk("a", "v1", GAP, ((0, 2 * PIECE_BYTES_MAX),)))
    server.serve(GAP, None)
    inbox.put(DigestAsk("b", "v1", GAP, ((0, DIGEST_CHUNK_BYTES),)))
    inbox.drop("a")
    server.serve(GAP, None)
    assert [one.id for one in told] == ["b"]
    assert disk.read_bytes == PIECE_BYTES_MAX + DIGEST_CHUNK_BYTES


def test_an_inbox_has_room_for_so_many() -> None:
    inbox = Inbox()
    asks = [DigestAsk(str(number), "v1", GAP, ((0, 1),)) for number in range(WAITING_MAX + 1)]
    assert [inbox.put(one) for one in asks] == [True] * WAITING_MAX + [False]
    assert inbox.put(asks[0]), "the same again takes no room"
    inbox.keep(["7"])
    assert inbox.find(lambda _: True) == asks[7]


# --- the session


def _world(made: Script, mode: str = "hold", **more: object) -> World:
    config = replace(Config(), target=TargetConfig(during_resync=mode))
    return World(SIZE, stamped(made.maker.messages), config, idle_polls=3, **more)


def _ask(world: World, gap: Position, *spans: tuple[int, int]) -> Request:
    request = _request(gap, ",".join(f"{start}-{end}" for start, end in spans))
    world.inbox.put(digest_ask(request))
    return request


def test_a_hold_answers_from_the_bytes_right_before_the_gap() -> None:
    made = script(SIZE, 1)
    made.maker.batch(write(0, b"in order" * 1000))
    position = made.position(1)
    made.open(position, "unclean_stop")
    made.maker.batch(write(100_000, b"still in order"), mark(Kind.GAP_BEGIN, reason="unclean_stop"), write(0, b"later"))
    world = _world(made)
    request = _ask(world, position, (0, 2 * DIGEST_CHUNK_BYTES), (4 * DIGEST_CHUNK_BYTES, SIZE))
    world.live()
    assert world.facts.held
    held_at = Position(1, position.sequence - 1)
    (answer,) = world.answered
    assert (answer.id, answer.done, answer.attributes["position"]) == (request.id, True, str(held_at))
    held = made.image(held_at)
    assert answer.attributes["digests"] == _digests(held, (0, 2 * DIGEST_CHUNK_BYTES), (4 * DIGEST_CHUNK_BYTES, SIZE))
    world.live()
    assert len(world.answered) == 1


def test_an_unclean_epoch_is_held_and_served() -> None:
    made = script(SIZE, 1)
    made.batch()
    held_at = made.maker.last
    made.maker.epoch += 1
    position = made.position(0)
    made.open(position, "unclean_stop")
    made.maker.batch(mark(Kind.EPOCH_START, clean="false", first="false", size_bytes=str(SIZE)), write(0, b"new"))
    world = _world(made)
    _ask(world, position, (0, SIZE))
    world.live()
    (answer,) = world.answered
    assert answer.attributes["position"] == str(held_at)
    assert answer.attributes["digests"] == _digests(made.image(held_at), (0, SIZE))


def test_a_target_that_follows_answers_once_it_has_applied_the_gaps_beginning() -> None:
    made = script(SIZE, 1)
    made.gap(close=False)
    position = made.maker.open_gaps[-1].position
    world = _world(made, "follow")
    _ask(world, position, (0, SIZE))
    world.live()
    (answer,) = world.answered
    assert answer.attributes["position"] >= str(position)
    assert answer.attributes["digests"] == _digests(made.image(Position.parse(answer.attributes["position"])), (0, SIZE))


@pytest.mark.parametrize("mode", ["hold", "follow"])
def test_nothing_is_answered_for_a_gap_that_is_not_reached(mode: str) -> None:
    """Held before the first of two gaps, the replica lacks what stands between them."""
    made = script(SIZE, 1)
    made.gap(close=False)
    made.batch()
    second = made.position(0)
    made.open(second, "unclean_stop")
    made.maker.batch(mark(Kind.GAP_BEGIN, reason="unclean_stop"))
    world = _world(made, mode)
    if mode == "follow":
        world.messages = world.messages[:-1]
    _ask(world, second, (0, SIZE))
    world.live()
    assert world.answered == []
    world.messages = stamped(made.maker.messages)
    made.close(*(gap.position for gap in made.maker.open_gaps))
    world.messages = stamped(made.maker.messages)
    world.live()
    assert len(world.answered) == 1, "by then both are behind it"


def test_what_lies_behind_the_replicas_end_equals_nothing() -> None:
    made = script(SIZE, 1)
    world = _world(made)
    end = SIZE + DIGEST_CHUNK_BYTES - SIZE % DIGEST_CHUNK_BYTES
    _ask(world, made.maker.last, (0, end + DIGEST_CHUNK_BYTES))
    world.live()
    held = bytes(made.image())
    assert world.answered[0].attributes["digests"] == _digests(held, (0, SIZE), (end, end + DIGEST_CHUNK_BYTES))


# --- the process


class _Writer:
    """Keeps what would go into `ho.control`."""

    def __init__(self) -> None:
        self.told: list[Answer] = []

    def put(self, entry: Answer) -> None:
        self.told.append(entry)


class _Running:
    """A volume's thread that does nothing."""

    def __init__(self, task, surround: Callable, board: Board, on_bug: Callable[[], None]) -> None:
        self.task = task
        self.inbox = surround(task, threading.Event(), lambda _: None).digests

    def stop(self, timeout_s: float | None = None) -> bool:
        return True


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Target:
    monkeypatch.setattr(target_module, "VolumeTarget", _Running)
    monkeypatch.setattr(target_module, "Topics", lambda config: None)
    return Target(Config(), tmp_path, _Writer(), Board())


def _declared(state: str = "active") -> VolumeDeclaration:
    return VolumeDeclaration("v1", "agent", "/source", SIZE, state, replicas=(Replica("target", "/replica"),))


def _waiting(target: Target) -> DigestAsk | None:
    return target._running["v1"].inbox.find(lambda _: True)


def test_a_request_reaches_its_volume_and_is_dropped_with_its_tombstone(target: Target) -> None:
    request = _request(GAP, "0-65536")
    target.begin({"request/x": request, "volume/v1": _declared()})
    assert _waiting(target).id == request.id
    target.hear(request.key, None)
    assert _waiting(target) is None
    target.hear(request.key, request)
    assert _waiting(target) == digest_ask(request)
    target.begin({"volume/v1": _declared()})
    assert _waiting(target) is None, "gone while control could not be read"
    assert target._writer.told == []


def test_requests_of_others_are_ignored(target: Target) -> None:
    target.begin({"volume/v1": _declared()})
    target.hear("", _request(GAP, "0-65536", target="another"))
    target.hear("", replace(_request(GAP, "0-65536"), kind="verify"))
    assert (_waiting(target), target._writer.told) == (None, [])


def test_a_request_that_can_not_be_served_is_answered_with_the_reason(target: Target) -> None:
    unknown = _request(GAP, "0-65536")
    target.hear(unknown.key, unknown)
    target.begin({"volume/v1": _declared()})
    wrong = _request(GAP, "5-6", page=1)
    target.hear(wrong.key, wrong)
    target.hear("volume/v1", _declared("removed"))
    late = _request(GAP, "0-65536", page=2)
    target.hear(late.key, late)
    told = target._writer.told
    assert [(one.id, one.done) for one in told] == [(unknown.id, False), (wrong.id, False), (late.id, False)]
    assert all(one.attributes["error"] for one in told)
