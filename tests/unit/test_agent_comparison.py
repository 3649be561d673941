"""The comparison with the targets: asked page by page, by all of them or not at all, never for longer than allowed, never an old answer."""

from __future__ import annotations

import base64
import hashlib
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import comparison as comparison_module
from agent import digest_file
from agent import ring as layout
from agent.comparison import Comparison, Comparisons, pages
from agent.ring import VolumeRing
from stream.control import Answer, Entry, Request
from stream.errors import RetryError

KIB64 = 64 << 10
SIZE = 40 * KIB64 + 1000
GAP = "00000002-0000000000000041"
RIGHT_BEFORE = "00000001-0000000000000040"


def digest_at(target: str, offset: int) -> bytes:
    """What a target would answer for a chunk; any 16 bytes do."""
    return hashlib.md5(f"{target} {offset}".encode()).digest()


class FakeExchange:
    """`ho.control` and its targets in memory. Time passes in `wait` alone."""

    def __init__(self, *targets: str) -> None:
        self.declared: tuple[str, ...] | None = targets
        self.entries: dict[str, Entry] = {}
        self.asked: list[Request] = []
        self.forgotten: list[str] = []
        self.now_s = 0.0
        self.failures = 0
        self.on_ask: Callable[[Request], None] = self.answer_well
        self.on_wait: Callable[[], None] = lambda: None

    def targets(self, volume: str) -> tuple[str, ...] | None:
        return self.declared

    def put(self, entry: Entry) -> None:
        if self.failures:
            self.failures -= 1
            self.now_s += 1
            raise RetryError("planted: the broker is away")
        self.entries[entry.key] = entry
        self.asked.append(entry)
        self.on_ask(entry)

    def forget(self, key: str) -> None:
        self.forgotten.append(key)
        self.entries.pop(key, None)

    def answer(self, request_id: str) -> Answer | None:
        return self.entries.get(f"answer/{request_id}")

    def left_over(self, volume: str) -> list[str]:
        return [key for key in self.entries if f"/digest-{volume}-" in key]

    def wait(self, timeout_s: float) -> None:
        self.now_s += max(timeout_s, 0.001)
        self.on_wait()

    # -- targets -------------------------------------------------------------------------------------------------------

    def answer_well(self, request: Request) -> None:
        self.tell(request, digests=self.digests(request))

    def digests(self, request: Request) -> bytes:
        told = request.attributes
        runs = [tuple(map(int, part.split("-"))) for part in told["extents"].split(",")]
        return b"".join(digest_at(told["target"], at) for start, end in runs for at in range(start, end, KIB64))

    def tell(self, request: Request, *, done: bool = True, digests: bytes = b"", position: str = RIGHT_BEFORE) -> None:
        attributes = {"position": position, "digests": base64.b64encode(digests).decode()}
        self.entries[f"answer/{request.id}"] = Answer(request.id, done, attributes, f"target/{request.attributes['target']}")


class Bench:
    def __init__(self, folder: Path, *targets: str, size_bytes: int = SIZE, wait_s: float = 20.0) -> None:
        self.ring = VolumeRing.create(folder / "v.ring", "v", size_bytes)
        self.exchange = FakeExchange(*targets)
        self.wait_s = wait_s
        self.stopped = False
        self.path = folder / "v.digests"
        self.want()

    def want(self, gap: str = GAP) -> None:
        self.ring.set_text("compare_gap", gap)
        self.ring.words[layout.W_COMPARE] = layout.COMPARE_WANTED

    def comparison(self) -> Comparison:
        return Comparison(self.ring, "me", self.exchange, self.wait_s, lambda: self.stopped, lambda: self.exchange.now_s)

    def run(self) -> int:
        self.comparison().run()
        return self.ring.words[layout.W_COMPARE]

    def rows(self) -> list[tuple[int, bytes]]:
        """Read the file by its text: the first row names the gap."""
        raw = self.path.read_bytes()
        (marker, epoch, sequence), rest = struct.unpack("=QQQ", raw[:24]), raw[24:]
        assert (marker, f"{epoch:08d}-{sequence:016d}") == (2**64 - 1, self.ring.text("compare_gap"))
        return list(struct.iter_unpack("=Q16s", rest))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "one", "two")


class TestAnswered:
    def test_one_row_for_each_chunk_and_target(self, bench: Bench) -> None:
        bench.ring.owe(0, 2 * KIB64)
        bench.ring.owe(39 * KIB64, SIZE)
        assert bench.run() == layout.COMPARE_ANSWERED
        chunks = [0, KIB64, 39 * KIB64, 40 * KIB64]
        assert bench.rows() == [(at, digest_at(target, at)) for at in chunks for target in ("one", "two")]
        assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600

    def test_what_is_asked(self, bench: Bench) -> None:
        bench.ring.owe(KIB64, 3 * KIB64)
        bench.ring.owe(40 * KIB64, SIZE)
        bench.run()
        assert {one.attributes["target"] for one in bench.exchange.asked} == {"one", "two"}
        for request in bench.exchange.asked:
            assert (request.kind, request.volume, request.asked_by) == ("digest", "v", "publisher/me")
            assert request.id.startswith(f"digest-v-{GAP}-{request.attributes['target']}-")
            assert request.attributes["gap"] == GAP
            assert request.attributes["extents"] == f"{KIB64}-{3 * KIB64},{40 * KIB64}-{SIZE}"

    def test_nothing_stays_in_control(self, bench: Bench) -> None:
        bench.ring.owe(0, SIZE)
        bench.run()
        assert bench.exchange.entries == {}

    def test_nothing_owed_is_answered(self, bench: Bench) -> None:
        assert bench.run() == layout.COMPARE_ANSWERED
        assert bench.rows() == []
        assert bench.exchange.asked == []

    def test_a_target_that_takes_its_time(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)
        bench.exchange.on_ask = lambda _: None

        def wait() -> None:
            if bench.exchange.now_s > 19:
                for request in bench.exchange.asked:
                    bench.exchange.answer_well(request)

        bench.exchange.on_wait = wait
        assert bench.run() == layout.COMPARE_ANSWERED

    def test_every_page_has_the_time(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is waited for is a target that does not answer, not the length of the work."""
        monkeypatch.setattr(comparison_module, "PAGE_BYTES_MAX", 4 * KIB64)
        bench.ring.owe(0, SIZE)
        bench.exchange.on_ask = lambda _: None
        asked_s: dict[str, float] = {}

        def wait() -> None:
            for request in bench.exchange.asked:
                if (
                    bench.exchange.now_s - asked_s.setdefault(request.id, bench.exchange.now_s) > 15
                    and request.key in bench.exchange.entries
                ):
                    bench.exchange.answer_well(request)

        bench.exchange.on_wait = wait
        assert bench.run() == layout.COMPARE_ANSWERED
        assert bench.exchange.now_s > 11 * 15
        assert len(bench.rows()) == 2 * 41

    def test_a_broker_that_is_away_for_a_moment(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)
        bench.exchange.failures = 3
        assert bench.run() == layout.COMPARE_ANSWERED

    def test_waits_until_it_is_known_who_has_a_replica(self, bench: Bench) -> None:
        bench.exchange.declared = None
        bench.ring.owe(0, KIB64)

        def wait() -> None:
            if bench.exchange.now_s > 100:
                bench.exchange.declared = ("one",)

        bench.exchange.on_wait = wait
        assert bench.run() == layout.COMPARE_ANSWERED

    def test_the_file_has_a_limit(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A chunk without a row is sent: so the first part may be compared, and the rest not."""
        monkeypatch.setattr(comparison_module, "PAGE_BYTES_MAX", 4 * KIB64)
        monkeypatch.setattr(comparison_module, "DIGESTS_BYTES_MAX", 24 * 10)
        bench.ring.owe(0, SIZE)
        assert bench.run() == layout.COMPARE_ANSWERED
        assert [at for at, _ in bench.rows()][-1] == 7 * KIB64


class TestUnanswered:
    def test_without_replicas_at_once(self, bench: Bench) -> None:
        bench.exchange.declared = ()
        bench.ring.owe(0, SIZE)
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert bench.exchange.now_s == 0
        assert bench.exchange.asked == []

    def test_without_time_to_wait_at_once(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, "one", wait_s=0.0)
        bench.ring.owe(0, SIZE)
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert bench.exchange.asked == []

    def test_all_must_answer(self, bench: Bench) -> None:
        bench.ring.owe(0, SIZE)
        bench.exchange.on_ask = lambda one: bench.exchange.answer_well(one) if one.attributes["target"] == "one" else None
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert 20 <= bench.exchange.now_s < 21
        assert not bench.path.exists()
        assert bench.exchange.entries == {}, "nothing stays behind"

    def test_every_page_must_be_answered(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comparison_module, "PAGE_BYTES_MAX", 4 * KIB64)
        bench.ring.owe(0, SIZE)
        bench.exchange.on_ask = lambda one: bench.exchange.answer_well(one) if len(bench.exchange.asked) < 9 else None
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert not bench.path.exists()

    @pytest.mark.parametrize(
        "told",
        [
            {"done": False},
            {"digests": b""},
            {"digests": b"x" * 15},
            {"digests": b"x" * 48},
            {"digests": b"x" * 32, "position": "00000001-0000000000000039"},
            {"digests": b"x" * 32, "position": "long ago"},
        ],
    )
    def test_an_answer_that_can_not_be_used(self, bench: Bench, told: dict) -> None:
        bench.ring.owe(0, 2 * KIB64)
        bench.exchange.on_ask = lambda request: bench.exchange.tell(request, **told)
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert bench.exchange.now_s < 1
        assert bench.exchange.entries == {}

    def test_what_is_no_base64(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)

        def tell(request: Request) -> None:
            bench.exchange.entries[f"answer/{request.id}"] = Answer(request.id, True, {"position": RIGHT_BEFORE, "digests": "?!"})

        bench.exchange.on_ask = tell
        assert bench.run() == layout.COMPARE_UNANSWERED

    @pytest.mark.parametrize("gap", ["", "nonsense"])
    def test_a_gap_that_is_none(self, bench: Bench, gap: str) -> None:
        bench.want(gap)
        assert bench.run() == layout.COMPARE_UNANSWERED

    def test_memory_that_is_full(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.ring.owe(0, KIB64)

        def full(*_: object) -> None:
            raise OSError(28, "planted: no space")

        monkeypatch.setattr(digest_file.DigestFile, "add", full)
        assert bench.run() == layout.COMPARE_UNANSWERED
        assert [one.name for one in bench.path.parent.iterdir()] == ["v.ring"]

    def test_a_bug_of_ours(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)

        def bug(_: Request) -> None:
            raise ZeroDivisionError

        bench.exchange.on_ask = bug
        assert bench.run() == layout.COMPARE_UNANSWERED


class TestOver:
    """Nothing is told when nobody wants it any more."""

    def test_stopped(self, bench: Bench) -> None:
        self.end(bench, lambda: setattr(bench, "stopped", True), layout.COMPARE_WANTED)

    def test_not_wanted(self, bench: Bench) -> None:
        self.end(bench, lambda: bench.ring.words.__setitem__(layout.W_COMPARE, layout.COMPARE_NONE), layout.COMPARE_NONE)

    def test_another_gap(self, bench: Bench) -> None:
        self.end(bench, lambda: bench.want("00000002-0000000000000099"), layout.COMPARE_WANTED)

    def test_fenced(self, bench: Bench) -> None:
        self.end(bench, lambda: bench.ring.words.__setitem__(layout.W_FENCED, 1), layout.COMPARE_WANTED)

    def test_a_ring_made_anew(self, bench: Bench) -> None:
        self.end(bench, lambda: bench.ring.path.unlink(), layout.COMPARE_WANTED)

    def end(self, bench: Bench, act: Callable[[], object], left: int) -> None:
        bench.ring.owe(0, KIB64)
        bench.exchange.on_ask = lambda _: None

        def wait() -> None:
            act()
            for request in bench.exchange.asked:
                bench.exchange.answer_well(request)

        bench.exchange.on_wait = wait
        assert bench.run() == left
        assert not bench.path.exists()
        assert bench.exchange.now_s < 1


class TestAgain:
    def test_a_killed_publisher_begins_again_and_believes_no_old_answer(self, bench: Bench) -> None:
        """The former run asked for other extents: its answer, late or not, is not taken for this one's."""
        bench.ring.owe(0, 2 * KIB64)
        bench.exchange.on_ask = lambda _: None
        killed = bench.comparison()
        bench.exchange.on_wait = lambda: setattr(bench, "stopped", True)
        killed.run()
        old = list(bench.exchange.asked)
        bench.stopped = False
        for request in old:  # it was killed before it could take them back
            bench.exchange.entries[request.key] = request
            bench.exchange.tell(request, digests=b"old" * 16)
        bench.ring.settle(0, 2 * KIB64)
        bench.ring.owe(5 * KIB64, 7 * KIB64)

        def late(request: Request) -> None:
            for one in old:
                bench.exchange.tell(one, digests=b"\0" * 32)
            bench.exchange.answer_well(request)

        bench.exchange.on_ask, bench.exchange.on_wait = late, lambda: None
        assert bench.run() == layout.COMPARE_ANSWERED
        assert bench.rows() == [(at, digest_at(target, at)) for at in (5 * KIB64, 6 * KIB64) for target in ("one", "two")]
        assert {one.key for one in old} <= set(bench.exchange.forgotten)

    def test_an_old_file_is_gone_before_anything_is_asked(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)
        bench.path.write_bytes(b"old")
        seen: list[bool] = []
        bench.exchange.on_ask = lambda request: (seen.append(bench.path.exists()), bench.exchange.answer_well(request), None)[-1]
        bench.run()
        assert seen == [False, False]


class TestComparisons:
    def test_begins_what_is_wanted_once_and_sweeps_what_came_late(self, bench: Bench) -> None:
        bench.ring.owe(0, KIB64)
        all_of_them = Comparisons("me", bench.exchange, 20.0, lambda: bench.exchange.now_s)
        all_of_them.look({"v": bench.ring})
        all_of_them._threads["v"].join(10)
        assert bench.ring.words[layout.W_COMPARE] == layout.COMPARE_ANSWERED
        bench.exchange.tell(bench.exchange.asked[0], digests=b"late" * 4)
        bench.exchange.now_s += 60
        count = len(bench.exchange.asked)
        all_of_them.look({"v": bench.ring})
        assert bench.exchange.entries == {}
        assert len(bench.exchange.asked) == count
        all_of_them.stop()


class TestPages:
    def test_cover_what_is_owed_within_the_limits(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comparison_module, "PAGE_BYTES_MAX", 5 * KIB64)
        monkeypatch.setattr(comparison_module, "EXTENTS_MAX", 3)
        owed = [*range(12), *range(14, 30, 2), 40]
        for bit in owed:
            bench.ring.owe(bit * KIB64, (bit + 1) * KIB64)
        found = list(pages(bench.ring))
        assert all(len(page) <= 3 and sum(end - start for start, end in page) <= 5 * KIB64 for page in found)
        bits = [at // KIB64 for page in found for start, end in page for at in range(start, end, KIB64)]
        assert bits == owed
        assert found[-1][-1] == (40 * KIB64, SIZE)

    def test_nothing(self, bench: Bench) -> None:
        assert list(pages(bench.ring)) == []
