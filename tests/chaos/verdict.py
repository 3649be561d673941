"""What the campaign found, judged: pure functions of samples, faults and marks.

Who made a copy necessary: a rise of `resync_bytes` is charged to an announced gap while one is mended; to capture, if it was killed or
restarted and has not yet paid what it had begun when it ended (that is read again from the source); else to the process that was hit last.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.plan import PROCESSES
from tests.chaos.product import Done
from tests.chaos.topic import Announced
from tests.chaos.watch import Sample

INNOCENT = ("publisher", "cx", "target")
"""Those whose death must cost no copy."""
AWAY_S = 60.0
MENDING = ("BITMAP", "RESYNC", "SYNC")
ANNOUNCED = "announced-gap"
ALL_KILLED_MIN = 15
FIRST_COPY = ("first copy", "first_copy")
ALLOWED_GAPS = ("overflow",)


@dataclass(slots=True)
class Charges:
    """Copies by who made them necessary: how often, and bytes."""

    times: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, who: str, nbytes: int, what: str) -> None:
        self.times[who] += 1
        self.bytes[who] += nbytes
        self.told.append(f"{what}: charged to {who}")


def charge(samples: Sequence[Sample], faults: Sequence[Done]) -> Charges:
    """Charge each rise of `resync_bytes`."""
    charges = Charges()
    ended = _ended_captures(samples, faults)
    for before, after in itertools.pairwise(samples):
        for volume, facts in after.volumes.items():
            was, now = before.volumes.get(volume, {}).get("resync_bytes"), facts["resync_bytes"]
            if was is None or not now or now == was:
                continue
            rise = now - was if now > was else now  # a clean start counts from 0 again
            modes = {facts["mode"], before.volumes[volume]["mode"]}
            if modes & set(MENDING):
                who = ANNOUNCED
            elif _owes_since_it_ended(volume, after, samples, ended):
                who = "capture"
            else:
                who = culprit(after.at, faults)
            charges.add(who, rise, f"{volume} copied {rise} bytes at {after.at:.1f}")
    return charges


def _ended_captures(samples: Sequence[Sample], faults: Sequence[Done]) -> dict[float, int | None]:
    """Return when capture processes were ended, and which."""
    ended = {one.at: one.pid for one in faults if one.process == "capture" and one.kind in ("kill", "restart")}
    for one in faults:
        if (one.kind, one.process) == ("restart", "supervisor"):
            ended[one.at] = next((sample.reporter for sample in reversed(samples) if sample.at <= one.at), None)
    return ended


def _owes_since_it_ended(volume: str, now: Sample, samples: Sequence[Sample], ended: Mapping[float, int | None]) -> bool:
    """Tell whether capture was ended some time before and no successor has told since, before `now`, that nothing is owed."""
    times = [at for at in ended if at <= now.at]
    if not times:
        return False
    dead = {ended[at] for at in times}
    since = [sample for sample in samples if max(times) < sample.at < now.at and sample.reporter not in dead]
    return not any(sample.volumes.get(volume, {}).get("owed_bytes") == 0 for sample in since)


def charge_marks(announced: Iterable[Announced], faults: Sequence[Done], charges: Charges, volume: str) -> None:
    """Charge each copy that the stream announces and that mends no overflow, and each overflow that happened while Kafka was there."""
    overflow = False
    for one in announced:
        reason = one.attributes.get("reason", "")
        if one.mark == "gap_begin" and reason in ALLOWED_GAPS:
            overflow = True
            if not _kafka_was_away(one.at, faults):
                charges.add(culprit(one.at, faults), 0, f"{volume} overflowed at {one.at:.1f} while Kafka was there")
        elif one.mark == "sync_begin" and not overflow and reason not in FIRST_COPY:
            charges.add(culprit(one.at, faults), 0, f"{volume} began a copy at {one.at:.1f} ({reason})")
        elif one.mark == "sync_end":
            overflow = False


def culprit(at: float, faults: Sequence[Done]) -> str:
    """Return the process that was hit last before that time."""
    earlier = [one for one in faults if one.at <= at]
    return earlier[-1].process if earlier else "nobody"


def _kafka_was_away(at: float, faults: Sequence[Done]) -> bool:
    return any(at - AWAY_S < one.at <= at and (one.process == "broker" or one.kind in ("drop", "stop")) for one in faults)


def away_from_data(samples: Sequence[Sample]) -> list[float]:
    """Return how long volumes were in another mode than DATA, each time until it was DATA again; the first copy does not count."""
    since: dict[str, float] = {}
    times, begun = [], set()
    for sample in samples:
        for volume, facts in sample.volumes.items():
            if facts["mode"] == "DATA":
                begun.add(volume)
                if volume in since:
                    times.append(sample.at - since.pop(volume))
            elif volume in begun:
                since.setdefault(volume, sample.at)
    return times


def caught_up(samples: Sequence[Sample], ends: Sequence[float]) -> list[float]:
    """Return, for each time at which the faults of an episode were over, how long until all replicas had what was captured then."""
    times = []
    for end in ends:
        known = [sample for sample in samples if sample.at <= end]
        goals = {volume: facts["captured"] for volume, facts in known[-1].volumes.items()} if known else {}
        reached = next((sample.at for sample in samples if sample.at > end and _has_applied(sample, goals)), None)
        if reached is not None:
            times.append(reached - end)
    return times


def _has_applied(sample: Sample, goals: Mapping[str, str | None]) -> bool:
    return all((sample.volumes.get(volume, {}).get("applied") or "") >= (goal or "") for volume, goal in goals.items())


def by_process(faults: Iterable[Done]) -> dict[str, Counter[str]]:
    """Return how often each kind of fault met each process."""
    table: dict[str, Counter[str]] = {}
    for one in faults:
        table.setdefault(one.kind, Counter())[one.process] += 1
    return table


def unkilled(faults: Iterable[Done]) -> list[str]:
    """Return the kinds of processes that were never killed."""
    killed = {one.process for one in faults if one.kind == "kill"}
    return [process for process in PROCESSES if process not in killed]


def broken(kills: int, faults: Sequence[Done], charges: Charges, gaps: Mapping[str, int]) -> list[str]:
    """Return what is not as promised, in sentences."""
    found = [f"a copy that nothing explains: {told}" for told in charges.told if told.rpartition(" ")[2] not in (ANNOUNCED, "capture")]
    found += [f"{count} gaps for the reason {reason}" for reason, count in gaps.items() if reason not in ALLOWED_GAPS]
    done = sum(1 for one in faults if one.kind == "kill")
    if done != kills:
        found.append(f"{done} kills were carried out of {kills}")
    if kills >= ALL_KILLED_MIN and (missing := unkilled(faults)):
        found.append(f"never killed: {', '.join(missing)}")
    return found


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Return count, median and maximum."""
    return {
        "times": len(times),
        "median_s": round(statistics.median(times), 1) if times else None,
        "max_s": round(max(times), 1) if times else None,
    }
