"""`verify NAME`: one round of verification, until the whole replica is proved equal to the source, or not."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from hostoffload import local_state
from hostoffload.cli.progress import Progress
from hostoffload.context import Context
from hostoffload.verification import Parties, Standing, not_ready, parties, standing
from stream.errors import ConfigError, RetryError

if TYPE_CHECKING:
    from hostoffload.control_room import ControlRoom

POLL_S = 0.05
ABSENCE_S_MAX = 30.0  # a process that died is started again by the supervisor long before that
STALL_S = 20.0


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    verify = commands.add_parser(
        "verify",
        help="prove the whole replica equal to the source",
        description="Compare every byte of the replica with the source while both are in use. Exit 0 when this round found nothing "
        "different, 1 when something differed (even if it is being copied again) or the time ran out. A round that is interrupted is "
        "begun again.",
    )
    verify.add_argument("name", metavar="NAME", help="the volume")
    verify.add_argument("--timeout", metavar="S", type=float, help="give up after this many seconds (default: never)")
    verify.set_defaults(run=_run)


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom

    began_s = time.monotonic()
    local = local_state.read(context.state_dir)
    names = local.volume_names()
    if options.name not in names:
        raise ConfigError(f"There is no volume {options.name!r} here", hint=f"Volumes: {', '.join(names) or 'none'}.")
    if local.declared.get(options.name, {}).get("state") == "paused":
        raise RetryError(f"{options.name} is paused", hint=f"hostoffload volume resume {options.name}")
    parties(local, options.name)
    with ControlRoom(context.config_with_broker()) as control, Progress(context, options.name) as progress:
        rounds = _Rounds(context, control, options.name, progress, None if options.timeout is None else began_s + options.timeout)
        found, lacking = rounds.run()
    waited_s = round(time.monotonic() - began_s, 3)
    ended = {} if found is None else found.ended
    equal = found is not None and found.equal and not rounds.differed
    facts = {
        "volume": options.name,
        "round": rounds.id,
        "equal": equal,
        "proved_position": found.proved_position if equal else None,
        "targets": [{"name": target, **told} for target, told in sorted(ended.items())],
        "waited_s": waited_s,
        "lacking": lacking or None,
    }
    if lacking:
        context.say(f"{options.name} is not proved after {waited_s:.1f} s: {lacking}")
    context.answer(facts, f"{options.name} is proved equal at {facts['proved_position']}" if equal else "")
    return 0 if equal else 1


class _Rounds:
    """Ask for rounds until one comes to its end or the time is out."""

    def __init__(self, context: Context, control: ControlRoom, name: str, progress: Progress, deadline_s: float | None) -> None:
        self._context = context
        self._control = control
        self._name = name
        self._progress = progress
        self._deadline_s = deadline_s
        self._present_s = time.monotonic()
        self._present: Parties | None = None
        self.id: str | None = None
        self.differed = False

    def run(self) -> tuple[Standing | None, str]:
        """Return how the last round stands, and what it lacks if it is not over. `differed` is set if any found something different."""
        found: Standing | None = None
        lacking = ""
        while True:
            lacking = self._wait_until_ready()
            if lacking:
                return found, lacking
            replaced_by = found.replaced_by if found is not None else None
            found, lacking = self._watch(replaced_by) if replaced_by else self._round()
            if found is not None:
                self._name_differences(found)
            if found is None or found.over or found.interrupted is None or self._late:
                return found, lacking
            again = "the one that took its place is watched" if found.replaced_by else "it is begun again"
            self._context.say(f"{self._name}: the round was interrupted ({found.interrupted}); {again}")

    def _wait_until_ready(self) -> str:
        """Return when a round may begin, with nothing; or with what keeps it from that when the time is out."""
        while True:
            reason = self._absent() or not_ready(local_state.read(self._context.state_dir), self._name)
            if reason is None or self._late:
                return reason or ""
            self._progress.show(f"waits: {reason}", None)
            time.sleep(POLL_S)

    def _round(self) -> tuple[Standing | None, str]:
        """Have one round begun, and watch it."""
        began = self._present  # who is there when it is asked for: another one may not know of the round
        request = self._control.ask("verify", self._name, {})
        try:
            while (answer := self._control.answered(request, POLL_S)) is None:
                self._progress.show(self._absent() or "waits for the agent to begin", None)
                if self._late:
                    return None, "the agent has not begun the round"
            if not answer.done:
                raise RetryError(f"The verification of {self._name} was refused", hint="See `hostoffload status`.", **answer.attributes)
        finally:
            self._control.withdraw(request)
        return self._watch(answer.attributes.get("round", request.id), began)

    def _watch(self, round_id: str, began: Parties | None = None) -> tuple[Standing, str]:
        """Return as soon as the round is over, interrupted or late."""
        began = began or self._present
        assert began is not None, "a round is asked for when all are there"
        self.id = round_id
        stall = _Stall()
        while True:
            late = self._late
            found = standing(local_state.read(self._context.state_dir), self._name, round_id, began)
            if not found.over and found.interrupted is None and stall.over(found, time.monotonic()):
                found = replace(found, interrupted=f"nothing more of it came for {STALL_S:.0f} s")
            if found.over or found.interrupted is not None or late:
                return found, "" if found.over else found.interrupted or f"compared {found.percent:.1f} %"
            self._progress.show(f"compared {found.percent:.1f} %", found.percent)
            time.sleep(POLL_S)

    def _absent(self) -> str | None:
        """Return who is missing, None if all are there. Raises RetryError if one has been for `ABSENCE_S_MAX`."""
        now_s = time.monotonic()
        try:
            self._present = parties(local_state.read(self._context.state_dir), self._name)
        except RetryError as error:
            if now_s - self._present_s >= ABSENCE_S_MAX:
                raise
            return error.sentence
        self._present_s = now_s
        return None

    def _name_differences(self, found: Standing) -> None:
        for target, told in sorted({**found.ended, **found.partly}.items()):
            if told["mismatches"]:
                self.differed = True
                places = ", ".join(map(str, told["offsets"])) + (", ..." if told["mismatches"] > len(told["offsets"]) else "")
                chunks = "1 chunk" if told["mismatches"] == 1 else f"{told['mismatches']} chunks"
                self._context.say(f"{self._name}: {chunks} of the replica of {target} differed, at offset {places}; copied again")

    @property
    def _late(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s


class _Stall:
    """Whether a round has come to nothing without a word, as when the agent can't read its source.

    A target may be far behind; so a round counts as dead when a target has applied all that was captured long after the last mark.
    """

    def __init__(self) -> None:
        self._seen: tuple[float, int] | None = None
        self._changed_s = 0.0
        self._goal: str | None = None

    def over(self, found: Standing, now_s: float) -> bool:
        seen = found.percent, len(found.ended)
        if seen != self._seen:
            self._seen, self._changed_s, self._goal = seen, now_s, None
        if self._goal is None and now_s - self._changed_s >= STALL_S / 2:
            self._goal = found.captured
        return now_s - self._changed_s >= STALL_S and self._goal is not None and (found.applied or "") >= self._goal
