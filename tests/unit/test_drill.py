"""A drill over a bench of cards: what is set up, in which order, what becomes of verdicts, and that all is taken down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from recovery.bisection import Verdict
from recovery.check_run import CheckRun
from recovery.checks import Check, Need, find_tools
from recovery.drill import Candidate, Drill, cleaned
from recovery.point import AtPosition, Wanted
from recovery.stage import StageError
from stream.errors import ConfigError, HostoffloadError, IntegrityError, RecoveryError
from stream.position import Position
from tests.recovery_parts import FakeImage


@dataclass
class FakeOpened:
    image: FakeImage
    position: Position
    capture_time_ns: int


class FakeOpener:
    """Points are positions; some are damaged, some are none. `open_now` must be empty in the end."""

    def __init__(self, damaged: set[int] = frozenset(), none: set[int] = frozenset()) -> None:
        self.damaged = damaged
        self.none = none
        self.open_now: list[Position] = []

    @contextmanager
    def open(self, wanted: Wanted) -> Iterator[FakeOpened]:
        assert isinstance(wanted, AtPosition)
        sequence = wanted.position.sequence
        if sequence in self.damaged:
            raise IntegrityError("A segment is damaged")
        if sequence in self.none:
            raise RecoveryError("That is no recovery point")
        self.open_now.append(wanted.position)
        try:
            yield FakeOpened(FakeImage(b"x", position=wanted.position), wanted.position, sequence * 1000)
        finally:
            self.open_now.remove(wanted.position)


class FakeBench:
    """Does what a bench does, on paper. A check's line is run by `codes`; time passes by one second for each step."""

    def __init__(self, codes=lambda line, position: 0, *, no_device: bool = False, mountable=lambda position: True) -> None:
        self.codes = codes
        self.no_device = no_device
        self.mountable = mountable
        self.did: list[str] = []
        self.failures: list[HostoffloadError] = []
        self.places: dict[Need, str] = {}
        self.time_s = 0.0
        self._shown = 0

    def clock(self) -> float:
        return self.time_s

    def show(self, image: FakeImage) -> None:
        self._step("show")
        self._shown = image.position.sequence
        self.places = {Need.URI: "nbd://uri"}

    def place(self, need: Need) -> str:
        if need in self.places:
            return self.places[need]
        self._step(need.value)
        if self.no_device or (need is Need.MOUNT and not self.mountable(self._shown)):
            raise StageError(f"{need}: wrong fs type")
        self.places[need] = f"/places/{need}"
        return self.places[need]

    def unmount(self) -> None:
        if self.places.pop(Need.MOUNT, None):
            self._step("unmount")

    def check(self, line: str, timeout_s: float, environment: dict[str, str]) -> CheckRun:
        self._step(line)
        assert environment["DRILL_POSITION"] == str(Position(1, self._shown))
        code = self.codes(line, self._shown)
        return CheckRun(code, code is None, 1.0, f"\x1b[31mline {line}\r\n", 0)

    def clear(self) -> list[str]:
        self.did.append("clear")
        self.places = {}
        return []

    def _step(self, what: str) -> None:
        self.did.append(what)
        self.time_s += 1


def drill(bench: FakeBench, *texts: str, opener: FakeOpener | None = None) -> Drill:
    opener = opener or FakeOpener()
    return Drill("db", opener, bench, [Check.parse(text) for text in texts], timeout_s=9, clock=bench.clock)


def wanted(sequence: int) -> Candidate:
    return Candidate(AtPosition(Position(1, sequence)), Position(1, sequence))


def test_only_what_a_check_names_is_set_up() -> None:
    bench = FakeBench()
    result = drill(bench, "look {uri}").at(wanted(5).wanted, 0.0)
    assert bench.did == ["show", "look nbd://uri", "clear"]
    assert result.verdict is Verdict.GOOD and result.set_up.device_s is None and result.set_up.rto_s == 1
    bench = FakeBench()
    lines = ("one {device}", "two {mount} {device}", "three {mount}", "four {device}", "five {mount}")
    result = drill(bench, *lines).at(wanted(5).wanted, -2.0)
    assert bench.did == [
        *("show", "device", "one /places/device", "mount", "two /places/mount /places/device", "three /places/mount"),
        *("unmount", "four /places/device", "mount", "five /places/mount", "clear"),
    ]
    assert (result.set_up.opened_s, result.set_up.device_s, result.set_up.mounted_s, result.set_up.rto_s) == (2, 1, 1, 5)


def test_exit_codes_become_verdicts() -> None:
    codes = {"good": 0, "bad": 1, "untold": 125, "missing": 127, "killed": -9, "late": None}
    for line, code in codes.items():
        result = drill(FakeBench(lambda _, __, code=code: code), line).at(wanted(1).wanted, 0.0)
        assert result.verdict is {0: Verdict.GOOD, 125: Verdict.UNKNOWN}.get(code, Verdict.BAD), line
        assert result.checks[0].said == f"line {line}\n" and result.checks[0].timed_out == (code is None)


def test_a_volume_that_can_not_be_mounted_is_bad_and_a_machine_that_can_not_show_it_is_not() -> None:
    result = drill(FakeBench(mountable=lambda _: False), "look {mount}").at(wanted(1).wanted, 0.0)
    assert result.verdict is Verdict.BAD and "wrong fs type" in result.checks[0].said
    assert drill(FakeBench(no_device=True), "look {device}").at(wanted(1).wanted, 0.0).verdict is Verdict.UNKNOWN


def test_all_is_taken_down_whatever_happens() -> None:
    def interrupted(line: str, position: int) -> int:
        raise KeyboardInterrupt

    bench, opener = FakeBench(interrupted), FakeOpener()
    with pytest.raises(KeyboardInterrupt):
        drill(bench, "anything {mount}", opener=opener).at(wanted(1).wanted, 0.0)
    assert bench.did[-1] == "clear" and opener.open_now == []


def test_every_point_is_looked_at_and_one_that_does_not_open_is_bad() -> None:
    opener = FakeOpener(damaged={3})
    told = []
    bench = FakeBench(lambda line, position: position == 5)
    one = Drill("db", opener, bench, [Check.parse("x")], timeout_s=9, clock=bench.clock, tell=told.append)
    results = one.each([wanted(sequence) for sequence in range(1, 7)])
    assert [result.verdict for result in results] == [*[Verdict.GOOD] * 2, Verdict.BAD, Verdict.GOOD, Verdict.BAD, Verdict.GOOD]
    assert results[2].error == "A segment is damaged" and results[2].position == Position(1, 3) and told == results
    with pytest.raises(IntegrityError):
        one.at(wanted(3).wanted, 0.0)


def test_an_image_that_can_not_be_read_is_bad_whatever_the_checks_say() -> None:
    bench = FakeBench()
    bench.failures.append(IntegrityError("A block does not match its checksum"))
    result = drill(bench, "true").at(wanted(1).wanted, 0.0)
    assert result.verdict is Verdict.BAD and result.error == "A block does not match its checksum"


@pytest.mark.parametrize("none", [set(), {52, 53}, {50, 51, 53}])
def test_bisection_finds_the_last_good_point(none: set[int]) -> None:
    bench = FakeBench(lambda line, position: position > 52)
    answer, results = drill(bench, "x", "y", opener=FakeOpener(none=none)).bisect([wanted(sequence) for sequence in range(100)])
    good = max(sequence for sequence in range(53) if sequence not in none)
    bad = min(sequence for sequence in range(53, 100) if sequence not in none)
    assert answer.last_good.position.sequence == good and answer.first_bad.position.sequence == bad
    assert answer.exact == (bad == good + 1) and len(results) < 14
    assert all(len(result.checks) == 1 for result in results if result.verdict is Verdict.BAD), "one bad check is enough"


def test_what_a_check_needs_is_read_from_its_line() -> None:
    assert Check.parse(" fsck ").needs == {Need.DEVICE} and Check.parse("mount").needs == {Need.MOUNT}
    check = Check.parse("awk '{print $1}' {mount}/a {uri}")
    assert check.needs == {Need.MOUNT, Need.URI}
    assert check.command({Need.MOUNT: "/a b", Need.URI: "nbd+unix:///x?socket=/y"}) == "awk '{print $1}' '/a b'/a 'nbd+unix:///x?socket=/y'"
    with pytest.raises(ConfigError):
        Check.parse("  ")


def test_missing_tools_are_named_with_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="root"):
        find_tools([Check.parse("mount")], is_root=False, path="/nowhere")
    with pytest.raises(ConfigError, match=r"e2fsck.*nbdfuse") as refused:
        find_tools([Check.parse("fsck")], is_root=False, path="/nowhere")
    assert "apt-get install" in refused.value.hint and "e2fsprogs" in refused.value.hint
    find_tools([Check.parse("nbdinfo {uri}")], is_root=False, path="/nowhere")


def test_what_programs_say_is_cleaned() -> None:
    assert cleaned("a\x1b[1;31mred\x1b[0m\r\n50%\r100%\n\x07\x00tab\t") == "ared\n50%\n100%\ntab\t"
