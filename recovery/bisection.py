"""Bisection: the last good of many ordered points, asked for as few of them as possible. Pure: whoever knows what good means is asked.

Called by `drill --bisect`. It takes for granted, as every bisection does, that what is bad stays bad: `trials` shows all that was asked, so
that a reader can judge. A point that can't be judged is passed by, and the answer then says between which two it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

UNKNOWN_MAX = 100  # in a row: then it is not the points that can't be judged


class Verdict(StrEnum):
    """What is said of a point; UNKNOWN when nobody can tell."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Bisected:
    """Indexes of the last good point and of the first bad one behind it, None where there is none.

    `exact`: nothing that could not be judged lies between them. `trials` has every index asked and its verdict, in the order of asking.
    """

    good: int | None
    bad: int | None
    exact: bool
    trials: tuple[tuple[int, Verdict], ...] = field(default=())


def bisect_points(count: int, judge: Callable[[int], Verdict]) -> Bisected:
    """Find the last good one of points `0 .. count - 1`, asking `judge` of about log2(count) of them, never twice of one.

    The last is asked first: if it is good nothing is bad. Then the first: if that is bad there is no good one. After `UNKNOWN_MAX` in a row
    that can't be judged no more are asked.
    """
    trials = _Trials(judge)
    good, bad = _ends(count, trials)
    while good is not None and bad is not None and not trials.hopeless:
        index = _middle(good, bad, trials.verdicts)
        if index is None:
            break
        verdict = trials.ask(index)
        if verdict is Verdict.GOOD:
            good = index
        elif verdict is Verdict.BAD:
            bad = index
    exact = not trials.hopeless if good is None or bad is None else bad == good + 1
    return Bisected(good, bad, exact, tuple(trials.verdicts.items()))


class _Trials:
    """What was asked, and how many of the last ones could not be judged."""

    def __init__(self, judge: Callable[[int], Verdict]) -> None:
        self.verdicts: dict[int, Verdict] = {}
        self._judge = judge
        self._unknown = 0

    def ask(self, index: int) -> Verdict:
        verdict = self.verdicts[index] = self._judge(index)
        self._unknown = self._unknown + 1 if verdict is Verdict.UNKNOWN else 0
        return verdict

    @property
    def hopeless(self) -> bool:
        return self._unknown >= UNKNOWN_MAX


def _ends(count: int, trials: _Trials) -> tuple[int | None, int | None]:
    """Return a good point at the beginning and a bad one at the end; one of them is None if the other settles it, or if it is hopeless."""
    last = _first_judged(range(count - 1, -1, -1), trials)
    if last is None or trials.verdicts[last] is Verdict.GOOD:
        return last, None
    first = _first_judged(range(last), trials)
    if first is None:
        return None, last
    return (first, last) if trials.verdicts[first] is Verdict.GOOD else (None, first)


def _first_judged(indexes: Iterable[int], trials: _Trials) -> int | None:
    """Ask points in turn until one can be judged; return it."""
    for index in indexes:
        if trials.ask(index) is not Verdict.UNKNOWN:
            return index
        if trials.hopeless:
            break
    return None


def _middle(good: int, bad: int, trials: Mapping[int, Verdict]) -> int | None:
    """Return the point nearest the middle that was not asked yet, None if there is none in between."""
    middle = (good + bad) // 2
    for distance in range(bad - good):
        for index in (middle - distance, middle + distance):
            if good < index < bad and index not in trials:
                return index
    return None
