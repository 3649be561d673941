"""`bookmark NAME|GROUP LABEL`: a recovery point with a name, on one volume or on all volumes of a group at one instant."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hostoffload.context import Context
from stream.errors import ConfigError, HostoffloadError, RetryError

if TYPE_CHECKING:
    from hostoffload.control_room import ControlRoom
    from hostoffload.freeze import FrozenApplication
    from stream.control import Answer, Request

TIMEOUT_S = 30.0
TIMEOUT_S_MIN = 1.0
TIMEOUT_S_MAX = 3000.0
BARRIER_MARGIN_S = 0.5  # a barrier that began in time is over before the application is thawed
ANSWER_GRACE_S = 3.0
POLL_S = 0.02


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    bookmark = commands.add_parser(
        "bookmark",
        help="name this moment, of a volume or a group",
        description="Take a bookmark: a recovery point with a name, on a volume, or on all volumes of a group at one instant. Returns when "
        "Kafka has it, with its position and time. Crash-consistent as it is; with --freeze and --thaw the application is made to hold "
        "still around it, and goes on whatever happens.",
    )
    bookmark.add_argument("name", metavar="NAME|GROUP", help="the volume or the group")
    bookmark.add_argument("label", metavar="LABEL", help="a name for this moment that the volume does not have yet")
    bookmark.add_argument("--freeze", metavar="CMD", help="shell line that makes the application hold still")
    bookmark.add_argument("--thaw", metavar="CMD", help="shell line that lets it go on; runs even if this command is killed")
    bookmark.add_argument(
        "--timeout", metavar="S", type=float, default=TIMEOUT_S, help="give up after this many seconds, and thaw (default %(default).0f s)"
    )
    bookmark.set_defaults(run=_run)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be marked; `group` is empty for a single volume."""

    name: str
    group: str
    volumes: tuple[str, ...]
    label: str


def _run(context: Context, options: argparse.Namespace) -> int:
    from hostoffload.control_room import ControlRoom
    from hostoffload.freeze import FrozenApplication, interrupted_by_signals
    from stream.bookmark import check_label

    label = check_label(options.label)
    if (options.freeze is None) != (options.thaw is None):
        raise ConfigError("--freeze and --thaw go together", hint="Say `--thaw true` if there is nothing to do afterwards.")
    if not TIMEOUT_S_MIN <= options.timeout <= TIMEOUT_S_MAX:
        raise ConfigError(f"--timeout {options.timeout:g} is out of range", hint=f"{TIMEOUT_S_MIN:.0f} to {TIMEOUT_S_MAX:.0f} seconds.")
    deadline_s = time.monotonic() + options.timeout
    config = context.config_with_broker()
    with interrupted_by_signals(), ControlRoom(config) as control:
        wanted = _find(control, options.name, label)
        _check_agent(context, config, control, wanted)
        taking = _Taking(control, wanted, deadline_s)
        frozen = None if options.freeze is None else FrozenApplication(options.freeze, options.thaw, deadline_s - time.monotonic())
        try:
            with frozen or contextlib.nullcontext():
                taking.ask(0.0 if frozen is None else BARRIER_MARGIN_S)
                taking.wait_taken()
            answer = taking.outcome()
        except HostoffloadError as error:
            raise _with_thaw(error, frozen) from error
        except KeyboardInterrupt:
            context.say(f"interrupted; {taking.told()}")
            if frozen is not None:
                context.say(frozen.thaw_failure or "the application was thawed")
            raise
        finally:
            taking.withdraw()
    return _tell(context, wanted, answer, frozen)


def _find(control: ControlRoom, name: str, label: str) -> _Wanted:
    """Return what the name means. Raises ConfigError for nothing, or a label that is given already."""
    from stream.bookmark import label_given

    group = control.groups().get(name)
    volumes = {one: told for one, told in control.volumes().items() if told.state != "removed"}
    if group is None and name not in volumes:
        known = f"Volumes: {', '.join(sorted(volumes)) or 'none'}. Groups: {', '.join(sorted(control.groups())) or 'none'}."
        raise ConfigError(f"There is no volume or group {name!r}", hint=known)
    wanted = _Wanted(name, "", (name,), label) if group is None else _Wanted(name, name, group.volumes, label)
    for volume in wanted.volumes:
        if volume not in volumes:
            raise ConfigError(
                f"Volume {volume} of the group {name} is not protected any more",
                hint=f"Declare the group anew without it: hostoffload group remove {name}",
            )
        known = control.bookmark(volume, label)
        if known is not None:
            raise label_given(known)
    return wanted


def _check_agent(context: Context, config: Any, control: ControlRoom, wanted: _Wanted) -> None:
    """Raise RetryError if the volumes are this machine's and nobody serves them, or the volume is paused."""
    from hostoffload import local_state
    from hostoffload.volume_progress import agent_runs
    from stream.config import host_name

    for name in wanted.volumes:
        declared = control.volume(name)
        if declared.state == "paused":
            raise RetryError(f"{name} is paused", hint=f"hostoffload volume resume {name}")
        if declared.agent == (config.agent.name or host_name()) and not agent_runs(local_state.read(context.state_dir)):
            raise RetryError("No agent runs on this machine", hint="Run `hostoffload up`, or `hostoffload agent run`.")


def _with_thaw(error: HostoffloadError, frozen: FrozenApplication | None) -> HostoffloadError:
    """Return the error with what went wrong at the thaw, if anything did."""
    if frozen is None or frozen.thaw_failure is None:
        return error
    sentence = f"{error.sentence}; and {frozen.thaw_failure}: is the application still frozen?"
    return type(error)(sentence, hint=error.hint.replace("The application was thawed. ", ""), **error.facts)


class _Taking:
    """One request for a bookmark, from the question to Kafka's having it."""

    def __init__(self, control: ControlRoom, wanted: _Wanted, deadline_s: float) -> None:
        self._control = control
        self._wanted = wanted
        self._deadline_s = deadline_s
        self._request: Request | None = None
        self._answer: Answer | None = None

    def ask(self, margin_s: float) -> None:
        """Ask the agent; it will not begin later than `margin_s` before the deadline. Raises RetryError."""
        left_s = self._deadline_s - margin_s - time.monotonic()
        if left_s <= 0:
            raise RetryError("The time was over before the mark could be asked for", hint="Nothing is marked. Give it more --timeout.")
        told = {"label": self._wanted.label, "until_ns": str(time.time_ns() + int(left_s * 1e9))}
        if self._wanted.group:
            told |= {"group": self._wanted.group, "members": ",".join(self._wanted.volumes)}
        self._request = self._control.ask("bookmark", self._wanted.volumes[0], told)

    def wait_taken(self) -> None:
        """Return when the agent has answered, or the time is over."""
        self._wait(self._deadline_s, lambda answer: True)

    def outcome(self) -> Answer:
        """Return the answer once Kafka has the mark. Raises ConfigError and RetryError with what became of it."""
        self._wait(self._deadline_s + ANSWER_GRACE_S, lambda answer: not answer.done or _is_durable(answer))
        answer = self._answer
        if answer is None:
            raise RetryError(
                f"The agent did not answer about the bookmark of {self._wanted.name}",
                hint="It takes no mark any more for this request; see `hostoffload status`.",
            )
        if not answer.done:
            kind = ConfigError if answer.attributes.get("wrong") == "true" else RetryError
            sentence, _, hint = answer.attributes.get("error", "The agent refused the bookmark").partition(". ")
            raise kind(sentence, hint=hint)
        if not _is_durable(answer):
            raise RetryError(
                f"The bookmark is taken at {answer.attributes['position']}, but Kafka does not have it yet",
                hint="It stays where it is, and is durable as soon as Kafka takes what the buffer holds.",
            )
        return answer

    def told(self) -> str:
        """Say what is known of the mark."""
        if self._answer is not None and self._answer.done:
            return f"the bookmark is taken at {self._answer.attributes['position']}"
        return "no mark was taken so far, and none is wanted any more"

    def withdraw(self) -> None:
        """Take back the request, and its answer."""
        if self._request is not None:
            self._control.withdraw(self._request)

    def _wait(self, until_s: float, enough: Callable[[Answer], bool]) -> None:
        assert self._request is not None
        while self._answer is None or not enough(self._answer):
            found = self._control.answered(self._request, POLL_S)
            self._answer = found if found is not None else self._answer
            if time.monotonic() >= until_s:
                return


def _is_durable(answer: Answer) -> bool:
    return answer.attributes.get("durable") == "true"


def _tell(context: Context, wanted: _Wanted, answer: Answer, frozen: FrozenApplication | None) -> int:
    """Print the answer; return the exit code: a thaw that failed is not a success."""
    from recovery.point import format_time

    told = answer.attributes
    captured_ns = int(told["capture_time_ns"])
    at = format_time(captured_ns)
    positions = dict(one.split("=", 1) for one in told["positions"].split(","))
    facts = {
        "label": wanted.label,
        "volume": None if wanted.group else wanted.name,
        "group": wanted.group or None,
        "position": told["position"],
        "positions": positions,
        "capture_time_ns": captured_ns,
        "time": at,
        "stopped_ms": float(told["stopped_ms"]),
        "frozen_ms": None if frozen is None else frozen.frozen_ms,
        "thaw_failure": None if frozen is None else frozen.thaw_failure,
    }
    where = f"position {told['position']}" if not wanted.group else ", ".join(f"{name} {one}" for name, one in positions.items())
    context.answer(facts, f"{wanted.label} at {where}, {at}")
    held = f"writes were held for {facts['stopped_ms']:.1f} ms"
    context.say(held if frozen is None else f"{held}, the application for {frozen.frozen_ms:.0f} ms")
    if frozen is not None and frozen.thaw_failure is not None:
        context.say(f"error: the bookmark is taken, but {frozen.thaw_failure}")
        context.say("hint: is the application still frozen?")
        return RetryError.exit_code
    return 0
