"""The judge, on stories whose right verdict is known."""

from __future__ import annotations

from tests.chaos import verdict
from tests.chaos.campaign import difference
from tests.chaos.product import Done
from tests.chaos.topic import Announced, Stream, gaps_by_reason
from tests.chaos.watch import Sample


def sample(
    at: float,
    resync_bytes: int = 0,
    mode: str = "DATA",
    captured: str = "00000001-1",
    applied: str = "00000001-1",
    owed_bytes: int = 0,
    reporter: int = 7,
) -> Sample:
    facts = {"mode": mode, "resync_bytes": resync_bytes, "owed_bytes": owed_bytes, "captured": captured, "applied": applied}
    return Sample(at, {}, {"v": facts}, reporter)


def done(process: str, at: float, kind: str = "kill", lasts_s: float = 0.0, pid: int = 7) -> Done:
    return Done(kind, process, pid, at, at + lasts_s)


def mark(name: str, at: float, **attributes: str) -> Announced:
    return Announced(name, at, "00000001-0000000000000009", attributes)


def test_a_copy_is_charged_to_whom_was_hit_last() -> None:
    samples = [sample(0), sample(10, 0), sample(20, 4096), sample(30, 4096)]
    charges = verdict.charge(samples, [done("broker", 5), done("target", 18)])
    assert charges.times == {"target": 1} and charges.bytes == {"target": 4096}
    assert verdict.broken(2, [done("broker", 5), done("target", 18)], charges, {}) == [
        "a copy that nothing explains: v copied 4096 bytes at 20.0: charged to target"
    ]


def test_a_copy_after_a_kill_of_capture_is_what_it_had_begun() -> None:
    faults = [done("capture", 12, pid=7), done("cx", 18, pid=99)]
    samples = [sample(0), sample(13), sample(20, owed_bytes=4096, reporter=8), sample(40, 4096, reporter=8), sample(60, 8192, reporter=8)]
    charges = verdict.charge(samples, faults)
    assert charges.times == {"capture": 1, "cx": 1}, "at 40 nothing was owed any more; what the dead one told at 13 counts for nothing"


def test_a_copy_while_capture_was_only_stopped_is_not_its_own() -> None:
    charges = verdict.charge([sample(0), sample(20, 64)], [done("capture", 12, "stop", 3), done("target", 14)])
    assert charges.times == {"target": 1}


def test_a_copy_that_mends_a_gap_is_nobodys() -> None:
    samples = [sample(0), sample(1, 0, "BITMAP"), sample(2, 100, "RESYNC"), sample(3, 200)]
    charges = verdict.charge(samples, [done("publisher", 0.5)])
    assert charges.times == {verdict.ANNOUNCED: 2} and not verdict.broken(1, [done("publisher", 0.5)], charges, {"overflow": 1})


def test_a_clean_start_counts_from_zero_again() -> None:
    charges = verdict.charge([sample(0, 5000), sample(1, 0), sample(2, 64)], [done("cx", 0.5)])
    assert charges.bytes == {"cx": 64}


def test_an_announced_copy_without_an_overflow_is_charged() -> None:
    faults = [done("broker", 5), done("cx", 100)]
    charges = verdict.Charges()
    marks = [mark("sync_begin", 1, reason="first copy"), mark("sync_end", 2), mark("sync_begin", 101, reason="hole")]
    verdict.charge_marks(marks, faults, charges, "v")
    assert charges.times == {"cx": 1}


def test_an_overflow_needs_an_outage() -> None:
    faults = [done("broker", 5, "stop", 20), done("publisher", 200)]
    story = [mark("gap_begin", 20, reason="overflow"), mark("sync_begin", 26, reason="overflow"), mark("sync_end", 30)]
    charges = verdict.Charges()
    verdict.charge_marks(story, faults, charges, "v")
    assert not charges.times
    verdict.charge_marks([mark("gap_begin", 210, reason="overflow")], faults, charges, "v")
    assert charges.times == {"publisher": 1}


def test_gaps_are_counted_by_reason() -> None:
    stream = Stream(bytearray(), announced=[mark("epoch_start", 1, first="true", clean="false"), mark("gap_begin", 2, reason="overflow")])
    stream.announced += [mark("epoch_start", 3, clean="true"), mark("epoch_start", 4, clean="false")]
    stream.announced.append(mark("gap_begin", 5, reason="overflow"))
    assert gaps_by_reason([stream]) == {"overflow": 2, "unclean_stop": 1}
    charges = verdict.Charges()
    assert verdict.broken(0, [], charges, {"overflow": 2, "unclean_stop": 1}) == ["1 gaps for the reason unclean_stop"]


def test_time_away_from_data_is_counted_after_the_first_copy() -> None:
    modes = ["SYNC", "SYNC", "DATA", "OFFLINE", "OFFLINE", "DATA", "RESYNC", "DATA"]
    assert verdict.away_from_data([sample(at, mode=mode) for at, mode in enumerate(modes)]) == [2, 1]


def test_caught_up_when_the_replica_has_what_was_captured_then() -> None:
    samples = [sample(0, captured="5", applied="1"), sample(1, captured="7", applied="4"), sample(2, captured="9", applied="5")]
    assert verdict.caught_up(samples, [0.5, 1.5]) == [1.5]


def test_a_campaign_that_killed_too_few_says_so() -> None:
    assert verdict.broken(20, [done("cx", 1)], verdict.Charges(), {}) == [
        "1 kills were carried out of 20",
        "never killed: capture, publisher, target, broker, supervisor",
    ]


def test_difference_counts_and_places() -> None:
    one = bytes(3 << 20)
    other = bytearray(one)
    assert difference(one, other) == (0, None)
    other[(2 << 20) + 7], other[-1] = 1, 1
    assert difference(one, other) == (2, (2 << 20) + 7)
    assert difference(b"abc", b"ab") == (1, None)
