"""What is done to the processes, and when: a pure function of the seed.

A plan is a list of episodes; an episode is a few faults close together, so that one meets the recovery from the other. The first third
leaves capture alone: nothing may be copied again then, whatever dies (`Episode.quiet`). Kills are dealt from a shuffled deck, so that each
kind of process gets its share.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PROCESSES = ("capture", "publisher", "cx", "target", "broker", "supervisor")
CLIENTS = ("publisher", "cx", "target")
"""Those that talk to the broker."""
FAULTS = ("kill", "stop", "restart", "cut")
CUTS = ("reset", "drop")
SETTLE_EVERY = 6
OTHERS_SHARE = 0.6
OVERLAP_S_MAX = 1.5
STOP_S_MAX = 5.0
CUT_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens to one process, `after_s` after the one before.

    `kill`: SIGKILL. `stop`: SIGSTOP for `lasts_s`, then SIGCONT. `restart`: SIGTERM. `reset`: its connections to the broker are broken off
    (the broker's own: all of them). `drop`: nothing that was sent reaches it through them for `lasts_s`, as behind a dead switch.
    """

    kind: str
    process: str
    after_s: float = 0.0
    lasts_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.process}" + (f" for {self.lasts_s:.1f} s" if self.lasts_s else "")


@dataclass(frozen=True, slots=True)
class Episode:
    """Faults that belong together. `settle`: everything is well again before it begins. `quiet`: capture is not touched."""

    at_s: float
    faults: tuple[Fault, ...]
    settle: bool
    quiet: bool
    up_after_s: float


def plan(seed: int, seconds: float, kills: int, kinds: tuple[str, ...] = FAULTS) -> list[Episode]:
    """Return the episodes: exactly `kills` kills, spread over `seconds`, other faults between them."""
    assert not kills or "kill" in kinds
    dice = random.Random(seed)
    combinations = _combinations(dice, kills, seconds, tuple(kind for kind in kinds if kind != "kill"))
    episodes: list[Episode] = []
    for number, (quiet, faults) in enumerate(combinations):
        turn = bool(episodes) and episodes[-1].quiet and not quiet
        episodes.append(
            Episode(
                at_s=round(seconds * number / len(combinations), 2),
                faults=tuple(faults),
                settle=turn or number % SETTLE_EVERY == 0,
                quiet=quiet,
                up_after_s=dice.choice((0.0, 0.3, 1.5)),
            )
        )
    return episodes


def _combinations(dice: random.Random, kills: int, seconds: float, others: tuple[str, ...]) -> list[tuple[bool, list[Fault]]]:
    """Return the faults of each episode, and whether it leaves capture alone."""
    sizes = _sizes(dice, kills, seconds)
    decks = {True: _Deck(dice, PROCESSES[1:]), False: _Deck(dice, (*PROCESSES, "capture"))}
    kinds = _Deck(dice, tuple(one for kind in others for one in (CUTS if kind == "cut" else (kind,))))
    made = []
    for number, size in enumerate(sizes):
        quiet = number < len(sizes) // 3
        faults = [Fault("kill", decks[quiet].draw(), _after_s(dice)) for _ in range(size)]
        if others and (not size or dice.random() < OTHERS_SHARE):
            faults.insert(dice.randrange(len(faults) + 1), _other(dice, kinds.draw(), quiet=quiet))
        made.append((quiet, faults))
    if "restart" in others:
        made.insert(2 * len(made) // 3, (False, [Fault("restart", "supervisor")]))  # all of it is stopped and started, once
    return made


def _sizes(dice: random.Random, kills: int, seconds: float) -> list[int]:
    if not kills:
        return [0] * max(1, round(seconds / 3))
    sizes = []
    while sum(sizes) < kills:
        sizes.append(min(dice.choice((1, 2, 2, 3, 3, 4)), kills - sum(sizes)))
    return sizes


def _other(dice: random.Random, kind: str, *, quiet: bool) -> Fault:
    """Return a fault of that kind, which is no kill."""
    after_s = _after_s(dice)
    if kind == "reset":
        return Fault(kind, dice.choice((*CLIENTS, "broker")), after_s)
    if kind == "drop":
        return Fault(kind, dice.choice((*CLIENTS, "broker")), after_s, round(dice.uniform(0.5, CUT_S_MAX), 1))
    if kind == "stop":
        return Fault(kind, dice.choice(PROCESSES[1:] if quiet else PROCESSES), after_s, round(dice.uniform(0.3, STOP_S_MAX), 1))
    allowed = [one for one in PROCESSES if one != "supervisor" and not (quiet and one == "capture")]
    return Fault("restart", dice.choice(allowed), after_s)


def _after_s(dice: random.Random) -> float:
    return round(dice.choice((0.0, 0.0, dice.uniform(0.0, 0.3), dice.uniform(0.0, OVERLAP_S_MAX))), 2)


class _Deck:
    """Deal the processes in random order, each once before any comes again."""

    def __init__(self, dice: random.Random, cards: tuple[str, ...]) -> None:
        self._dice, self._cards, self._left = dice, cards, []

    def draw(self) -> str:
        if not self._left:
            self._left = list(self._cards)
            self._dice.shuffle(self._left)
        return self._left.pop()
